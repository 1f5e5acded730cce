"""The options of a recipe that decide about memory, without starting anything."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pangu_trl.gptpangu.conversion.sizes import SIZES as PUBLISHED_SIZES
from pangu_trl.runs.arguments import OWN_OPTIONS, RunArguments
from pangu_trl.runs.folders import STAGES

# TRL's GRPO sets no limit to prompts; this is the default of our PPO.
GRPO_PROMPT_TOKENS = 512
# What a recipe's folder may be called after: the published sizes, and one to try everything with.
TINY = "tiny"
SIZES = (TINY, *(f"pangu-{size}" for size in PUBLISHED_SIZES))


@dataclass(frozen=True)
class Settings:
    """A recipe's options with the defaults of its dataclasses.

    Attributes:
        stage: sft, reward, ppo, dpo or grpo.
        model: Folder or Hub id of the model, or one of `SIZES`.
        options: Every option of the stage's dataclasses by name.
    """

    stage: str
    model: str
    options: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.options[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An option that only some stages have."""
        return self.options.get(name, default)

    @property
    def checkpoints_activations(self) -> bool:
        # The second is the older name of the first, and counts where that says nothing.
        chosen, older = self["activation_checkpointing"], self["gradient_checkpointing"]
        return bool(older if chosen is None else chosen)

    @property
    def loaded_size(self) -> int:
        """Bytes of a weight as `from_pretrained` gives it."""
        return 2 if self["dtype"] in ("bfloat16", "float16") else 4

    @property
    def is_quantised(self) -> bool:
        return bool(self["load_in_4bit"] or self["load_in_8bit"])

    @property
    def quantised_size(self) -> float:
        """Bytes of a quantised weight in bitsandbytes' blocks of 64, with the share of its block's scale."""
        if self["load_in_8bit"]:
            # One scale a row, which is thousands of weights wide.
            return 1.0
        # Nested quantisation has scales of 8 bits, 256 of which share one of 32.
        return 0.5 + (1 + 4 / 256) / 64 if self["use_bnb_nested_quant"] else 0.5 + 4 / 64

    @property
    def has_lora_dropout(self) -> bool:
        """Whether the LoRA layers drop features; PPO and, where they are told to, TRL's trainers switch that off."""
        is_off = self.get("disable_dropout", self.stage == "ppo")
        return bool(self["use_peft"]) and self["lora_dropout"] > 0 and not is_off

    @property
    def smooths_labels(self) -> bool:
        """Whether SFT reads all logits at once: TRL's other losses go through tiles of them."""
        return self.stage == "sft" and self["label_smoothing_factor"] > 0 and self["loss_type"] == "nll"

    @property
    def samples_by_vllm(self) -> bool:
        """Whether vLLM samples the answers: a server, which takes none of the training's memory; others are refused."""
        return self["rollout_engine"] == "vllm" if self.stage == "ppo" else bool(self["use_vllm"])

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of a sequence that the options allow; None for any number."""
        if self.stage == "ppo":
            return self["max_prompt_length"] + self["max_completion_length"]
        if self.stage == "grpo":
            return GRPO_PROMPT_TOKENS + self["max_completion_length"]
        return self["max_length"]


def read_settings(path: str | Path, model: str | None = None, stage: str | None = None) -> Settings:
    """Reads a recipe.

    Args:
        path: `<model>/<stage>.yaml` or `<model>/<stage>/<method>.yaml`, or any other name where `stage` is said.
        model: Folder, Hub id or size in place of the recipe's `model_name_or_path`, or of the recipe's folder.
        stage: sft, reward, ppo, dpo or grpo, in place of what the path says.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The stage cannot be told from the path, an option is none or is not planned for, or no model is
            named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe; those of the PanGu sizes are recipes/SIZE/STAGE/METHOD.yaml")
    given = yaml.safe_load(path.read_text("utf-8")) or {}
    if not isinstance(given, dict):
        raise ValueError(f"{path}: must hold options, one `name: value` a line; got a {type(given).__name__}")
    stage = stage or next((name for name in (path.stem, path.parent.name) if name in STAGES), None)
    if stage is None:
        raise ValueError(
            f"{path}: say its stage with --stage, or name the file or its folder after it: {', '.join(STAGES)}"
        )
    options = _defaults(stage)
    unknown = sorted(given.keys() - options.keys())
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)}: no options of the stage {stage}")
    folder = next((part for part in reversed(path.parts) if part in SIZES), None)
    model = model or given.get("model_name_or_path") or folder
    if model is None:
        raise ValueError(f"{path}: names no model; pass --model with a folder, a Hub id, or one of {', '.join(SIZES)}")
    settings = Settings(stage, model, options | given)
    _refuse_unplanned(path, settings)
    return settings


def _refuse_unplanned(path: Path, settings: Settings) -> None:
    if settings.is_quantised and not settings["use_peft"]:
        raise ValueError(f"{path}: load_in_4bit and load_in_8bit need use_peft, with which the recipes start")
    if settings.stage in ("ppo", "grpo") and settings.samples_by_vllm and settings["vllm_mode"] == "colocate":
        raise ValueError(
            f"{path}: vllm_mode colocate takes vllm_gpu_memory_utilization of each GPU, which the plan does not count; "
            "plan with vllm_mode: server, and less --gpu-memory"
        )


def _defaults(stage: str) -> dict[str, Any]:
    from trl import DPOConfig, GRPOConfig, ModelConfig, SFTConfig

    from pangu_trl import KWiseRewardConfig, PPOConfig
    from pangu_trl.data.arguments import DataArguments

    config = {"sft": SFTConfig, "reward": KWiseRewardConfig, "ppo": PPOConfig, "dpo": DPOConfig, "grpo": GRPOConfig}
    options: dict[str, Any] = {}
    for dataclass_type in (DataArguments, *OWN_OPTIONS.get(stage, ()), RunArguments, config[stage], ModelConfig):
        for option in fields(dataclass_type):
            if option.default is not MISSING:
                options[option.name] = option.default
            elif option.default_factory is not MISSING:
                options[option.name] = option.default_factory()
    return options
