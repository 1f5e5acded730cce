"""Settings of the site: `make docs` builds it twice, once for each language of its words, from the pages as they are.

The source folder is the repository, so that a link of a page leads to the same file here as in a clone. The English
site leaves the Chinese pages out; the Chinese one holds all, because its pages link to English ones for details.
"""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(ROOT))

project = "pangu_trl"
author = "the authors of pangu_trl"
release = version = installed_version("pangu_trl")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
extensions += ["accessible", "docstrings", "navigation", "other_language", "page_sources", "search_in_two_languages"]

include_patterns = ["README.md", "README_zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**.md", "data_cards/*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "tests", "**/__pycache__"]
# `tags` comes from Sphinx, with what `--tag` named.
chinese = tags.has("zh")  # noqa: F821
language = "zh_CN" if chinese else "en"
root_doc = "docs/zh/index" if chinese else "docs/index"
exclude_patterns += ["docs/index.md"] if chinese else ["README_zh.md", "docs/zh"]

myst_heading_anchors = 4
myst_links_external_new_tab = False
# A page begins with its own first heading, whatever level the words above it have.
suppress_warnings = ["myst.header"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
# What transformers says of its methods is on its own pages.
autodoc_inherit_docstrings = False
autodoc_class_signature = "separated"
napoleon_numpy_docstring = False
# Docstrings write code in single backticks, as Markdown does.
default_role = "code"

# Indented blocks are commands and records.
highlight_language = "none"

html_theme = "furo"
html_title = f"pangu_trl {release}"
html_copy_source = False
html_show_sphinx = False
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "other_language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
