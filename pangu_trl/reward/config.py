"""Options of the K-wise reward trainer."""

from dataclasses import dataclass, field

from trl import RewardConfig


@dataclass
class KWiseRewardConfig(RewardConfig):
    """Everything that TRL's RewardConfig takes, and what K ranked answers add.

    Differs from RewardConfig in two defaults: the learning rate of DeepSpeed-Chat's reward stage, and no bfloat16 when
    the run is put on CPU (three times slower there).

    Raises:
        ValueError: An option has a value that it cannot have; the message says which.
    """

    learning_rate: float = field(default=5e-6, metadata={"help": "The initial learning rate for AdamW."})
    min_score_gap: float = field(
        default=0.0,
        metadata={
            "help": "Evaluation counts a pair only if the annotated scores differ by more than 0 and at least by this "
            "much. Training uses every ordered pair."
        },
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and self.use_cpu:
            self.bf16 = False
        super().__post_init__()
        if self.min_score_gap < 0:
            raise ValueError(f"KWiseRewardConfig: min_score_gap must be 0 or more; got {self.min_score_gap}.")
