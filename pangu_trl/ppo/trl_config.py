"""TRL 1.12's PPOConfig by its old option names, for scripts that parse them."""

from dataclasses import dataclass, field

from .config import PPOConfig
from .trl_options import DEFAULTS, RENAMED, apply_episodes, translate_trl_options

# Fields of TRL's that ours lack, or have another default for.
_OLD = (
    "learning_rate",
    "critic_learning_rate",
    "gradient_accumulation_steps",
    "num_rollout_batches",
    "reward_clip",
    "temperature",
    "total_episodes",
    "response_length",
    "local_rollout_forward_batch_size",
    "num_sample_generations",
    "num_mini_batches",
    "stop_token",
    "stop_token_id",
    "model_adapter_name",
    "ref_adapter_name",
)


@dataclass
class TRLPPOConfig(PPOConfig):
    """PPOConfig for the argument parsers of scripts that were written for TRL 1.12: see `PPOConfig.from_trl`.

    The old names are taken and translated; those of ours that TRL did not have may be given beside them.

    Raises:
        ValueError: A field is set that has no counterpart; the message says what to do instead.
    """

    learning_rate: float = field(default=DEFAULTS["learning_rate"], metadata={"help": "Of policy and critic."})
    critic_learning_rate: float | None = field(default=None, metadata={"help": "Default: learning_rate."})
    num_rollout_batches: int | None = field(
        default=None, metadata={"help": "Batches of a rollout. Default: gradient_accumulation_steps."}
    )
    reward_clip: float | None = field(default=None, metadata={"help": "As in PPOConfig. Default: no clip."})
    temperature: float = field(default=DEFAULTS["temperature"], metadata={"help": "As in PPOConfig."})
    total_episodes: int | None = field(default=None, metadata={"help": "Answers of the whole run; sets max_steps."})
    response_length: int = field(
        default=DEFAULTS["response_length"], metadata={"help": "max_completion_length of PPOConfig."}
    )
    local_rollout_forward_batch_size: int = field(
        default=DEFAULTS["local_rollout_forward_batch_size"], metadata={"help": "generation_batch_size of PPOConfig."}
    )
    num_sample_generations: int = field(
        default=DEFAULTS["num_sample_generations"], metadata={"help": "Above 0, log_completions of PPOConfig."}
    )
    num_mini_batches: int = field(default=1, metadata={"help": "Only 1."})
    stop_token: str | None = field(default="eos", metadata={"help": "Answers always end with it.", "choices": ["eos"]})
    stop_token_id: int | None = field(default=None, metadata={"help": "Refused: use model.generation_config."})
    model_adapter_name: str | None = field(default=None, metadata={"help": "Refused."})
    ref_adapter_name: str | None = field(default=None, metadata={"help": "Refused."})
    sft_model_path: str | None = field(default=None, metadata={"help": "For the script to read."})
    reward_model_path: str | None = field(default=None, metadata={"help": "For the script to read."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "For the script to read."})

    def __post_init__(self) -> None:
        for old, new in RENAMED.items():
            if getattr(self, new) not in (PPOConfig.__dataclass_fields__[new].default, getattr(self, old)):
                raise ValueError(f"TRLPPOConfig: {new} is called {old} here; got {getattr(self, new)!r}. Set {old}.")
        given = {name: getattr(self, name) for name in _OLD}
        left_open = ("critic_learning_rate", "num_rollout_batches")
        options = {name: value for name, value in given.items() if name not in left_open or value is not None}
        translated, total_episodes = translate_trl_options(options)
        for name, value in translated.items():
            setattr(self, name, value)
        super().__post_init__()
        apply_episodes(self, total_episodes)
