"""What the page on a run of the real demo says beside figures and pictures."""

from report import Headline, Story, decimal, percent

from pangu_trl.runs.report.page import duration

HEADLINES = [
    Headline(
        "Reward model",
        (("reward", "pair_accuracy_before"), ("reward", "pair_accuracy_after")),
        percent,
        "Held-out pairs of answers in the judge's order; chance is 50%.",
    ),
    Headline(
        "Win rate",
        (("ppo", "win_rate"),),
        percent,
        "Of an answer after PPO against one before, by the judge; ties count half.",
    ),
    Headline(
        "Judge's score",
        (("ppo", "judge_before"), ("ppo", "judge_after")),
        decimal,
        "Before and after PPO, from 0 to 1; PPO never saw it.",
    ),
    Headline("KL", (("ppo", "kl"),), decimal, "Distance from the start model, nats per answer."),
    Headline(
        "Perplexity",
        (("ppo", "perplexity_before"), ("ppo", "perplexity_after")),
        decimal,
        "Of the answers before and after PPO, under the start model: are they still its English?",
    ),
    Headline(
        "Words",
        (("answers", "start", "words"), ("answers", "ppo", "words")),
        decimal,
        "Of an answer, before and after.",
    ),
    Headline("Time", (("seconds",),), duration, "The whole pipeline."),
]

REAL_STORY = Story(
    title="pangu_trl, the real demo",
    lead="SmolLM2-135M-Instruct, a pretrained chat model, learns to give short, friendly, plain answers: a reward "
    "model on ranked answers, then PPO with adapters on one backbone.",
    language="en",
    headlines=HEADLINES,
    sections={
        "reward": ("Reward model", "An adapter and a score head learn the judge's ranking of the model's own answers."),
        "ppo": ("PPO", "The policy is optimised against the reward model; the judge stays hidden from it."),
    },
    samples={"start": "The start model", "ppo": "After PPO"},
    policy_before="start",
)
