"""GPTPangu as custom code: a folder that loads without pangu_trl, by `trust_remote_code=True`."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from pangu_trl.gptpangu import (
    GPTPanguConfig,
    GPTPanguForCausalLM,
    GPTPanguForSequenceClassification,
    GPTPanguForTokenClassification,
    GPTPanguModel,
    GPTPanguTokenizer,
)
from pangu_trl.gptpangu.configuration_gptpangu import MODEL_TYPES

TOKENIZER_CLASS = GPTPanguTokenizer.__name__
MODEL_CLASSES = {
    "AutoConfig": GPTPanguConfig,
    "AutoModel": GPTPanguModel,
    "AutoModelForCausalLM": GPTPanguForCausalLM,
    "AutoModelForSequenceClassification": GPTPanguForSequenceClassification,
    "AutoModelForTokenClassification": GPTPanguForTokenClassification,
}


def add_custom_code(folder: str | Path) -> list[str]:
    """Adds GPTPangu's code to a saved model, tokenizer or both, so that they load where pangu_trl is not installed.

    All Auto classes of GPTPangu load the folder afterwards, whichever class saved it. `register_for_auto_class` and
    `save_pretrained` of transformers name only the one class that was saved.

    Args:
        folder: What `save_pretrained` or a recipe wrote.

    Returns:
        Names of the files that were written or changed.

    Raises:
        ValueError: Neither the model nor the tokenizer is GPTPangu's.
        FileExistsError: The folder holds other code under the name of one of our files; nothing was written.
    """
    folder = Path(folder)
    files = custom_code(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)


def custom_code(folder: Path) -> dict[str, bytes]:
    """Returns what a folder needs to load without pangu_trl: Python files, then the JSON files that name them.

    Raises:
        ValueError: Neither the model nor the tokenizer in the folder is GPTPangu's.
        FileExistsError: The folder holds other code under the name of one of our files.
    """
    sources: dict[str, bytes] = {}
    settings: dict[str, bytes] = {}
    config = read_json(folder / "config.json")
    if config.get("model_type") in MODEL_TYPES:
        sources |= _source_files(GPTPanguForCausalLM)
        config["auto_map"] = {auto_class: _reference(cls) for auto_class, cls in MODEL_CLASSES.items()}
        settings["config.json"] = write_json(config)
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    if tokenizer_config.get("tokenizer_class") == TOKENIZER_CLASS:
        sources |= _source_files(GPTPanguTokenizer)
        # The second place is that of a fast tokenizer.
        tokenizer_config["auto_map"] = {"AutoTokenizer": [_reference(GPTPanguTokenizer), None]}
        settings["tokenizer_config.json"] = write_json(tokenizer_config)
    if not settings:
        found = config.get("model_type") or tokenizer_config.get("tokenizer_class") or "neither model nor tokenizer"
        raise ValueError(
            f"{folder}: custom code is for GPTPangu's models and tokenizers (model_type {' or '.join(MODEL_TYPES)}, "
            f"tokenizer_class {TOKENIZER_CLASS}); found {found}. Leave the custom code out."
        )
    for name, content in sources.items():
        path = folder / name
        if path.exists() and path.read_bytes() != content:
            raise FileExistsError(
                f"{path}: exists with other content, and is not overwritten. Remove it, and the 'auto_map' that names "
                "it, if pangu_trl's own code is to take its place."
            )
    return sources | settings


def referenced_code(folder: Path) -> list[str]:
    """Names of the Python files in a folder that its `auto_map` entries run, with what those import.

    Raises:
        ValueError: One of them is missing.
    """
    names: set[str] = set()
    for file in ("config.json", "tokenizer_config.json"):
        references = []
        for entry in read_json(folder / file).get("auto_map", {}).values():
            references += [entry] if isinstance(entry, str) else [name for name in entry if name is not None]
        # "user/name--module.Class" is code that stays in another repository.
        for module in {reference.rpartition(".")[0] for reference in references if "--" not in reference}:
            if not re.fullmatch(r"\w+", module):
                raise ValueError(
                    f"{folder / file}: 'auto_map' names custom code in {module!r}; expected MODULE.CLASS, with the "
                    "module in the folder. Remove 'auto_map', or put the code there."
                )
            path = folder / f"{module}.py"
            if not path.exists():
                raise ValueError(
                    f"{folder / file}: 'auto_map' names custom code in {path.name}, which the folder lacks. Remove "
                    "'auto_map', or add the code."
                )
            for needed in (path, *map(Path, get_relative_import_files(path))):
                if needed.parent != folder or not needed.exists():
                    raise ValueError(f"{path}: imports {needed}, which is not in the folder; put the code there.")
                names.add(needed.name)
    return sorted(names)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; an empty one if there is no such file."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no valid JSON; {error}") from error


def write_json(content: dict[str, Any]) -> bytes:
    """Returns the bytes of a JSON file in the layout of `save_pretrained`."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _source_files(cls: type) -> dict[str, bytes]:
    """The module of a class and all its siblings that it imports, by file name."""
    module = Path(sys.modules[cls.__module__].__file__)
    return {path.name: path.read_bytes() for path in (module, *map(Path, get_relative_import_files(module)))}
