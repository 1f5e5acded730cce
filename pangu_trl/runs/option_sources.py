"""The options of a recipe, read from the sources of their dataclasses.

Importing those takes ten seconds, as TRL and transformers load torch. For a page of help, a name that is spelt wrong or
a file to start from their text is enough, and it says the same: the dataclasses stay the only place of an option.
"""

import ast
from dataclasses import dataclass, replace
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
        choices: Values that it can have, where the source lists words.
    """

    name: str
    kind: str
    help: str
    group: str
    choices: tuple[str, ...] = ()


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
        told = _entries(settings.get("metadata"))
        help_text = " ".join(str(_value(path, told["help"])).split()) if "help" in told else ""
        choices = _words(path, told["choices"]) if "choices" in told else ()
        found[node.target.id] = SourceOption(node.target.id, kind, help_text, name, choices)
    return [replace(option, group=name) for option in found.values()]


def _entries(metadata: ast.expr | None) -> dict[str, ast.expr]:
    """The entries of a field's metadata by name."""
    if not isinstance(metadata, ast.Dict):
        return {}
    pairs = zip(metadata.keys, metadata.values, strict=True)
    return {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}


def _words(path: Path, node: ast.expr) -> tuple[str, ...]:
    """The words of a list or tuple, also one that a module names, or that `list(...)` is made of; otherwise none."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        node = node.args[0]
    if isinstance(node, ast.Name):
        named = _assigned(path, node.id)
        return () if named is None else _words(*named)
    if not isinstance(node, ast.List | ast.Tuple):
        return ()
    words = [element.value for element in node.elts if isinstance(element, ast.Constant)]
    return tuple(words) if len(words) == len(node.elts) and all(isinstance(word, str) for word in words) else ()


def _assigned(path: Path, name: str) -> tuple[Path, ast.expr] | None:
    """What a module, or the one that it imports a name from, assigns to the name."""
    for statement in _parse(path).body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in statement.targets
        ):
            return path, statement.value
    source = _imported_from(path, name)
    return None if source is None else _assigned(source, name)


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
        named = _assigned(path, node.id)
        if named is not None:
            return _value(*named)
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
