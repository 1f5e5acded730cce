"""Counts the bytes of the collectives that one rank takes part in."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Which argument of an operation holds the whole tensors, whose size does not depend on the number of ranks.
WHOLE_TENSORS = {
    "allreduce_": ("all-reduce", 0),
    "allreduce_coalesced_": ("all-reduce", 0),
    "_allgather_base_": ("all-gather", 0),
    "allgather_": ("all-gather", 0),
    "allgather_into_tensor_coalesced_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "reduce_scatter_": ("reduce-scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1),
}


class CollectiveCounter(TorchDispatchMode):
    """Sees every collective on its way to the process group.

    Attributes:
        num_bytes: Bytes of whole tensors by kind of collective; other kinds by the name of their operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.split("::")[1]
            kind, place = WHOLE_TENSORS.get(name, (name, 0))
            tensors = [leaf for leaf in tree_leaves(args[place : place + 1]) if isinstance(leaf, Tensor)]
            self.num_bytes[kind] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return func(*args, **(kwargs or {}))


def steps_only(counter: CollectiveCounter, trainer_class: Any, optimizer_class: Any = torch.optim.Optimizer) -> None:
    """Switches the counter on for training steps and optimiser steps alone."""
    for owner, name in ((trainer_class, "training_step"),):
        original = getattr(owner, name)

        def counted(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            with counter:
                return _original(*args, **kwargs)

        setattr(owner, name, counted)
