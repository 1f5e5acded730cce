"""The options of a recipe: a YAML file and the command line, read strictly."""

import difflib
import os
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import TrlParser


class StrictParser(TrlParser):
    """TrlParser that reads UTF-8 in every locale, guesses nothing, and has errors instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """What argparse calls on a wrong command line."""
        raise ValueError(message)

    def read(self, words: list[str]) -> tuple[Any, ...]:
        """The dataclasses of a command line, which may name a file with `--config`.

        Raises:
            ValueError: An option is unknown, stands twice or has a value that it cannot have; or no output_dir is
                given.
            OSError: The file cannot be read.
        """
        words, path = _take_config(words)
        _refuse_doubles(words)
        known = [option.name for options in self.dataclass_types for option in fields(options) if option.init]
        given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
        if path is not None:
            config = read_yaml(path)
            self._set_environment(path, config.pop("env", {}))
            unknown = [str(key) for key in config if key not in known]
            if unknown:
                raise ValueError(f"{path}: {_unknown(unknown, known)}")
            given |= set(config)
            self.set_defaults_with_config(**config)
        unknown = [name for name in given if name not in known]
        unknown = [name for name in unknown if not (name.startswith("no_") and name[3:] in known)]
        asks_for_help = {"h", "help"} & given
        if unknown and not asks_for_help:
            raise ValueError(_unknown(sorted(unknown), known))
        if "output_dir" in known and "output_dir" not in given and not asks_for_help:
            raise ValueError("output_dir is required: the folder that the run writes into.")
        return self.parse_args_into_dataclasses(args=words, look_for_args_file=False)

    @staticmethod
    def _set_environment(path: Path, variables: Any) -> None:
        if not isinstance(variables, dict):
            raise ValueError(f"{path}: env must be a mapping of names to values; got {type(variables).__name__}.")
        os.environ.update({str(name): str(value) for name, value in variables.items()})


def _take_config(words: list[str]) -> tuple[list[str], Path | None]:
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


def _unknown(names: list[str], known: list[str]) -> str:
    told = []
    for name in names:
        near = difflib.get_close_matches(name, known, n=1)
        told.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return f"there is no option {', '.join(told)}."


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
