"""Where an answer ends: the one rule for supervised fine-tuning, reward model, PPO and every command.

A text ends with the tokenizer's end of sequence. Messages end with the token that the chat template writes behind the
assistant's turn, which may be another one (Gemma's `<end_of_turn>`, Phi's `<|end|>`, ChatML on a base tokenizer). What
a template writes behind that token belongs to no answer, since generation stops before it.
"""

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import jinja2

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

# What bytes that are no whole character decode to.
HALF_CHARACTER = "\ufffd"

# Stands in no template.
_MARK = "a5c0b7"


# What `turn_end` found for a tokenizer, and the template and special tokens that it found it with.
_found: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, int | None]]" = WeakKeyDictionary()


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token that the chat template writes behind an assistant's turn; None if it writes no special token there."""
    if not tokenizer.chat_template:
        return None
    state = (str(tokenizer.chat_template), str(tokenizer.special_tokens_map), len(tokenizer))
    if tokenizer not in _found or _found[tokenizer][0] != state:
        _found[tokenizer] = (state, _find_turn_end(tokenizer))
    return _found[tokenizer][1]


def _find_turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    turns = [{"role": "user", "content": "prompt"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except jinja2.TemplateError:
        # It takes no plain conversation; encoding messages says why.
        return None
    _, mark, behind = text.rpartition(_MARK)
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if mark and behind else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    first = next((index for index, token in enumerate(ids) if token in special), None)
    if first is None or tokenizer.decode(ids[:first]).strip():
        return None
    return ids[first]


def end_text(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The end of a turn as the chat template writes it."""
    token = turn_end(tokenizer)
    return tokenizer.eos_token if token is None else tokenizer.convert_ids_to_tokens(token)


def answer_end(tokenizer: "PreTrainedTokenizerBase", is_chat: bool) -> int:
    """The token that ends every answer to a prompt of text, or of messages.

    Raises:
        ValueError: The tokenizer has no end of sequence, and no chat template that ends the turn.
    """
    token = turn_end(tokenizer) if is_chat else None
    if token is None:
        token = tokenizer.eos_token_id
    if token is None:
        raise ValueError(
            "the tokenizer must have an eos_token, which ends every completion; it has none. Set it to the token that "
            "the model ends its answers with, e.g. tokenizer.eos_token = '</s>', and save the tokenizer with the model."
        )
    return token


def stop_tokens(tokenizer: "PreTrainedTokenizerBase", generation_config: "GenerationConfig | None" = None) -> list[int]:
    """Tokens at which generation stops: the ends of texts and of messages, and those of a model's generation config."""
    configured = None if generation_config is None else generation_config.eos_token_id
    configured = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    return sorted(
        {*configured, *(token for token in (tokenizer.eos_token_id, turn_end(tokenizer)) if token is not None)}
    )


def note_stop_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Has a language model's generation config name all tokens that end its answers.

    TRL's trainers, and whoever generates with the saved model, stop at those.
    """
    generation_config = getattr(model, "generation_config", None)
    if generation_config is not None:
        stops = stop_tokens(tokenizer, generation_config)
        if stops not in ([], [generation_config.eos_token_id], generation_config.eos_token_id):
            generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops


def sampled_text(tokenizer: "PreTrainedTokenizerBase", ids: list[int], ends: list[int]) -> tuple[str, bool]:
    """The text of a sampled answer up to its first end, and whether it has one.

    The end is left out by its id: not every tokenizer counts the end of a turn among its special tokens. So is half a
    character, of which an answer without an end lacks the other half.
    """
    end = next((index for index, token in enumerate(ids) if token in ends), None)
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return (text.rstrip(HALF_CHARACTER), False) if end is None else (text, True)


def up_to_end(tokenizer: "PreTrainedTokenizerBase", ids: list[int], end: int) -> list[int]:
    """The tokens of an answer without its end, of which it may have several or none.

    With an end, nothing but white space and special tokens may stand behind it, as templates write it.
    """
    last = max((index for index, token in enumerate(ids) if token == end), default=None)
    if last is None or (behind := ids[last + 1 :]) and tokenizer.decode(behind, skip_special_tokens=True).strip():
        return ids
    while last >= 0 and ids[last] == end:
        last -= 1
    return ids[: last + 1]
