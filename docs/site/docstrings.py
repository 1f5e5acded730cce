"""Docstrings as the reference needs them: Google's sections go through napoleon, the rest is made ready here."""

import dataclasses
import re

from sphinx.application import Sphinx

# An item of a section that says of each result by name what it is.
_ITEM = re.compile(r"^    ([\w, ]+): (.*)")
BEFORE_NAPOLEON = 400


def prepare(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    if what == "module":
        lines[:] = list(_with_examples(lines))
    elif "Returns:" in lines:
        lines[:] = _with_list_of_results(lines)
    if what == "class" and dataclasses.is_dataclass(obj):
        lines += _options(obj)


def _with_examples(lines: list[str]) -> list[str]:
    """What is indented in the text of a module is code, as in Markdown."""
    result: list[str] = []
    for line in lines:
        if line.startswith("    ") and result and not result[-1] and not _is_code_before(result):
            result += ["::", ""]
        result.append(line)
    return result


def _is_code_before(lines: list[str]) -> bool:
    spoken = [line for line in lines if line]
    return bool(spoken) and spoken[-1].startswith("    ")


def _with_list_of_results(lines: list[str]) -> list[str]:
    """Several results with names become a list; napoleon knows one result alone."""
    start = lines.index("Returns:") + 1
    end = next((i for i in range(start, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
    section = lines[start:end]
    if sum(_ITEM.match(line) is not None for line in section) < 2:
        return lines
    items = []
    for line in section:
        item = _ITEM.match(line)
        if item:
            items.append(f"    - ``{item[1]}``: {item[2]}")
        elif line.startswith("        "):
            items.append(f"      {line.strip()}")
        else:
            items.append(f"    - {line.strip()}" if line.strip() else line)
    return [*lines[:start], "    By name", "", *items, *lines[end:]]


def _options(dataclass: type) -> list[str]:
    """The options that a dataclass adds, each with its default and the help that the command line prints."""
    own = vars(dataclass).get("__annotations__", {})
    lines = []
    for field in dataclasses.fields(dataclass):
        if field.name in own and field.metadata.get("help"):
            lines += [f"``{field.name}`` (default: ``{_default(field)}``)"]
            lines += [f"    {_as_text(field.metadata['help'])}", ""]
    return ["", ".. rubric:: Options", "", *lines] if lines else []


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)


def _as_text(help_text: str) -> str:
    """Help has no markup but code in backticks."""
    return re.sub(r"([\\*|_])", r"\\\1", help_text) if "`" not in help_text else help_text.replace("*", "\\*")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", prepare, priority=BEFORE_NAPOLEON)
