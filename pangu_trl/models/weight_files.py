"""Weights that are none: files that stand for others, numbers that are no numbers."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from .quantised import is_packed

POINTER = b"version https://git-lfs"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".model")


def refuse_pointers(model_id: str) -> None:
    """Looks whether the weights of a folder were left behind by a `git clone` without Git LFS.

    Raises:
        ValueError: A file is a pointer; the message names it.
    """
    folder = Path(model_id)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in WEIGHT_SUFFIXES and path.is_file():
            with path.open("rb") as stream:
                if stream.read(len(POINTER)) == POINTER:
                    raise ValueError(
                        f"{path}: this is a pointer of Git LFS, not the file itself. Run `git lfs pull` in the clone, "
                        "or download the model with `hf download`."
                    )


def refuse_broken_weights(model: PreTrainedModel, model_id: str) -> None:
    """Looks for weights that are NaN or infinite, which training would spread over all others.

    Weights that ZeRO-3 has sharded already are not looked at.

    Raises:
        ValueError: There are some; the message names the tensors.
    """
    broken = [
        name
        for name, parameter in model.named_parameters()
        if not is_packed(parameter) and not torch.isfinite(parameter.detach()).all()
    ]
    if broken:
        shown = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
        raise ValueError(f"{model_id}: weights are NaN or infinite in {shown}. The files, or its training, are broken.")
