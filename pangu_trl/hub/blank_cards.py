"""Model cards that a library wrote and nobody filled in: PEFT's form, and TRL's, whose base model is "None"."""

import re
from importlib.resources import files
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

# The forms that TRL fills in, within its package. A version without one of them has no cards of that sort.
TRL_FORMS = ("lm_model_card.md", "rm_model_card.md")
# What PEFT adds below the form of the Hub; and the ends of blocks, which are no words.
_OF_PEFT = r"### Framework versions|- PEFT .*|```"
_CITATION = re.compile(r"^```bibtex\n.*?^```", flags=re.MULTILINE | re.DOTALL)
# What the two fill into the metadata.
_METADATA = {"base_model", "datasets", "library_name", "licence", "model_name", "pipeline_tag", "tags"}
_NO_BASE = re.compile(r"fine-tuned version of \[?None\b")


def is_blank(card: str) -> bool:
    """Whether a card holds nothing but the lines of a form of PEFT or TRL, whatever these filled in.

    Raises:
        ValueError: Its metadata are no YAML.
    """
    if metadata(card).keys() - _METADATA:
        return False
    text = ModelCard(card, ignore_metadata_errors=True).text
    lines = [line.strip() for line in _CITATION.sub("", text).splitlines()]
    form = re.compile("|".join([_OF_PEFT, *_lines_of_forms()]))
    return all(form.fullmatch(line) for line in lines if line)


def metadata(card: str) -> dict[str, Any]:
    """The metadata at the head of a card.

    Raises:
        ValueError: They are no YAML.
    """
    try:
        return ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    except YAMLError as error:
        raise ValueError(f"the metadata between the lines '---' are no YAML; {error}") from error


def names_no_base(card: str) -> bool:
    """Whether a card still says that the model is "a fine-tuned version of None"."""
    return _NO_BASE.search(card) is not None


def _lines_of_forms() -> list[str]:
    """A pattern for every line of every form."""
    lines = [re.escape(line.strip()) for line in ModelCard.from_template(ModelCardData()).text.splitlines()]
    for name in TRL_FORMS:
        form = files("trl") / "templates" / name
        if form.is_file():
            text = _CITATION.sub("", form.read_text("utf-8").partition("\n---\n")[2])
            lines += [_pattern(line.strip()) for line in text.splitlines()]
    # A line that is a variable alone would match every other.
    return [line for line in lines if re.search(r"\w", line.replace(".*?", ""))]


def _pattern(line: str) -> str:
    """The lines that a line of a template can become."""
    optional = line.count("{% if") == line.count("{% endif")
    parts = []
    for part in re.split(r"(\{\{.*?\}\}|\{%.*?%\})", line):
        if part.startswith("{{"):
            parts.append(".*?")
        elif part.startswith("{%"):
            parts.append("" if not optional else "(?:" if " if " in part else ")?" if "endif" in part else "")
        else:
            parts.append(re.escape(part))
    return "".join(parts)
