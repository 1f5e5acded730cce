"""What a saved folder holds: a model, a PEFT adapter or a tokenizer, and which of its files are for others."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from .custom_code import read_json

# Everything else stays behind: training_args.bin is a pickle with private paths, checkpoints hold the optimiser.
PUBLIC_FILES = (
    "README.md",
    "LICENSE*",
    "config.json",
    "generation_config.json",
    "reward_card.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
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
        if (path / "adapter_config.json").exists():
            kind, weight_files = "adapter", ["adapter_model.safetensors"]
        elif (path / "config.json").exists():
            kind, weight_files = "model", _model_weights(path)
        elif (path / "tokenizer_config.json").exists():
            kind, weight_files = "tokenizer", []
        else:
            raise FileNotFoundError(
                f"{path}: expected a folder with config.json (a model), adapter_config.json (a PEFT adapter) or "
                f"tokenizer_config.json; {'found none of them' if path.is_dir() else 'there is no such folder'}"
            )
        missing = [name for name in weight_files if not (path / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{path}: expected the weights in {', '.join(missing)}, which the folder lacks. Weights as .bin are "
                "pickles, which run code when they are loaded: load and save the model again to have safetensors."
            )
        return cls(path, kind, read_json(path / "config.json"), read_json(path / "adapter_config.json"), weight_files)

    def files(self, include: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """Splits what the folder holds into files for others, and names that stay behind (folders end in "/").

        Args:
            include: Patterns of further files, e.g. `images/*`.

        Raises:
            FileNotFoundError: A pattern matches nothing.
        """
        files = [path.relative_to(self.path).as_posix() for path in sorted(self.path.rglob("*")) if path.is_file()]
        unmatched = [pattern for pattern in include if not any(fnmatch(name, pattern) for name in files)]
        if unmatched:
            raise FileNotFoundError(f"{self.path}: holds no file that matches {', '.join(unmatched)}")
        chosen, left_out = [], set()
        for name in files:
            if _is_public(name) or any(fnmatch(name, pattern) for pattern in include):
                chosen.append(name)
            else:
                top, slash, _ = name.partition("/")
                left_out.add(top + slash)
        return chosen, sorted(left_out)

    def count_parameters(self) -> int:
        """Counts the numbers in the weight files, of which only the headers are read.

        Raises:
            ValueError: A file is cut short or is no safetensors file.
        """
        count = 0
        for name in self.weight_files:
            try:
                with safe_open(self.path / name, framework="pt") as weights:
                    count += sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())
            except SafetensorError as error:
                raise ValueError(f"{self.path / name}: no whole safetensors file; {error}") from error
        return count


def _is_public(name: str) -> bool:
    # The * of fnmatch does not stop at a slash.
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in PUBLIC_FILES)


def _model_weights(path: Path) -> list[str]:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return ["model.safetensors"]
    if (path / "model.safetensors").exists():
        raise ValueError(
            f"{path}: holds model.safetensors and {index.name}, two sets of weights of which from_pretrained takes the "
            "first. Remove the older one."
        )
    return sorted(set(read_json(index)["weight_map"].values()))
