"""What Python functions that score answers get. Without imports, so that help texts need not wait for libraries."""

FORMS = ("record", "text")
FORM_HELP = (
    "what a Python function gets as prompts and answers. record: what the records hold, texts or messages; text: "
    "always texts, of messages their contents, a line each"
)
