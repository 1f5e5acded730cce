"""PEFT's methods, as far as a training must know them: which can learn, and what switching an adapter off gives."""

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .adapter_selection import REWARD_ADAPTER, VALUE_ADAPTER, active_adapter
from .sharding import is_sharded

# They move the base weights so that base and adapter together are the model that was there, and do so again, to the
# same bits, where PEFT loads the adapter onto the model.
REPEATABLE_SPLITS = ("pissa", "olora")
# They move the base weights by random numbers or data that no adapter's folder holds.
UNREPEATABLE_SPLITS = ("pissa_niter", "corda", "loftq", "lora_ga")

# They need more of a model than its forward pass, or hand more than tensors from layer to layer.
NOT_BY_LAYER = ("XLORA", "POLY", "SHADOW")

INSTEAD = "Use LoRA, or another method that changes layers (IA3, LN tuning)."


def check_padding_is_unseen(name: str, config: PeftConfig) -> None:
    """Refuses methods with which what a model gives depends on the padding of a batch.

    Args:
        name: What to call the adapter's model in the message.
        config: Of the adapter.

    Raises:
        ValueError: It is one of prompt, prefix and P-tuning and their kin, or mixes the tokens of a batch.
    """
    if config.peft_type == PeftType.LILY:
        raise ValueError(
            f"{name} has an adapter of type LILY, which weighs its experts by the mean over all tokens of a batch: "
            f"padding, other texts and later tokens change what the model gives. {INSTEAD}"
        )
    if config.is_prompt_learning:
        raise ValueError(
            f"{name} has an adapter of type {config.peft_type.value}. PEFT puts its virtual tokens in front of the "
            "padding and drops position ids, so what the model gives depends on how much a batch is padded. "
            f"{INSTEAD}"
        )


def check_adapter_method(name: str, config: PeftConfig) -> None:
    """Refuses methods whose training or saving would go wrong without a word.

    Args:
        name: What to call the adapter's model in the message.
        config: Of the adapter.

    Raises:
        ValueError: The message names the method, why it is refused and what to take instead.
    """
    method = config.peft_type.value
    check_padding_is_unseen(name, config)
    if config.peft_type == PeftType.ADALORA:
        raise ValueError(
            f"{name} has an adapter of type {method}, whose schedule of ranks must be called after every step, which "
            "is not done here, and which no checkpoint could restore. Use LoRA."
        )
    if config.peft_type == PeftType.ADAMSS:
        raise ValueError(
            f"{name} has an adapter of type {method}, which splits layers by clusters of the base weights that no "
            "adapter's folder holds: on the same base in another precision PEFT finds other clusters, and would load "
            f"another model without a word. {INSTEAD}"
        )
    if config.is_adaption_prompt or method in NOT_BY_LAYER:
        raise ValueError(
            f"{name} has an adapter of type {method}, which needs more than a forward pass to run. {INSTEAD}"
        )
    start = _start_of(config)
    if isinstance(start, str) and start.startswith(UNREPEATABLE_SPLITS):
        raise ValueError(
            f"{name} has an adapter with init_lora_weights={start!r}, which moves the base weights in a way that PEFT "
            "cannot repeat where it loads the saved adapter: it would load as another model. Use init_lora_weights "
            "true, 'pissa' or 'olora', or merge the adapter into its base model first."
        )


def check_adapter_of_ppo(name: str, config: PeftConfig) -> None:
    """Refuses what is right for a model that reads whole texts, and wrong for one that samples and is scored again.

    Args:
        name: What to call the adapter's model in the message.
        config: Of the adapter.

    Raises:
        ValueError: The message names the method, why it is refused and what to take instead.
    """
    reason = None
    if config.peft_type == PeftType.PVERA or getattr(config, "monteclora_config", None) is not None:
        reason = "whose weights are drawn by chance while it learns, so that ratios of probabilities would be noise"
    elif getattr(config, "alora_invocation_tokens", None):
        reason = "which is on only behind its alora_invocation_tokens, and PPO's passes do not tell it where those are"
    elif getattr(config, "layer_replication", None):
        reason = "whose layer_replication makes another model, and its copied layers share one place in the cache"
    if reason is not None:
        raise ValueError(f"{name} has an adapter of type {config.peft_type.value}, {reason}. Use LoRA without.")


def check_new_adapter(name: str, model: PeftModel) -> None:
    """Refuses a new adapter with which a model is not the one that it was put on.

    Raises:
        ValueError: The message says what to set.
    """
    config = model.peft_config[active_adapter(model)]
    cannot_be_told = config.peft_type != PeftType.LORA and is_sharded(model)
    if _start_of(config) in REPEATABLE_SPLITS or cannot_be_told or starts_as_base(model):
        return
    option, start = _start_option(config), _start_of(config)
    raise ValueError(
        f"{name}: a new adapter of type {config.peft_type.value} with {option}={start!r} does not start as the model "
        "that it is put on, but changes it at random before anything is learnt. "
        + ("Use LoRA." if start in (True, None) else f"Set {option} to true, or use LoRA.")
    )


def check_adapter_state(name: str, model: PeftModel) -> None:
    """Refuses a PEFT model that is not in the state to learn its one active adapter.

    Raises:
        ValueError: Several adapters are active, or adapters are switched off or merged.
    """
    try:
        adapter = active_adapter(model)
    except ValueError as error:
        raise ValueError(f"{name}: {error}.") from error
    reserved = {VALUE_ADAPTER, REWARD_ADAPTER} & set(model.peft_config)
    if reserved:
        raise ValueError(f"{name}: the adapter name {reserved.pop()} is taken here; give the adapter another one.")
    layers = adapter_layers(model)
    if any(layer._disable_adapters for layer in layers):
        raise ValueError(f"{name}: its adapters are switched off; call model.enable_adapter_layers() first.")
    if any(layer.merged_adapters for layer in layers if isinstance(layer, BaseTunerLayer)):
        raise ValueError(f"{name}: an adapter is merged into the base weights; call model.unmerge_adapter() first.")
    idle = _trainable_adapters(layers) - {adapter}
    if idle:
        raise ValueError(
            f"{name}: adapter {', '.join(sorted(idle))} has trainable weights but is not active ({adapter} is), so it "
            f"would not learn. Call model.set_adapter({adapter!r}), which freezes the others, or choose the other one."
        )


def _trainable_adapters(layers: list[nn.Module]) -> set[str]:
    """Names of the adapters that have weights asking for gradients."""
    found = set()
    for layer in layers:
        for part_name in layer.adapter_layer_names:
            part = getattr(layer, part_name, None)
            if isinstance(part, nn.ModuleDict):
                found |= {name for name, module in part.items() if any(p.requires_grad for p in module.parameters())}
            elif isinstance(part, nn.ParameterDict):
                found |= {name for name, parameter in part.items() if parameter.requires_grad}
    return found


def adapter_layers(model: nn.Module) -> list[nn.Module]:
    """The modules that adapters are in."""
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def learns_base_weights(model: PeftModel) -> list[str]:
    """Names of trainable weights outside of adapters, as LoRA's `bias` option makes: switching off leaves them on."""
    inside = {id(parameter) for layer in adapter_layers(model) for parameter in layer.parameters()}
    for layer in adapter_layers(model):
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer.original_module
        inside -= {id(parameter) for parameter in base.parameters()}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside]


def moves_base_weights(model: PeftModel) -> str | None:
    """How the active adapter of a PEFT model changes the base weights, which other adapters stand on; None if not."""
    outside = learns_base_weights(model)
    if outside:
        return f"leaves weights of the base model trainable ({len(outside)}, the first is {outside[0]})"
    start = _start_of(model.peft_config[active_adapter(model)])
    return f"moves the base weights where it starts ({start})" if start in REPEATABLE_SPLITS else None


def starts_as_base(model: PeftModel) -> bool:
    """Whether a PEFT model computes, with its active adapter, what it computes with none.

    Of layers that are sharded, and of methods whose layers take other inputs than one tensor, it cannot be told: False.
    """
    adapter = active_adapter(model)
    return all(_changes_nothing(layer, adapter) for layer in adapter_layers(model))


@torch.no_grad()
def _changes_nothing(layer: nn.Module, adapter: str) -> bool:
    if isinstance(layer, ModulesToSaveWrapper):
        if adapter not in layer.modules_to_save:
            return True
        pairs = zip(layer.modules_to_save[adapter].parameters(), layer.original_module.parameters(), strict=True)
        return all(is_sharded(theirs) or torch.equal(ours, theirs.to(ours)) for ours, theirs in pairs)
    if not isinstance(layer, BaseTunerLayer):
        # A wrapper around such a layer, as for trainable tokens; the layer in it tells.
        return any(isinstance(module, BaseTunerLayer) for module in layer.modules())
    if isinstance(layer, LoraLayer) and _is_zero(layer, adapter):
        return True
    return not is_sharded(layer) and _gives_what_its_base_gives(layer)


def _is_zero(layer: LoraLayer, adapter: str) -> bool:
    factors = [layer.lora_A[adapter].weight, layer.lora_B[adapter].weight] if adapter in layer.lora_A else []
    if adapter in layer.lora_embedding_A:
        factors += [layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]]
    bias = getattr(layer.lora_B[adapter], "bias", None) if adapter in layer.lora_B else None
    return not factors or (any(not factor.any() for factor in factors) and (bias is None or not bias.any()))


def _gives_what_its_base_gives(layer: BaseTunerLayer) -> bool:
    base = layer.get_base_layer()
    inputs = _inputs_for(base)
    if inputs is None:
        return False
    was_training = layer.training
    layer.eval()
    with torch.random.fork_rng(devices=[]):
        found, expected = layer(inputs), base(inputs)
    layer.train(was_training)
    scale = expected.abs().max().item()
    # Of DoRA's magnitudes and of products that are zero but for rounding.
    return torch.allclose(found, expected, rtol=0.0, atol=100 * torch.finfo(expected.dtype).eps * scale)


def _inputs_for(base: nn.Module) -> Tensor | None:
    """Inputs that a layer takes, (2, width) or (2,) token ids; None of a layer whose inputs are not known."""
    weight = getattr(base, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if isinstance(base, nn.Embedding):
        return torch.arange(min(64, len(weight)), device=weight.device)
    width = None
    if isinstance(base, nn.Linear) or weight.ndim == 1:
        width = weight.shape[-1]
    elif isinstance(base, Conv1D):
        width = weight.shape[0]
    if width is None:
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, width, generator=generator).to(device=weight.device, dtype=weight.dtype)


def _start_option(config: PeftConfig) -> str:
    """Name of the option that says how the weights of an adapter start."""
    return next((name for name in ("init_lora_weights", "init_ia3_weights") if hasattr(config, name)), "init_weights")


def _start_of(config: PeftConfig) -> object:
    return getattr(config, _start_option(config), None)
