"""Conversations as a chat template writes them, and which part of them the assistant says."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.meta
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .answer_end import end_text
from .records import Message
from .typed_tokens import MODE_COLUMN, check_mode, find_tokens, mark_tokens, special_tokens, template_tokens

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

# What a message says besides its content; a template that never reads it would leave it out without a word.
SPOKEN_FIELDS = ("tool_calls", "function_call", "reasoning_content", "thinking")


# Arguments of apply_chat_template that are no variables of the template; `documents` is one.
_OWN_ARGUMENTS = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"documents"}


ENCODING_COLUMNS = ("tools", "chat_template_kwargs", MODE_COLUMN)


@dataclass(frozen=True)
class EncodingColumns:
    """Columns of a record that say how its texts become tokens.

    Attributes:
        tools: Descriptions of the functions that may be called, as a list or as JSON text.
        chat_template_kwargs: Further variables of the template, such as `enable_thinking`.
        special_tokens_in_text: One of `typed_tokens.MODES`.
    """

    tools: list[dict[str, Any]] | str | None = None
    chat_template_kwargs: Mapping[str, Any] | str | None = None
    special_tokens_in_text: str = "split"

    def __post_init__(self) -> None:
        check_mode(self.special_tokens_in_text, f"'{MODE_COLUMN}'")

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "EncodingColumns":
        """Takes them from a record; what it lacks, or has None in, is as if nothing had been said."""
        return cls(**{name: record[name] for name in ENCODING_COLUMNS if record.get(name) is not None})

    @classmethod
    def of_rows(cls, columns: Mapping[str, Sequence[Any]], num_rows: int) -> list["EncodingColumns"]:
        """Takes them from columns of N values each; they may be missing."""
        present = [name for name in ENCODING_COLUMNS if name in columns]
        return [cls.of({name: columns[name][row] for name in present}) for row in range(num_rows)]


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered completion; `is_learnt` says whether the assistant says it."""

    text: str
    is_learnt: bool


@dataclass
class Conversation:
    """A prompt and maybe a completion, ready for the chat template.

    Args:
        tokenizer: Has the template.
        prompt: The messages before the completion.
        completion: The messages to learn or to score, which begin and end with the assistant's.
        columns: What else the template gets. Unless special tokens in texts are kept, they get marks; see
            `typed_tokens`.

    Raises:
        ValueError: The tokenizer has no template, or a column is of no use to it.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: list[Message]
    completion: list[Message]
    columns: EncodingColumns
    _messages: list[dict[str, Any]] = field(init=False)
    _variables: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise ValueError(
                "the tokenizer must have a chat template to encode messages; it has none. Set "
                "tokenizer.chat_template, or give prompts and completions as text."
            )
        messages = [*self.prompt, *self.completion]
        tools, arguments = _read_columns(self.columns)
        _refuse_what_the_template_ignores(self._template(tools), messages, tools, arguments)
        if self.columns.special_tokens_in_text != "keep":
            by_template, special = template_tokens(self.tokenizer), special_tokens(self.tokenizer)
            messages = [
                self._mark(message, special if message["role"] == "assistant" else by_template) for message in messages
            ]
            tools, arguments = mark_tokens(tools, by_template), mark_tokens(arguments, by_template)
        self._messages = messages
        self._variables = {"tools": tools, **arguments}

    def render_prompt(self) -> str:
        """The prompt with the opening of the assistant's turn."""
        return self._render(len(self.prompt), add_generation_prompt=True)

    def render_completion(self) -> tuple[str, list[Part]]:
        """The prompt as `render_prompt` gives it, and what the template writes after it, up to its last end of turn.

        The assistant's turns are what the template marks as generated; without marks, from the opening of a turn to
        its end, as the conversations that end there are written.

        Raises:
            ValueError: The template does not write the conversation turn by turn, or refuses it.
        """
        whole = self._render(len(self._messages), add_generation_prompt=False)
        before = self.render_prompt()
        _check_prefix(before, whole, "the prompt alone")
        spans = self._marked_spans(whole)
        if spans is None:
            spans = list(self._rendered_spans(whole, len(before)))
        end = len(before) + len(self._without_space_after_end(whole[len(before) :]))
        return before, list(_parts(whole, len(before), end, self._extend_to_ends(whole, spans)))

    def render_prompt_parts(self) -> list[Part]:
        """The stretches of `render_prompt`, with the earlier turns of the assistant told apart."""
        text = self.render_prompt()
        turns = [index for index, message in enumerate(self.prompt) if message["role"] == "assistant"]
        spans = self._marked_spans(text, len(self.prompt), add_generation_prompt=True)
        if spans is None:
            spans = [self._turn_span(index, text) for index in turns]
        return list(_parts(text, 0, len(text), self._extend_to_ends(text, spans)))

    def _mark(self, message: Message, tokens: tuple[str, ...]) -> dict[str, Any]:
        message = dict(message)
        if message["role"] == "assistant" and isinstance(message.get("content"), str):
            message["content"] = without_ends(message["content"], self.tokenizer.eos_token)
        return {name: value if name == "role" else mark_tokens(value, tokens) for name, value in message.items()}

    def _template(self, tools: list[dict[str, Any]] | None) -> str:
        return self.tokenizer.get_chat_template(None, tools)

    def _render(self, num_messages: int, add_generation_prompt: bool) -> str:
        messages = self._messages[:num_messages]
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self._variables
            )
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
            raise self._refusal(num_messages, error) from error

    def _refusal(self, num_messages: int, error: Exception) -> ValueError:
        """Names the first message with which the template fails."""
        first = num_messages - 1
        for index in range(num_messages):
            try:
                self.tokenizer.apply_chat_template(self._messages[: index + 1], tokenize=False, **self._variables)
            except Exception:  # Whatever a template raises: only the place is looked for.
                first = index
                break
        in_prompt = first < len(self.prompt)
        name = f"prompt[{first}]" if in_prompt else f"answer[{first - len(self.prompt)}]"
        return ValueError(
            f"the chat template refuses '{name}', a message of the role {self._messages[first]['role']!r}: "
            f"{' '.join(str(error).split()) or type(error).__name__}. Give the tokenizer a template that can write it, "
            "or remove the message or what the template cannot hold."
        )

    def _marked_spans(
        self, text: str, num_messages: int | None = None, add_generation_prompt: bool = False
    ) -> list[tuple[int, int]] | None:
        """Places of what the template marks as generated; None if it has no marks."""
        template = self._template(self._variables["tools"])
        if not GENERATION_MARK.search(template):
            return None
        variables = {**self.tokenizer.special_tokens_map, **self._variables}
        messages = self._messages[:num_messages]
        # As apply_chat_template hands them over.
        messages = [{name: value for name, value in row.items() if value is not None} for row in messages]
        rendered, spans = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        if rendered[0] != text:
            raise ValueError(
                "the tokenizer must write its chat template as it is for the generation marks to count; its own "
                "apply_chat_template writes something else. Remove the marks from the template."
            )
        return spans[0]

    def _rendered_spans(self, whole: str, start: int) -> Iterator[tuple[int, int]]:
        last = len(self._messages) - 1
        for index in range(len(self.prompt), last + 1):
            if self._messages[index]["role"] != "assistant":
                continue
            if index == len(self.prompt) == last:
                yield start, len(whole)
            else:
                yield self._turn_span(index, whole)

    def _turn_span(self, index: int, whole: str) -> tuple[int, int]:
        """Where a turn of the assistant stands, by the conversations that end before and behind it."""
        opened = self._render(index, add_generation_prompt=True)
        _check_prefix(opened, whole, f"the first {index} messages with the opening of a turn")
        if index == len(self._messages) - 1:
            return len(opened), len(whole)
        closed = self._render(index + 1, add_generation_prompt=False)
        _check_prefix(closed, whole, f"the first {index + 1} messages")
        said = self._without_space_after_end(closed[len(opened) :])
        return len(opened), len(opened) + len(said)

    def _without_space_after_end(self, text: str) -> str:
        """Leaves out the white space behind an end of turn: generation stops before it."""
        stripped, end = text.rstrip(), end_text(self.tokenizer)
        return stripped if end and stripped.endswith(end) else text

    def _extend_to_ends(self, text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Counts an end of sequence right behind a turn as the assistant's: it has to learn to stop."""
        end = end_text(self.tokenizer)
        return [
            (start, stop + len(end) if end and text.startswith(end, stop) else stop)
            for start, stop in spans
        ]  # fmt: skip


def _parts(text: str, start: int, end: int, spans: list[tuple[int, int]]) -> Iterator[Part]:
    """The stretches of text[start:end] inside and outside of the spans, in order."""
    position = start
    for first, stop in sorted(spans):
        first, stop = max(first, position), min(stop, end)
        if first >= stop:
            continue
        if first > position:
            yield Part(text[position:first], is_learnt=False)
        yield Part(text[first:stop], is_learnt=True)
        position = stop
    if position < end:
        yield Part(text[position:end], is_learnt=False)


def _check_prefix(beginning: str, whole: str, what: str) -> None:
    if whole.startswith(beginning):
        return
    pairs = enumerate(zip(beginning, whole, strict=False))
    common = next((index for index, (one, other) in pairs if one != other), min(len(beginning), len(whole)))
    raise ValueError(
        "the chat template must write a conversation turn by turn, each as the continuation of what is before it; "
        f"after {beginning[max(0, common - 20) : common]!r} it writes {beginning[common : common + 20]!r} for {what} "
        f"and {whole[common : common + 20]!r} for the whole. Use another chat template, split the conversation into "
        "records of one answer each, or use text records."
    )


def _read_columns(columns: EncodingColumns) -> tuple[list[dict[str, Any]] | None, dict[str, Any]]:
    tools, arguments = columns.tools, columns.chat_template_kwargs
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"'tools' must be a list of objects, or such a list as JSON text; {error}.") from error
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise ValueError(f"'tools' must be a list of objects that describe functions; got {tools!r}.")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise ValueError(f"'chat_template_kwargs' must be an object, or one as JSON text; {error}.") from error
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ValueError(f"'chat_template_kwargs' must be an object; got {arguments!r}.")
    own = sorted(_OWN_ARGUMENTS & set(arguments or ()))
    if own:
        raise ValueError(f"'chat_template_kwargs' must hold variables of the chat template; got {', '.join(own)}.")
    # A column of records has a value in each row, so no tools are an empty list or None. A key that is None in a row
    # is one that other rows have.
    return list(tools) if tools else None, {name: item for name, item in (arguments or {}).items() if item is not None}


def _refuse_what_the_template_ignores(
    template: str,
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    arguments: dict[str, Any],
) -> None:
    unread = [f"chat_template_kwargs.{name}" for name in arguments if name not in _variables_of(template)]
    unread += ["tools"] if tools and "tools" not in _variables_of(template) else []
    unread += [
        f"{name} of a message"
        for name in SPOKEN_FIELDS
        if name not in template and any(message.get(name) for message in messages)
    ]
    if "reasoning_content" in template or "thinking" in template:
        # transformers hands reasoning over under both names.
        unread = [name for name in unread if not name.startswith(("reasoning_content", "thinking"))]
    if unread:
        raise ValueError(
            f"the chat template does not read {', '.join(unread)}, so that would be lost. Give the tokenizer a "
            "template that writes it, or remove it from the records."
        )


@lru_cache(maxsize=32)
def _variables_of(template: str) -> frozenset[str]:
    """Names that a template takes from outside."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        source = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
        return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(source)))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is no valid Jinja; {error} (line {error.lineno}).") from error


def typed_in_messages(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[str]:
    """Special tokens that the messages spell, without ends of sequence at the end of the assistant's."""
    by_template, special = template_tokens(tokenizer), special_tokens(tokenizer)
    found = []
    for message in messages:
        is_assistant = message["role"] == "assistant"
        for name, value in message.items():
            if is_assistant and name == "content" and isinstance(value, str):
                value = without_ends(value, tokenizer.eos_token)
            found += [] if name == "role" else find_tokens(value, special if is_assistant else by_template)
    return found


def without_ends(text: str, end: str | None) -> str:
    """A text without the ends of sequence that stand at its end: an answer's own may be written out."""
    while end and text.endswith(end):
        text = text[: -len(end)]
    return text
