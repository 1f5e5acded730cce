"""What screen readers and keyboards need and neither Sphinx nor its theme writes."""

from sphinx.application import Sphinx

AFTER_THE_THEME = 900
_CHANGES = (
    # A heading has a level.
    ('role="heading"', 'role="heading" aria-level="2"'),
    # What scrolls can be reached by the keyboard.
    ('<div class="table-wrapper ', '<div tabindex="0" class="table-wrapper '),
)
# Where the theme keeps the parts of a page.
_PARTS = ("body", "furo_navigation_tree")


def make_accessible(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    for part in _PARTS:
        for found, written in _CHANGES:
            if context.get(part):
                context[part] = context[part].replace(found, written)


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", make_accessible, priority=AFTER_THE_THEME)
