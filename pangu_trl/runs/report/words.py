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
    "empty": ("(empty)", "（空）"),
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
    # Of an evaluation of a reward model.
    "evaluation_title": ("Evaluation of a reward model", "奖励模型评估"),
    "figures": ("Figures", "指标"),
    "figures_lead": (
        "Intervals hold the true value in 95 of 100 samples of prompts (bootstrap over prompts).",
        "区间为 95% 置信区间（按提示自助重采样）。",
    ),
    "value": ("Value", "数值"),
    "interval": ("95 % interval", "95% 区间"),
    "probes": ("Probes", "探针"),
    "probes_lead": (
        "Answers that are wrong by construction, against the best answer of the prompt.",
        "一看就错的回答，与同一提示的最佳回答相比。",
    ),
    "probe": ("Probe", "探针"),
    "prompts": ("Prompts", "提示数"),
    "best_answer_wins": ("Best answer wins", "最佳回答胜出"),
    "mean_score": ("Mean score", "平均得分"),
    "mean_best_score": ("Mean score of the best answer", "最佳回答平均得分"),
    "charts": ("Charts", "图"),
    "best_answers": ("best answers, mean", "最佳回答，均值"),
    "other_answers": ("other answers, mean", "其他回答，均值"),
    "scores_chart": ("Share of answers by score", "得分分布（占比）"),
    "calibration_chart": (
        "Share of pairs whose preferred answer is the better one, by the probability that the model gives",
        "模型给出的概率与实际胜出占比",
    ),
    "gaps_chart": ("Pair accuracy by the gap of the annotated scores", "成对准确率与标注分差"),
    "perfect": ("perfect", "理想"),
    "chance": ("chance", "随机"),
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
