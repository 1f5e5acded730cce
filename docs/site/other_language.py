"""The way from a page to the same page in the other language, where there is one."""

from pathlib import PurePosixPath

from sphinx.application import Sphinx


def in_other_language(page: str, chinese_site: bool) -> str:
    """The name of a page's counterpart: docs/zh/ppo of docs/ppo, README_zh of README, and back."""
    path = PurePosixPath(page)
    chinese_page = page == "README_zh" or path.parts[:2] == ("docs", "zh")
    if not chinese_site:
        return "README_zh" if page == "README" else str(path.parent / "zh" / path.name)
    if not chinese_page:
        return page
    return "README" if page == "README_zh" else str(PurePosixPath("docs", path.name))


def add_link(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Gives the template the address of the counterpart, or of the other site's first page."""
    chinese_site = app.tags.has("zh")
    other = in_other_language(pagename, chinese_site)
    front = "docs/index" if chinese_site else "docs/zh/index"
    known = doctree is not None and (app.srcdir / f"{other}.md").exists()
    up = "../" * len(PurePosixPath(pagename).parts)
    site = "en" if chinese_site else "zh"
    context["other_language"] = f"{up}{site}/{other if known else front}.html"


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", add_link)
