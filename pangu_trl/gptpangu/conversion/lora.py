"""LoRA of DeepSpeed-Chat: `lora_right_weight` (in, r) and `lora_left_weight` (r, out) beside each frozen weight.

y = x W^T + b + s (x R) L with s = lora_scaling / r, so W' = W + s (R L)^T. PEFT's lora_A is R^T, its lora_B is L^T, and
its lora_alpha is lora_scaling.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from .sources import LM_HEAD, Source
from .stored import ConversionError, StoredTensor

_RIGHT, _LEFT = ".lora_right_weight", ".lora_left_weight"


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one linear layer: right (in, r), left (r, out)."""

    right: StoredTensor
    left: StoredTensor

    @property
    def rank(self) -> int:
        return self.right.shape[1]


def split_lora(source: Source) -> tuple[Source, dict[str, LoraPair]]:
    """Takes the factors out of a checkpoint.

    Returns:
        The frozen model, and the factors by module name.

    Raises:
        ConversionError: There are none, one of two is missing, or their shapes do not fit the weight.
    """
    modules = {name[: -len(end)] for name in source.tensors for end in (_RIGHT, _LEFT) if name.endswith(end)}
    if not modules:
        raise ConversionError(
            "no lora_right_weight and lora_left_weight in the checkpoint. DeepSpeed-Chat merges them when it saves: "
            "then the file is an ordinary one, convert it with --from hf or --from dschat-reward."
        )
    pairs = {}
    for module in sorted(modules, key=_natural_order):
        for name in (module + _RIGHT, module + _LEFT, f"{module}.weight"):
            if name not in source.tensors:
                raise ConversionError(f"lacks {name}, though it has other LoRA tensors of {module}.")
            if len(source.tensors[name].shape) != 2:
                raise ConversionError(
                    f"{source.tensors[name].place}: expected a matrix; got shape {source.tensors[name].shape}."
                )
        pair = LoraPair(source.tensors[module + _RIGHT], source.tensors[module + _LEFT])
        out_features, in_features = source.tensors[f"{module}.weight"].shape
        expected = (in_features, pair.rank), (pair.rank, out_features)
        if (pair.right.shape, pair.left.shape) != expected:
            raise ConversionError(
                f"{module}: expected LoRA factors of shapes {expected} for a weight of shape "
                f"{(out_features, in_features)}; got {pair.right.shape} and {pair.left.shape}."
            )
        pairs[module] = pair
    frozen = {name: tensor for name, tensor in source.tensors.items() if not name.endswith((_RIGHT, _LEFT))}
    return replace(source, tensors=frozen), pairs


def merged(source: Source, pairs: dict[str, LoraPair], lora_scaling: float) -> Source:
    """The model with its LoRA added to the weights, computed in float32 at least.

    Args:
        source: The frozen model.
        pairs: Its factors.
        lora_scaling: DeepSpeed-Chat's launch argument, which is divided by the rank.
    """
    tensors = dict(source.tensors)
    for module, pair in pairs.items():
        name = f"{module}.weight"
        tensors[name] = _merged_weight(source.tensors[name], pair, lora_scaling / pair.rank)
    return replace(source, tensors=tensors)


def _merged_weight(weight: StoredTensor, pair: LoraPair, scaling: float) -> StoredTensor:
    def read() -> torch.Tensor:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        right, left = pair.right.read().to(dtype), pair.left.read().to(dtype)
        return (weight.read().to(dtype) + scaling * (right @ left).T).to(weight.dtype)

    return replace(weight, read=read)


def adapter_tensors(pairs: dict[str, LoraPair]) -> dict[str, StoredTensor]:
    """The factors under PEFT's names and in its layout."""
    tensors = {}
    for module, pair in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = pair.right.transposed()
        tensors[f"base_model.model.{module}.lora_B.weight"] = pair.left.transposed()
    return tensors


def common_rank(pairs: dict[str, LoraPair]) -> int:
    """The one rank of all modules, as DeepSpeed-Chat gives them.

    Raises:
        ConversionError: They have several.
    """
    ranks = {pair.rank: module for module, pair in pairs.items()}
    if len(ranks) > 1:
        some = ", ".join(f"{module} has {rank}" for rank, module in ranks.items())
        raise ConversionError(f"an adapter of one rank cannot hold these: {some}. Use --merge.")
    return next(iter(ranks))


def target_modules(modules: Iterable[str], num_layers: int) -> list[str]:
    """The shortest list that selects these modules: their names inside a block if all blocks have the same."""
    modules = list(modules)
    suffixes = sorted({re.sub(r"^transformer\.h\.\d+\.", "", module) for module in modules})
    everywhere = {f"transformer.h.{layer}.{suffix}" for layer in range(num_layers) for suffix in suffixes}
    return suffixes if everywhere == set(modules) else modules


def check_base(source: Source, base: Source) -> None:
    """Makes sure that an adapter on this base is the same model as the checkpoint.

    Raises:
        ConversionError: A tensor differs, so the run trained it too, or the base is another model.
    """
    base_tensors = dict(base.tensors)
    if LM_HEAD in source.tensors and LM_HEAD not in base_tensors:
        base_tensors[LM_HEAD] = base_tensors["transformer.wte.weight"]
    for name, tensor in source.tensors.items():
        other = base_tensors.get(name)
        if other is None or other.shape != tensor.shape or not torch.equal(other.read(), tensor.read()):
            raise ConversionError(
                f"{tensor.place}: {'is not in' if other is None else 'differs from'} the base model. An adapter would "
                "lose what the run trained in it; give the base it started from, or use --merge."
            )


def _natural_order(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
