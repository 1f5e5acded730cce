"""Every page is in the navigation: those that no list of the front page names are added to its last list."""

import re
from pathlib import PurePosixPath

from sphinx.application import Sphinx

# The lists of the front page, and the line of the last one that stands for the rest.
_LISTS = re.compile(r"^```\{toctree\}\n(.*?)^```", flags=re.M | re.S)
THE_REST = "% pages that stand in no list above"


def named_pages(source: str, front: str) -> set[str]:
    """Names of the pages that a front page's lists name, relative to the source folder."""
    entries = [line for block in _LISTS.findall(source) for line in block.splitlines() if line and line[0] not in ":%"]
    return {_absolute(re.sub(r"^.*<(.*)>$", r"\1", entry), front) for entry in entries}


def _absolute(entry: str, front: str) -> str:
    if entry.startswith("/"):
        return entry[1:]
    return str(PurePosixPath(front).parent / entry)


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname != app.config.root_doc:
        return
    missing = sorted(app.env.found_docs - named_pages(source[0], docname) - {docname})
    source[0] = source[0].replace(THE_REST, "\n".join(f"/{page}" for page in missing))


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill_in)
