"""The templates of all pages, and how a page gets to its place."""

import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2


def render_template(name: str, **content: Any) -> str:
    """The text of a page; what is put into it is text, whatever it looks like."""
    return _environment().get_template(name).render(**content)


def write_whole(path: Path, text: str) -> None:
    """Writes a page whole or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, path)


@cache
def _environment() -> jinja2.Environment:
    def source(name: str) -> str:
        return files(__package__).joinpath(name).read_text("utf-8")

    return jinja2.Environment(loader=jinja2.FunctionLoader(source), autoescape=True, undefined=jinja2.StrictUndefined)
