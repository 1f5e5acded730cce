"""The options of a recipe, read from the sources of their dataclasses.

Importing those takes ten seconds, as TRL and transformers load torch. For a page of help, a name that is spelt wrong or
a file to start from their text is enough, and it says the same: the dataclasses stay the only place of an option.
"""

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SourceOption:
    """An option as its dataclass declares it.

    Attributes:
        name: Its name.
        kind: Its annotation.
        help: What it does; empty where the source does not say.
        group: The dataclass of the recipe that has it, or inherits it.
    """

    name: str
    kind: str
    help: str
    group: str


def options_of_recipe(script: Path) -> list[SourceOption]:
    """The options of all dataclasses that a recipe hands to `parse_options`, in their order.

    Raises:
        ValueError: The script does not call it, or a dataclass is not found.
    """
    for node in ast.walk(_parse(script)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "parse_options":
            names = [argument.id for argument in node.args if isinstance(argument, ast.Name)]
            return [option for name in names for option in _options_of_class(script, name)]
    raise ValueError(f"{script}: hands no dataclasses to parse_options, so its options are not known")


def _options_of_class(path: Path, name: str) -> list[SourceOption]:
    """Fields of a dataclass that a module defines or imports, those of its bases first."""
    path, definition = _find(path, name)
    found: dict[str, SourceOption] = {}
    for base in definition.bases:
        if isinstance(base, ast.Name):
            found |= {option.name: option for option in _options_of_class(path, base.id)}
    for node in definition.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        kind = ast.unparse(node.annotation)
        arguments = node.value.keywords if isinstance(node.value, ast.Call) else []
        settings = {keyword.arg: keyword.value for keyword in arguments}
        if kind.startswith("ClassVar") or "init" in settings:
            continue
        found[node.target.id] = SourceOption(node.target.id, kind, _help(path, settings.get("metadata")), name)
    return [SourceOption(option.name, option.kind, option.help, name) for option in found.values()]


def _help(path: Path, metadata: ast.expr | None) -> str:
    if not isinstance(metadata, ast.Dict):
        return ""
    for key, value in zip(metadata.keys, metadata.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "help":
            return " ".join(str(_value(path, value)).split())
    return ""


def _value(path: Path, node: ast.expr) -> Any:
    """A string as the module would have it; what is put into an f-string must be a constant of a module."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(_value(path, part)) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _value(path, node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return str(_value(path, node.left)) + str(_value(path, node.right))
    if isinstance(node, ast.Name):
        for statement in _parse(path).body:
            if isinstance(statement, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == node.id for target in statement.targets
            ):
                return _value(path, statement.value)
        source = _imported_from(path, node.id)
        if source is not None:
            return _value(source, node)
    return "..."


def _find(path: Path, name: str) -> tuple[Path, ast.ClassDef]:
    for statement in _parse(path).body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return path, statement
    source = _imported_from(path, name)
    if source is None:
        raise ValueError(f"{path}: neither defines nor imports {name}, so the options of a recipe are not known")
    return _find(source, name)


def _imported_from(path: Path, name: str) -> Path | None:
    """The module that a module imports a name from, be it for type checkers only."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return _module_path(path, node)
    return None


def _module_path(path: Path, node: ast.ImportFrom) -> Path | None:
    parts = node.module.split(".") if node.module else []
    if node.level:
        stem = path.parents[node.level - 1].joinpath(*parts)
    else:
        # Of the package alone: what looks for a module below would import it.
        spec = find_spec(parts[0])
        if spec is None or not spec.submodule_search_locations:
            return None
        stem = Path(next(iter(spec.submodule_search_locations))).joinpath(*parts[1:])
    candidates = (stem / "__init__.pyi", stem / "__init__.py", stem.with_name(f"{stem.name}.py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))
