"""What a recipe is told: the words of its command line and its YAML file, held against the names that there are."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pangu_trl.data.near_names import did_you_mean


@dataclass(frozen=True)
class GivenOptions:
    """Options that were given, none of which is unknown or stands twice.

    Attributes:
        words: The command line without `--config FILE`.
        path: That file.
        settings: What the file holds, without `env`.
        environment: What the file's `env` holds.
    """

    words: list[str]
    path: Path | None
    settings: dict[str, Any]
    environment: dict[str, str]


def read_given_options(words: Sequence[str], known: Sequence[str], elsewhere: Sequence[str] = ()) -> GivenOptions:
    """Reads the words of a command line, which may name a file with `--config`.

    Args:
        words: The words.
        known: Names of all options that the recipe has.
        elsewhere: Names of options that others take, and that a wrong name may mean.

    Raises:
        ValueError: An option is unknown or stands twice, or no output_dir is given.
        OSError: The file cannot be read.
    """
    rest, path = _take_config(words)
    _refuse_doubles(rest)
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in rest if word.startswith("--")}
    settings = {} if path is None else read_yaml(path)
    environment = settings.pop("env", {})
    if not isinstance(environment, dict):
        raise ValueError(f"{path}: env must be a mapping of names to values; got {type(environment).__name__}.")
    unknown = [str(key) for key in settings if key not in known]
    if unknown:
        raise ValueError(f"{path}: {unknown_options(unknown, known)}")
    given |= set(settings)
    unknown = [name for name in given if name not in known]
    unknown = [name for name in unknown if not (name.startswith("no_") and name[3:] in known)]
    asks_for_help = {"h", "help"} & given
    if unknown and not asks_for_help:
        raise ValueError(unknown_options(sorted(unknown), [*known, "config", *elsewhere]))
    if "output_dir" in known and "output_dir" not in given and not asks_for_help:
        raise ValueError(
            "output_dir is required: the folder that the run writes into. `pangu-trl init` writes a file for --config."
        )
    return GivenOptions(rest, path, settings, {str(name): str(value) for name, value in environment.items()})


def unknown_options(names: Iterable[str], known: Iterable[str]) -> str:
    """Says that there are no options of these names, and which ones may be meant."""
    known = list(known)
    return f"there is no option {', '.join(name + did_you_mean(name, known) for name in names)}."


def _take_config(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words without `--config FILE` or `--config=FILE`, and the file."""
    rest, paths, words = [], [], list(words)
    while words:
        word = words.pop(0)
        if word == "--config":
            if not words:
                raise ValueError("--config needs the path of a YAML file.")
            paths.append(words.pop(0))
        elif word.startswith("--config="):
            paths.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    if len(paths) > 1:
        raise ValueError(f"--config stands twice: {', '.join(paths)}. Give one file.")
    return rest, Path(paths[0]) if paths else None


def _refuse_doubles(words: list[str]) -> None:
    names = Counter(word.split("=")[0].replace("-", "_").lstrip("_") for word in words if word.startswith("--"))
    doubles = [name for name, count in names.items() if count > 1]
    if doubles:
        raise ValueError(f"the command line gives {', '.join(doubles)} twice; which one holds would be a guess.")


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen and key != "<<":
                problem = f"{key} stands twice, in lines {seen[key]} and {key_node.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping in UTF-8.

    Raises:
        ValueError: It is not UTF-8, no YAML, no mapping, or has a key twice; the message has the file and line.
        OSError: It cannot be read.
    """
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=_UniqueKeys)
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "is a folder, and must be a YAML file" if path.is_dir() else "there is no such file"
        raise type(error)(f"--config {path}: {what}.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}:{line}: the file is not UTF-8 (byte 0x{error.object[error.start]:02x}); it may be GBK. Save it as "
            "UTF-8."
        ) from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ValueError(f"{place}: no valid YAML: {problem or type(error).__name__}.") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{path}: must hold a mapping of options to values; it holds {found}.")
    return content
