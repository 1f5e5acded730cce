"""Counts the bytes of the collectives that one rank takes part in."""

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

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


class CountSteps(TrainerCallback):
    """Counts from the second optimiser step to the last but one: the first fills caches, and the end saves.

    Attributes:
        per_step: Bytes of an optimiser step, by kind of collective, once training has ended.
    """

    def __init__(self) -> None:
        self.counter = CollectiveCounter()
        self.per_step: dict[str, float] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts to count."""
        if state.global_step == 1:
            self.counter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops."""
        if state.global_step == state.max_steps - 1:
            self.counter.__exit__(None, None, None)
            steps = state.max_steps - 2
            self.per_step = {kind: size / steps for kind, size in self.counter.num_bytes.items()}
