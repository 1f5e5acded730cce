"""Whole weights on every rank while answers are sampled, under PyTorch's FSDP2."""

import types
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method


@contextmanager
def whole_weights(root: nn.Module, part: nn.Module) -> Iterator[None]:
    """Gathers the weights of a part of an FSDP2 module once and keeps them whole until the context ends.

    `generate` goes past the module that holds embeddings and head, whose hooks would gather those, and would gather
    every block anew for every token. Without collectives in between, ranks may also end at different lengths.

    Args:
        root: The module that was sharded as a whole; every rank enters with it. Any other module stays as it is.
        part: The module inside that is to run. What `root` holds outside of sharded blocks becomes whole too.
    """
    modules = []
    if isinstance(root, FSDPModule):
        modules = [
            root,
            *(module for module in part.modules() if isinstance(module, FSDPModule) and module is not root),
        ]
        _initialize(root)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            # The root keeps its weights from forward to backward, as FSDP2 itself decides.
            module.set_reshard_after_forward(module is not root, recurse=False)
            module.reshard()


def _initialize(root: FSDPModule) -> None:
    """Has FSDP2 find out which module is the root, which the first forward pass decides, ours being of a part."""
    root.pass_nothing = types.MethodType(lambda self: None, root)
    register_fsdp_forward_method(root, "pass_nothing")
    root.pass_nothing()
    del root.pass_nothing
