"""The words of a page, in English and Chinese."""

LANGUAGES = ("en", "zh")

WORDS: dict[str, tuple[str, str]] = {
    "title": ("Run", "训练报告"),
    "titles": ("Comparison of runs", "训练对比"),
    "running": ("in progress", "进行中"),
    "ended": ("ended", "已结束"),
    "step": ("Step", "步数"),
    "changes": ("Before and after", "前后对比"),
    "changes_lead": (
        "First and last logged value. Held-out figures where the run was evaluated twice or more, otherwise those of "
        "training.",
        "首次与末次记录的数值。若评估过两次以上，取验证集上的数值；否则取训练中的数值。",
    ),
    "figure": ("Figure", "指标"),
    "run": ("Run", "运行"),
    "first": ("First", "最初"),
    "last": ("Last", "最终"),
    "better": ("better", "变好"),
    "worse": ("worse", "变差"),
    "neither": ("", ""),
    "held_out": ("held out", "验证集"),
    "training": ("training", "训练"),
    "curves": ("Curves", "曲线"),
    "curves_lead": ("Over the optimiser steps.", "横轴为优化器步数。"),
    "evaluation": ("Evaluation by step", "逐步评估"),
    "samples": ("Samples", "样例"),
    "samples_lead": (
        "Answers to held-out prompts at the last evaluation, beside those of the reference; none is picked by hand.",
        "最后一次评估时对验证集提示的回答，与参考模型的回答并列；未经人工挑选。",
    ),
    "reference": ("Reference", "参考模型"),
    "policy": ("Policy", "当前策略"),
    "score": ("score", "得分"),
    "more": ("more", "更多"),
    "times": ("Times", "用时"),
    "times_lead": ("Mean seconds of a rollout in each phase.", "每轮采样各阶段的平均用时（秒）。"),
    "seconds": ("Seconds", "秒"),
    "share": ("Share", "占比"),
    "total": ("Training took", "训练总用时"),
    "settings": ("Settings", "设置"),
    "settings_lead": ("Options that are not the default.", "与默认值不同的选项。"),
    "option": ("Option", "选项"),
    "warnings": ("Warnings met", "出现过的警告"),
    "no_warnings": ("None.", "无。"),
    "nothing": ("Nothing has been logged yet.", "尚无记录。"),
    # Phases of a rollout.
    "generation": ("sampling answers", "生成回答"),
    "scoring": ("scoring them", "打分"),
    "learning": ("learning from them", "学习"),
    # Groups of figures.
    "loss": ("Loss", "损失"),
    "accuracy": ("Accuracy", "准确率"),
    "best_of_k": ("Best of K found", "K 选一命中率"),
    "reward": ("Reward", "奖励"),
    "win_rate": ("Win rate against the reference", "对参考模型的胜率"),
    "margin": ("Margin", "奖励差"),
    "kl": ("KL divergence from the reference", "与参考模型的 KL 散度"),
    "length": ("Length of answers, tokens", "回答长度（token）"),
    "entropy": ("Entropy", "熵"),
    "clip": ("Clipped share of tokens", "被裁剪的 token 占比"),
    "critic": ("Loss of the critic", "价值模型损失"),
    "eos": ("Answers that ended by themselves", "自行结束的回答占比"),
    "learning_rate": ("Learning rate", "学习率"),
    # Stages.
    "sft": ("Supervised fine-tuning", "监督微调"),
    "reward_stage": ("Reward model", "奖励模型"),
    "ppo": ("PPO", "PPO"),
    "dpo": ("DPO", "DPO"),
    "grpo": ("GRPO", "GRPO"),
}


def words(language: str) -> dict[str, str]:
    """The words of one language by key.

    Raises:
        ValueError: There is no such language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}; got {language!r}")
    return {key: texts[LANGUAGES.index(language)] for key, texts in WORDS.items()}
