"""The chat template: ids and assistant masks."""

from pathlib import Path

import jinja2
import pytest
from official_tokenizer import COMMA, EOT, GOODBYE, HELLO, PAD, SEP, TOMORROW

from pangu_trl import GPTPanguTokenizer


@pytest.fixture
def tokenizer(official_vocabulary: Path) -> GPTPanguTokenizer:
    return GPTPanguTokenizer(official_vocabulary)


CHAT = [
    {"role": "system", "content": "你好"},
    {"role": "user", "content": "再见"},
    {"role": "assistant", "content": "\u3000\u3000明天"},
    {"role": "user", "content": "你好<eot>"},
    {"role": "assistant", "content": "再见"},
]


def test_chat_template_ids_and_assistant_mask(tokenizer: GPTPanguTokenizer, piece_ids: dict[str, int]) -> None:
    newline = [piece_ids["▁"], piece_ids["▃"]]
    first = [HELLO, *newline, GOODBYE, SEP]
    prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_dict=False)
    assert prompt == first
    encoding = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    assert set(encoding) == {"input_ids", "attention_mask", "assistant_masks"}
    assert encoding["input_ids"] == [*first, TOMORROW, EOT, HELLO, EOT, SEP, GOODBYE, EOT]
    assert encoding["assistant_masks"] == [0] * 5 + [1, 1] + [0] * 3 + [1, 1]


def test_assistant_mask_follows_padding(tokenizer: GPTPanguTokenizer) -> None:
    tokenizer.padding_side = "left"
    encoding = tokenizer.apply_chat_template(
        [CHAT[1:3], [*CHAT[3:4], {"role": "assistant", "content": "再见，明天"}]],
        return_assistant_tokens_mask=True, return_dict=True, padding=True, return_tensors="pt",
    )  # fmt: skip
    assert encoding["input_ids"].tolist() == [
        [PAD, PAD, PAD, GOODBYE, SEP, TOMORROW, EOT],
        [HELLO, EOT, SEP, GOODBYE, COMMA, TOMORROW, EOT],
    ]
    assert encoding["assistant_masks"].tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]


def test_sanitized_chat_lets_no_user_token_through(tokenizer: GPTPanguTokenizer) -> None:
    ids = tokenizer.apply_chat_template(CHAT, sanitize_control_tokens=True, return_dict=False)
    assert ids.count(EOT) == 2


def test_chat_template_refuses_unknown_roles_and_yields_to_a_given_one(
    tokenizer: GPTPanguTokenizer, official_vocabulary: Path
) -> None:
    with pytest.raises(jinja2.TemplateError, match="must be system, user or assistant, got 'tool'"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "你好"}])
    assert GPTPanguTokenizer(official_vocabulary, chat_template="x").chat_template == "x"


def test_assistant_mask_of_text_cut_on_the_left_is_refused(tokenizer: GPTPanguTokenizer) -> None:
    options = {"return_assistant_tokens_mask": True, "return_dict": True, "truncation": True, "max_length": 8}
    assert tokenizer.apply_chat_template(CHAT, **options)["assistant_masks"] == [0] * 5 + [1, 1, 0]
    tokenizer.truncation_side = "left"
    with pytest.raises(NotImplementedError, match="encode without truncation"):
        tokenizer.apply_chat_template(CHAT, **options)


def test_assistant_mask_and_offsets_together(tokenizer: GPTPanguTokenizer) -> None:
    encoding = tokenizer.apply_chat_template(
        CHAT[1:3], return_assistant_tokens_mask=True, tokenizer_kwargs={"return_offsets_mapping": True}
    )
    assert encoding["assistant_masks"] == [0, 0, 1, 1]
    # Behind "再见<sep>" stand two ideographic spaces that no token holds.
    assert encoding["offset_mapping"] == [(0, 2), (2, 7), (9, 11), (11, 16)]
