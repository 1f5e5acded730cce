"""What the page on a run of the demo says beside figures and pictures."""

from report import Headline, Story, decimal, percent

from pangu_trl.runs.report.page import duration

HEADLINES = [
    Headline(
        "Language-model loss",
        (("sft", "eval_loss_before"), ("sft", "eval_loss_after")),
        decimal,
        "Held-out reviews, before and after fine-tuning; lower is better.",
    ),
    Headline(
        "Reward model",
        (("reward", "pair_accuracy_before"), ("reward", "pair_accuracy_after")),
        percent,
        "Held-out pairs of answers in the right order; chance is 50%.",
    ),
    Headline("Reward", (("ppo", "reward_before"), ("ppo", "reward_after")), decimal, "Before and after PPO, its aim."),
    Headline(
        "Judge's score",
        (("ppo", "judge_before"), ("ppo", "judge_after")),
        decimal,
        "Before and after PPO, from 0 to 1; PPO never saw it.",
    ),
    Headline("KL", (("ppo", "kl"),), decimal, "Distance of PPO's model from the fine-tuned one."),
    Headline("Time", (("seconds",),), duration, "The whole pipeline."),
]

DEMO_STORY = Story(
    title="pangu_trl demo",
    lead="A small GPTPangu learns to write Chinese reviews, then to write favourable ones: supervised fine-tuning, a "
    "reward model on ranked answers, PPO.",
    language="zh",
    headlines=HEADLINES,
    sections={
        "sft": ("Supervised fine-tuning", "The model starts from random weights and learns to continue reviews."),
        "reward": ("Reward model", "It learns the judge's taste from ranked answers of the fine-tuned model."),
        "ppo": (
            "PPO",
            "The fine-tuned model is optimised against the reward model; the judge's view stays hidden from it.",
        ),
    },
    samples={"base": "Random weights", "sft": "After fine-tuning", "ppo": "After PPO"},
    policy_before="sft",
)
