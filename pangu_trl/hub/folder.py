"""What a saved folder holds: a model, a PEFT adapter or a tokenizer, and which of its files are for others."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from pangu_trl.runs.folders import REWARD_CARD_FILE

from .custom_code import read_json

# Besides the weights. All else stays behind: training_args.bin is a pickle with private paths, checkpoints hold the
# optimiser.
PUBLIC_FILES = (
    "README.md",
    "LICENSE*",
    "config.json",
    "generation_config.json",
    REWARD_CARD_FILE,
    "adapter_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.*",
    "additional_chat_templates/*",
)
WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that `save_pretrained` or a recipe wrote.

    Attributes:
        path: The folder.
        kind: What it holds: a whole model, a PEFT adapter, or a tokenizer alone.
        config: Content of `config.json`; empty for an adapter or a tokenizer.
        adapter_config: Content of `adapter_config.json`; empty unless it holds an adapter.
        weight_files: Names of the safetensors files.
    """

    path: Path
    kind: Literal["model", "adapter", "tokenizer"]
    config: dict[str, Any]
    adapter_config: dict[str, Any]
    weight_files: list[str]

    @classmethod
    def open(cls, path: str | Path) -> "ModelFolder":
        """Looks into a folder.

        Raises:
            FileNotFoundError: It does not exist, holds none of the three, or lacks weights.
            ValueError: Its weights are ambiguous or damaged.
        """
        path = Path(path)
        kinds = {"adapter_config.json": "adapter", "config.json": "model", "tokenizer_config.json": "tokenizer"}
        kind = next((kind for name, kind in kinds.items() if (path / name).exists()), None)
        if kind is None:
            raise FileNotFoundError(
                f"{path}: expected a folder with config.json (a model), adapter_config.json (a PEFT adapter) or "
                f"tokenizer_config.json; {'found none of them' if path.is_dir() else 'there is no such folder'}"
            )
        # Before any of them is read.
        _refuse_links(path, [name for name in _walk(path)[0] if name == WEIGHTS_INDEX or _is_public(name)])
        weight_files = _model_weights(path) if kind == "model" else [ADAPTER_WEIGHTS] if kind == "adapter" else []
        missing = [name for name in weight_files if not (path / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{path}: expected the weights in {', '.join(missing)}, which the folder lacks. Weights as .bin are "
                "pickles, which run code when they are loaded: load and save the model again to have safetensors."
            )
        return cls(path, kind, read_json(path / "config.json"), read_json(path / "adapter_config.json"), weight_files)

    def files(self, include: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """Splits what the folder holds into files for others, and names that stay behind (folders end in "/").

        A link to a file in the folder counts as that file; links to folders are not followed.

        Args:
            include: Patterns of further files, e.g. `images/*`. A `*` stops at a "/", a `**` does not; `images/` is all
                that is in that folder.

        Raises:
            FileNotFoundError: A pattern matches nothing, or an index names a file that is missing.
            ValueError: A file that would be published is a link out of the folder or no plain file, or an index names a
                file elsewhere.
        """
        files, linked_folders = _walk(self.path)
        for pattern in include:
            if any(_matches(name, pattern) for name in files):
                continue
            link = next((name for name in linked_folders if pattern.startswith((name, f"./{name}"))), None)
            if link is not None:
                raise ValueError(f"{self.path / link}: is a link to a folder, which is not followed; copy it here.")
            raise FileNotFoundError(f"{self.path}: holds no file that matches {pattern}")
        chosen, left_out = [], set(f"{name}/" for name in linked_folders)
        weights = [*self.weight_files, *([WEIGHTS_INDEX] if self.kind == "model" else [])]
        for name in files:
            if name in weights or _is_public(name) or any(_matches(name, pattern) for pattern in include):
                chosen.append(name)
            else:
                top, slash, _ = name.partition("/")
                left_out.add(top + slash)
        _refuse_links(self.path, chosen)
        for name in chosen:
            if name.endswith((".safetensors.index.json", ".bin.index.json")):
                shards = shards_of(self.path / name)
                unsent = [shard for shard in shards if str(PurePosixPath(name).parent / shard) not in chosen]
                if unsent:
                    raise FileNotFoundError(
                        f"{self.path / name}: names {', '.join(unsent)}, which would not be published; add them with "
                        "--include, or leave the index out."
                    )
        return chosen, sorted(left_out)

    def count_parameters(self) -> int:
        """Counts the numbers in the weight files, of which only the headers are read.

        Raises:
            ValueError: A file is cut short or is no safetensors file, or lacks a tensor that the index says it holds.
        """
        count = 0
        held: dict[str, str] = {}
        for name in self.weight_files:
            try:
                with safe_open(self.path / name, framework="pt") as weights:
                    for key in weights.keys():
                        count += prod(weights.get_slice(key).get_shape())
                        held[key] = name
            except SafetensorError as error:
                raise ValueError(f"{self.path / name}: no whole safetensors file; {error}") from error
        index = self.path / WEIGHTS_INDEX
        if self.kind == "model" and index.exists():
            wrong = [(key, name) for key, name in _weight_map(index).items() if held.get(key) != name]
            if wrong:
                key, name = wrong[0]
                raise ValueError(
                    f"{index}: says that {name} holds the tensor {key}, which it does not ({len(wrong)} such tensors "
                    "in all); load and save the model again."
                )
        return count


def refuse_outside(folder: Path, name: str) -> None:
    """Refuses a file that is a link out of its folder, or no plain file.

    Raises:
        ValueError: It is; the link's target is named.
    """
    path = folder / name
    if not path.exists():
        if path.is_symlink():
            raise ValueError(f"{path}: is a link to {os.readlink(path)}, which does not exist; remove it.")
        return
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path}: is a link out of the folder, to {target}, and is not published. If that file is for others, put "
            "a copy in the place of the link (cp -L)."
        )
    if not target.is_file():
        raise ValueError(f"{path}: expected a file, got something else; remove it.")


def shards_of(index: Path) -> list[str]:
    """Names of the weight files that an index names; all lie beside it.

    Raises:
        FileNotFoundError: One of them does not exist.
        ValueError: It is no index, or names a file in another folder.
    """
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if name != Path(name).name or "\\" in name or name in (".", ".."):
            raise ValueError(
                f"{index}: names {name!r}, which is not in its folder; shards lie beside their index. Put the file "
                "there, or load and save the model again."
            )
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise FileNotFoundError(f"{index}: names {', '.join(missing)}, which the folder lacks; complete the copy.")
    return names


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{index}: expected 'weight_map', an object that names the file of every tensor")
    return weight_map


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """Names of everything below a folder that is no folder, and of links to folders."""
    files, linked_folders = [], []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        relative = Path(parent).relative_to(folder)
        files += [(relative / name).as_posix() for name in names]
        linked_folders += [(relative / name).as_posix() for name in folders if (Path(parent) / name).is_symlink()]
    return sorted(files), sorted(linked_folders)


def _raise(error: OSError) -> None:
    raise error


def _refuse_links(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        refuse_outside(folder, name)


def _is_public(name: str) -> bool:
    return any(_matches(name, pattern) for pattern in PUBLIC_FILES)


def _matches(name: str, pattern: str) -> bool:
    """Whether a name is one of a pattern, whose `*` stops at a "/" and whose `**` does not."""
    pattern = pattern.removeprefix("./")
    return _parts_match(name.split("/"), (pattern + "**" if pattern.endswith("/") else pattern).split("/"))


def _parts_match(name: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_parts_match(name[skipped:], pattern[1:]) for skipped in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _parts_match(name[1:], pattern[1:])


def _model_weights(path: Path) -> list[str]:
    index = path / WEIGHTS_INDEX
    if not index.exists():
        return [WEIGHTS]
    if (path / WEIGHTS).exists():
        raise ValueError(
            f"{path}: holds {WEIGHTS} and {index.name}, two sets of weights of which from_pretrained takes the "
            "first. Remove the older one."
        )
    return shards_of(index)
