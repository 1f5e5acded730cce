"""What a page leaves out on the site: links between languages, which the site has itself, and links to folders."""

import re
from pathlib import Path

from sphinx.application import Sphinx

_LANGUAGE_LINE = re.compile(r"^(?:English|\[English\]\([^)]*\)) \| (?:中文|\[中文\]\([^)]*\))\n", flags=re.M)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#:]+)\)")


def for_the_site(text: str, folder: Path) -> str:
    """The source of a page, whose links are relative to a folder, without what leads nowhere on a site."""

    def without_folder(link: re.Match) -> str:
        return f"`{link[1]}`" if (folder / link[2]).is_dir() else link[0]

    return _LINK.sub(without_folder, _LANGUAGE_LINE.sub("", text))


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = for_the_site(source[0], (app.srcdir / docname).parent)


def setup(app: Sphinx) -> None:
    app.connect("source-read", prepare)
