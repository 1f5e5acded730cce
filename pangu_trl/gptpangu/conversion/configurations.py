"""The configuration of a checkpoint: from config.json or named by the user, checked before a model is built from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..configuration_gptpangu import MODEL_TYPES, GPTPanguConfig
from .sizes import SIZES, named_config
from .stored import ConversionError, read_json_object

_SIZE_NAMES = ("num_layers", "hidden_size", "num_heads", "vocab_size", "max_position_embeddings")


@dataclass(frozen=True)
class Unsaid:
    """What a format may not say, so that the user has to.

    Attributes:
        size: Name of a published configuration, a key of `SIZES`.
        num_heads: Attention heads.
        vocab_size: Rows of the word embedding that are tokens; the others are padding.
    """

    size: str | None = None
    num_heads: int | None = None
    vocab_size: int | None = None


def read_config(folder: Path, unsaid: Unsaid) -> tuple[GPTPanguConfig, dict[str, Any]]:
    """The configuration of a folder in HF format, and its keys as they stand in the file.

    Raises:
        ConversionError: There is no config.json and no size was named, it is damaged, says something else than the
            user, or belongs to another kind of model.
    """
    path = folder / "config.json"
    if not path.exists():
        if unsaid.size is None:
            raise ConversionError(
                f"{folder}: no config.json; name the size with --size {'|'.join(SIZES)}.{other_format(folder, 'hf')}"
            )
        return named_config(unsaid.size), {}
    said = read_json_object(path)
    if said.get("model_type") not in MODEL_TYPES:
        raise ConversionError(
            f"{path}: 'model_type' must be {' or '.join(MODEL_TYPES)}; got {said.get('model_type')!r}."
        )
    # What belongs to the code that wrote the file, not to the model.
    foreign = ("model_type", "auto_map", "architectures", "transformers_version", "torch_dtype", "dtype")
    config = checked_config({key: value for key, value in said.items() if key not in foreign}, path)
    compare_with_user(vars(config), unsaid, path)
    return config, said


def checked_config(settings: dict[str, Any], where: object) -> GPTPanguConfig:
    """A configuration that a model can be built from.

    Raises:
        ConversionError: A setting has the wrong type or an impossible value; the message names it.
    """
    for name in _SIZE_NAMES:
        value = settings.get(name, 1)
        if type(value) is not int or value < 1:
            raise ConversionError(f"{where}: '{name}' must be a whole number from 1; got {value!r}.")
    try:
        return GPTPanguConfig(**settings)
    except (StrictDataclassError, ValueError) as error:
        raise ConversionError(f"{where}: {' '.join(str(error).split())}") from error


def compare_with_user(found: dict[str, Any], unsaid: Unsaid, where: object) -> None:
    """Raises ConversionError where the checkpoint says something else than the user."""
    said = {}
    if unsaid.size is not None:
        named = vars(named_config(unsaid.size))
        said = {name: (named[name], f"--size {unsaid.size}") for name in _SIZE_NAMES}
    if unsaid.num_heads is not None:
        said["num_heads"] = unsaid.num_heads, "--num-heads"
    if unsaid.vocab_size is not None:
        said["vocab_size"] = unsaid.vocab_size, "--vocab-size"
    for name, (value, option) in said.items():
        if value != found[name]:
            raise ConversionError(f"{where}: {name} is {found[name]} in the checkpoint, {value} by {option}.")


def other_format(folder: Path, given: str) -> str:
    """A sentence that names the format that a folder seems to have, if that is not the given one; else nothing."""
    marks = {
        "mindspore-numpy": ("*.npy",),
        "megatron": ("latest_checkpointed_iteration.txt", "mp_rank_*"),
        "hf": ("model*.safetensors", "pytorch_model*.bin"),
    }
    for name, patterns in marks.items():
        if name != given and any(any(folder.glob(pattern)) for pattern in patterns):
            return f" The folder looks like --from {name}."
    return ""
