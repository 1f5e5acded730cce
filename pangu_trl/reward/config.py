"""Options of the K-wise reward trainer."""

from dataclasses import dataclass, field

from trl import RewardConfig

from pangu_trl.data.records import is_finite_number
from pangu_trl.runs.ranges import check_numbers

SAMPLING_STRATEGIES = ["random", "sequential", "group_by_length"]
LOSS_TYPES = ["pairwise", "plackett_luce", "tokenwise", "regression"]


@dataclass
class KWiseRewardConfig(RewardConfig):
    """Everything that TRL's RewardConfig takes, and what K ranked answers add.

    Differs from RewardConfig in its defaults: the learning rate of DeepSpeed-Chat's reward stage, batches of similar
    lengths, and no bfloat16 when the run is put on CPU (three times slower there).

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

    loss_type: str = field(
        default="pairwise",
        metadata={
            "help": "'pairwise': every better answer against every worse one, averaged over the pairs of a prompt. "
            "'plackett_luce': likelihood of the whole order. 'tokenwise': DeepSpeed-Chat's comparison of the scores at "
            "every token. 'regression': squared error of the attributes.",
            "choices": LOSS_TYPES,
        },
    )
    attributes: list[str] | None = field(
        default=None,
        metadata={
            "help": "With the regression loss: columns of the data with a number for every response (null where there "
            "is none), each of which an output of the head learns. The reward is their weighted sum."
        },
    )
    attribute_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weight of each attribute in the reward; the model's config.json keeps them. Unset: 1 each."},
    )
    margin_coefficient: float = field(
        default=0.0,
        metadata={
            "help": "With the pairwise loss: margin that the better answer has to win by, for each unit that the "
            "annotated scores lie apart."
        },
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "With the pairwise loss: probability that an annotation is the wrong way round; below 0.5."},
    )
    sum_to_zero_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the squared mean of the rewards of a batch of one device (after arXiv:2505.07271). "
            "Unset: none."
        },
    )
    lm_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the language-model loss on the best answer of each prompt, for models whose output head "
            "is their word embedding (GRM, arXiv:2406.10216). Unset: none."
        },
    )
    prefix_sharing: bool = field(
        default=False,
        metadata={
            "help": "Encode each prompt once for all its answers. Scores, losses and gradients are the same. Needs a "
            "model with attn_implementation sdpa or flex_attention."
        },
    )
    max_row_tokens: int = field(
        default=8192,
        metadata={"help": "With prefix_sharing: most tokens of a row, which is filled with prompts and their answers."},
    )
    padding_free: bool | None = field(
        default=None,
        metadata={
            "help": "Score and learn from the real tokens of a batch alone, one answer with its prompt behind another "
            "without padding. Default: where a trial of the model gives the same scores. true: an error where it "
            "cannot. Rows of prefix_sharing have no padding to leave out."
        },
    )
    train_sampling_strategy: str | None = field(
        default=None,
        metadata={
            "help": "Order of the training data. 'group_by_length': shuffled, batches of prompts with similar lengths. "
            "'random', 'sequential'. Unset: group_by_length, but random with prefix_sharing, which needs no padding; "
            "a stream keeps its order.",
            "choices": SAMPLING_STRATEGIES,
        },
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and self.use_cpu:
            self.bf16 = False
        # A stream has an order of its own, unless somebody asks for another.
        self.sampling_is_open = self.train_sampling_strategy is None
        if self.sampling_is_open:
            self.train_sampling_strategy = "random" if self.prefix_sharing else "group_by_length"
        super().__post_init__()
        if not self.eval_do_concat_batches:
            raise ValueError(
                "KWiseRewardConfig: eval_do_concat_batches must be true: figures are those of the whole evaluation set."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                "KWiseRewardConfig: label_smoothing_factor has no effect on losses of rankings; leave it out. Got "
                f"{self.label_smoothing_factor!r}."
            )
        if not self.min_score_gap >= 0:
            raise ValueError(f"KWiseRewardConfig: min_score_gap must be 0 or more; got {self.min_score_gap}.")
        for name, choices in (("loss_type", LOSS_TYPES), ("train_sampling_strategy", SAMPLING_STRATEGIES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"KWiseRewardConfig: {name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}."
                )
        if not self.margin_coefficient >= 0:
            raise ValueError(f"KWiseRewardConfig: margin_coefficient must be 0 or more; got {self.margin_coefficient}.")
        if self.margin_coefficient and self.loss_type != "pairwise":
            raise ValueError(
                f"KWiseRewardConfig: margin_coefficient needs loss_type 'pairwise', which has margins; got "
                f"{self.loss_type!r}. Remove one of the two."
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"KWiseRewardConfig: label_smoothing must be 0 or more and below 0.5; got {self.label_smoothing}."
            )
        if self.label_smoothing and self.loss_type != "pairwise":
            raise ValueError(
                f"KWiseRewardConfig: label_smoothing needs loss_type 'pairwise', which has probabilities of pairs; got "
                f"{self.loss_type!r}. Remove one of the two."
            )
        self._check_attributes()
        if self.prefix_sharing and self.lm_coefficient is not None:
            raise ValueError(
                "KWiseRewardConfig: lm_coefficient reads an answer from a row of its own, which prefix_sharing does "
                "not make. Remove one of the two."
            )
        if self.prefix_sharing and self.loss_type == "tokenwise":
            raise ValueError(
                "KWiseRewardConfig: prefix_sharing computes no scores behind the end of an answer, which loss_type "
                "'tokenwise' compares. Switch prefix_sharing off, or take another loss_type."
            )
        if self.padding_free and self.prefix_sharing:
            raise ValueError(
                "KWiseRewardConfig: prefix_sharing makes rows of its own, which have no padding for padding_free to "
                "leave out. Remove one of the two."
            )
        if self.padding_free and self.pad_to_multiple_of is not None:
            raise ValueError(
                f"KWiseRewardConfig: padding_free leaves out the padding that pad_to_multiple_of "
                f"{self.pad_to_multiple_of} asks for. Remove one of the two."
            )
        if self.max_row_tokens < 1:
            raise ValueError(f"KWiseRewardConfig: max_row_tokens must be 1 or more; got {self.max_row_tokens}.")
        check_numbers(self)

    def _check_attributes(self) -> None:
        """Refuses a regression on nothing, attributes that nothing learns, and terms that belong to rankings."""
        if (self.loss_type == "regression") != bool(self.attributes):
            raise ValueError(
                "KWiseRewardConfig: loss_type 'regression' and attributes, the names of columns, go together; got "
                f"loss_type {self.loss_type!r} and attributes {self.attributes!r}. Set both or neither."
            )
        names, weights = self.attributes or [], self.attribute_weights
        if len(set(names)) < len(names):
            raise ValueError(f"KWiseRewardConfig: attributes must differ from one another; got {names}.")
        if weights is not None and len(weights) != len(names):
            raise ValueError(
                f"KWiseRewardConfig: attribute_weights needs one number for each of the {len(names)} attributes; got "
                f"{weights!r}."
            )
        if weights is not None and (not all(map(is_finite_number, weights)) or not any(weights)):
            raise ValueError(
                f"KWiseRewardConfig: attribute_weights must be finite numbers, not all 0; got {weights!r}."
            )
        of_rankings = ("prefix_sharing", "center_rewards_coefficient", "sum_to_zero_coefficient", "lm_coefficient")
        for name in of_rankings if names else ():
            if getattr(self, name):
                raise ValueError(
                    f"KWiseRewardConfig: {name} does not go with loss_type 'regression'; leave it out. Got "
                    f"{getattr(self, name)!r}."
                )
