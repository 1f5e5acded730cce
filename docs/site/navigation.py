"""Every page is in the navigation: those that no list of the front page names go where it says `% the rest`."""

import posixpath
import re
from pathlib import PurePosixPath

from sphinx.application import Sphinx

_LISTS = re.compile(r"^```\{toctree\}\n(.*?)^```", flags=re.M | re.S)
# Stands for the pages of a folder, or for all, that no list names.
_THE_REST = re.compile(r"^% the rest(?: of (\S+))?$", flags=re.M)


def named_pages(source: str, front: str) -> set[str]:
    """Names of the pages that a front page's lists name, relative to the source folder."""
    entries = [line for block in _LISTS.findall(source) for line in block.splitlines() if line and line[0] not in ":%"]
    return {_absolute(re.sub(r"^.*<(.*)>$", r"\1", entry), front) for entry in entries}


def _absolute(entry: str, front: str) -> str:
    if entry.startswith("/"):
        return entry[1:]
    return posixpath.normpath(PurePosixPath(front).parent / entry)


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname != app.config.root_doc:
        return
    missing = app.env.found_docs - named_pages(source[0], docname) - {docname}

    def entries(place: re.Match) -> str:
        pages = {page for page in missing if page.startswith(place[1] or "")}
        missing.difference_update(pages)
        return "\n".join(f"/{page}" for page in sorted(pages))

    source[0] = _THE_REST.sub(entries, source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill_in)
