"""ONE backbone: policy, critic and reward model as adapters of one base model.

The reward adapter, as `KWiseRewardTrainer` or TRL's RewardTrainer saved it, is put on the policy's base model twice: it
scores, and a copy of it starts as the critic. The score head, which a language model does not have, stands beside them.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from pangu_trl.models.adapter_selection import REWARD_ADAPTER, VALUE_ADAPTER, active_adapter
from pangu_trl.models.loading import adapter_folder, load_with_adapter, refuse_missing_folder
from pangu_trl.models.quantised import is_quantised

HEAD_SUFFIX = ".score.weight"


@dataclass
class RewardAdapter:
    """A trained reward adapter without its base model."""

    config: PeftConfig
    weights: dict[str, Tensor]
    head: Tensor  # (1, H)


def read_reward_adapter(source: str | Path | PeftModel, policy: PeftModel, zero3: bool) -> RewardAdapter:
    """Takes a reward adapter from its folder or its PeftModel, and makes sure that it belongs to the policy's base.

    Raises:
        ValueError: Its base model has other weights than the policy's, it has no score head, or it holds more than
            LoRA weights and that head.
    """
    if isinstance(source, PeftModel):
        if zero3:
            raise ValueError("PPOTrainer: under ZeRO-3 pass the folder of the reward adapter, not a PeftModel.")
        name = f"reward_model ({type(source.get_base_model()).__name__})"
        adapter = active_adapter(source)
        config = source.peft_config[adapter]
        weights = get_peft_model_state_dict(source, adapter_name=adapter)
        _check_same_base(name, source, policy)
    else:
        name = adapter_folder(str(source))
        try:
            refuse_missing_folder(name)
            config = PeftConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"PPOTrainer: reward_model {name!r} is not the folder of a LoRA adapter, which share_backbone='all' "
                f"needs; {error}"
            ) from error
        weights = load_peft_weights(name, device="cpu")
        if not _names_same_base(config, policy):
            if zero3:
                raise ValueError(
                    f"PPOTrainer: reward adapter {name} belongs to {config.base_model_name_or_path}, the policy was "
                    f"loaded from {policy.get_base_model().name_or_path}. Load the policy from there."
                )
            _check_same_base(name, load_with_adapter(AutoModelForSequenceClassification, name, num_labels=1)[0], policy)
    heads = [key for key in weights if key.endswith(HEAD_SUFFIX)]
    if len(heads) != 1 or weights[heads[0]].shape[0] != 1:
        raise ValueError(
            f"PPOTrainer: reward adapter {name} must hold one score head (1, H); found {heads or 'none'}. Train it "
            "with task_type='SEQ_CLS', so that the head is trained and saved."
        )
    head = weights.pop(heads[0])
    if config.peft_type != "LORA" or config.bias != "none" or any("lora_" not in key for key in weights):
        raise ValueError(
            f"PPOTrainer: reward adapter {name} must be LoRA with bias='none' and no other saved module than the score "
            f"head; found {config.peft_type}, bias={config.bias!r}, modules_to_save={config.modules_to_save}. Give "
            "it to the run as a model of its own (share_backbone='none')."
        )
    return RewardAdapter(config, weights, head)


def add_reward_and_value_adapters(
    policy: PeftModel, adapter: RewardAdapter, zero3: bool, has_critic: bool = True
) -> tuple[nn.Linear | None, nn.Linear]:
    """Puts the reward adapter on the policy's base model twice: frozen as the reward model, learning as the critic.

    Returns:
        Value head, None without a critic, and reward head.
    """
    learning = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    for name in (VALUE_ADAPTER, REWARD_ADAPTER) if has_critic else (REWARD_ADAPTER,):
        config = copy.deepcopy(adapter.config)
        config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, False
        # ZeRO-3 wants one dtype for all trainable weights.
        policy.add_adapter(name, config, autocast_adapter_dtype=not zero3)
        result = set_peft_model_state_dict(policy, dict(adapter.weights), adapter_name=name)
        missing = [key for key in result.missing_keys if f".{name}" in key]
        if result.unexpected_keys or missing:
            raise ValueError(
                "PPOTrainer: the reward adapter does not fit the policy's base model; weights without a place: "
                f"{result.unexpected_keys}, places without a weight: {missing}."
            )
    for name, parameter in policy.named_parameters():
        # PEFT freezes all adapters but the active one.
        parameter.requires_grad_(name in learning or f".{VALUE_ADAPTER}" in name)
    heads = [nn.Linear(adapter.head.shape[1], 1, bias=False) for _ in range(2)]
    for head in heads:
        with torch.no_grad():
            head.weight.copy_(adapter.head)
        head.to(device=policy.device, dtype=head_dtype(policy, zero3))
    heads[1].requires_grad_(False)
    return heads[0] if has_critic else None, heads[1]


def head_dtype(policy: PreTrainedModel | PeftModel, zero3: bool) -> torch.dtype:
    """The dtype of a head on a policy: its own, but float32 beside an adapter, which PEFT keeps in float32 too.

    In 16 bits most steps would be rounded away. ZeRO-3 wants one dtype for all trainable weights.
    """
    return torch.float32 if isinstance(policy, PeftModel) and not zero3 else policy.dtype


def _names_same_base(config: PeftConfig, policy: PeftModel) -> bool:
    ours, theirs = policy.get_base_model().name_or_path, config.base_model_name_or_path
    if not ours or not theirs:
        return False
    return ours == theirs or (Path(ours).is_dir() and Path(ours).resolve() == Path(theirs).resolve())


def _check_same_base(name: str, reward_model: PeftModel | PreTrainedModel, policy: PeftModel) -> None:
    if is_quantised(policy) != is_quantised(reward_model):
        named = policy.get_base_model().name_or_path
        raise ValueError(
            f"PPOTrainer: {name} names another base model than the policy's, {named}, and the weights of the two "
            "cannot be compared, since one is quantised. Load the policy from the model that the reward adapter names "
            "as base_model_name_or_path, or have both name the same."
        )
    ours, theirs = _base_weights(policy), _base_weights(reward_model)
    different = [
        key
        for key, tensor in theirs.items()
        if key not in ours or tensor.shape != ours[key].shape or not torch.equal(tensor, ours[key].to(tensor))
    ]
    if different:
        raise ValueError(
            f"PPOTrainer: {name} is not an adapter of the policy's base model: {len(different)} of {len(theirs)} base "
            f"weights differ, the first is {different[0]}. With share_backbone='all' load the policy from the model "
            "that the reward adapter was trained on."
        )


def _base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the backbone without adapters and heads, by the names of the plain model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    prefix = f"{base.base_model_prefix}."
    return {
        key.replace(".base_layer.", "."): tensor
        for key, tensor in base.named_parameters()
        if key.startswith(prefix) and "lora_" not in key
    }
