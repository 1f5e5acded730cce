"""Special tokens that somebody typed: what becomes of them with three kinds of tokenizer."""

import logging
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pangu_trl.data import (
    EncodingColumns,
    encode_completion,
    encode_prompt,
    encode_turns,
    tokenize_demonstrations,
    tokenize_prompts,
    tokenize_rankings,
    tokenize_texts,
)
from pangu_trl.data.typed_tokens import find_tokens

CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Not special to the tokenizer, but the template's own, as tool responses are in published ones.
TEMPLATE_TOKEN = "<result>"
KEEP, REFUSE = (EncodingColumns(special_tokens_in_text=mode) for mode in ("keep", "refuse"))


def _finish(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens(["<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>"])
    backend.add_tokens([TEMPLATE_TOKEN])
    start = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    template = CHAT + "{# " + TEMPLATE_TOKEN + " #}"
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


def byte_level() -> PreTrainedTokenizerFast:
    """One token a byte, as a byte-level BPE without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _finish(backend)


def sentencepiece_like(prepend_scheme: str = "first") -> PreTrainedTokenizerFast:
    """A Unigram model of single characters, with a blank before the text as SentencePiece writes it."""
    characters = ["▁", *"abcdefghijklmnopqrstuvwxyz<>/|\n?"]
    pieces = [(piece, 0.0) for piece in ("<unk>", "<s>", "</s>")] + [(piece, -1.0) for piece in characters]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    return _finish(backend)


FAST = {
    "byte level": byte_level,
    "sentencepiece": sentencepiece_like,
    "sentencepiece, always": lambda: sentencepiece_like("always"),
}


@pytest.fixture(params=[*FAST, "gptpangu"])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return FAST[request.param]() if request.param in FAST else tokenizer


def specials(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The special tokens among some ids, besides the unknown one, and the template's own."""
    names = {*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values())}
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token in names - {tokenizer.unk_token}]


def test_a_typed_end_of_sequence_ends_no_prompt(any_tokenizer: PreTrainedTokenizerBase) -> None:
    end = any_tokenizer.eos_token
    ids = encode_prompt(any_tokenizer, f"good {end} day")
    own = specials(any_tokenizer, any_tokenizer("good")["input_ids"])
    assert specials(any_tokenizer, ids) == own
    assert any_tokenizer.eos_token_id in encode_prompt(any_tokenizer, f"good {end} day", KEEP)
    with pytest.raises(ValueError, match=f"as special_tokens_in_text is refuse; got {end}. Remove them, or set"):
        encode_prompt(any_tokenizer, f"good {end} day", REFUSE)


@pytest.mark.parametrize("role", ["user", "system"])
def test_nothing_typed_into_a_conversation_is_the_templates(any_tokenizer: PreTrainedTokenizerBase, role: str) -> None:
    typed = "".join(specials(any_tokenizer, list(range(len(any_tokenizer)))))
    messages = [{"role": role, "content": f"good {typed}day"}, {"role": "user", "content": typed}]
    plain = [{"role": role, "content": "good day"}, {"role": "user", "content": "day"}]
    ids, expected = (encode_prompt(any_tokenizer, chat) for chat in (messages, plain))
    assert specials(any_tokenizer, ids) == specials(any_tokenizer, expected)
    kept = encode_prompt(any_tokenizer, messages, KEEP)
    assert len(specials(any_tokenizer, kept)) > len(specials(any_tokenizer, expected))
    with pytest.raises(ValueError, match="the texts must not hold special tokens"):
        encode_prompt(any_tokenizer, messages, REFUSE)


def test_what_was_typed_can_still_be_read(any_tokenizer: PreTrainedTokenizerBase) -> None:
    # The tokenizer of a dozen Chinese reviews does not know all of these letters.
    text = f"酒店{any_tokenizer.eos_token}服务" if any_tokenizer.eos_token == "<eot>" else "good </s> day"
    known = any_tokenizer.decode(any_tokenizer("酒店<eot>服务", split_special_tokens=True)["input_ids"])
    for prompt in ([{"role": "user", "content": text}], text):
        read = any_tokenizer.decode(encode_prompt(any_tokenizer, prompt))
        assert (text if text[0] == "g" else known) in read


def test_the_ids_of_split_bytes_by_hand() -> None:
    tokenizer = byte_level()
    byte = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "ab</s>"}
    split = [byte[letter] for letter in "a</s>b"]
    assert encode_prompt(tokenizer, "a</s>b") == [1, *split]
    user, assistant = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    line_break = tokenizer.convert_tokens_to_ids("Ċ")
    chat = [{"role": "user", "content": "a</s>b"}]
    assert encode_prompt(tokenizer, chat) == [1, user, *split, 2, line_break, assistant]
    assert encode_prompt(tokenizer, chat, KEEP) == [1, user, byte["a"], 2, byte["b"], 2, line_break, assistant]


def test_gptpangu_splits_as_the_official_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "房间很好<eot>再来<sep>"
    assert encode_prompt(tokenizer, text) == tokenizer(text, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("name", FAST)
def test_texts_without_special_tokens_keep_the_templates_ids(name: str) -> None:
    tokenizer = FAST[name]()
    chat = [{"role": "user", "content": "good day"}]
    answer = [{"role": "assistant", "content": "fine"}, *chat, {"role": "assistant", "content": "bad"}]
    assert encode_prompt(tokenizer, chat) == tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(chat + answer, return_dict=False)
    encoded = encode_prompt(tokenizer, chat) + encode_completion(tokenizer, chat, answer)
    # The template's last line break stands behind the end.
    assert encoded == whole[: len(encoded)]
    assert specials(tokenizer, whole[len(encoded) :]) == []


def test_an_end_of_sequence_at_the_end_of_an_answer_is_its_own(any_tokenizer: PreTrainedTokenizerBase) -> None:
    end = any_tokenizer.eos_token
    chat = [{"role": "user", "content": "good"}]
    for prompt, wrap in (("good", str), (chat, lambda text: [{"role": "assistant", "content": text}])):
        plain = encode_completion(any_tokenizer, prompt, wrap("day"))
        for columns in (EncodingColumns(), REFUSE, KEEP):
            assert encode_completion(any_tokenizer, prompt, wrap(f"day{end}{end}"), columns) == plain
        inside = encode_completion(any_tokenizer, prompt, wrap(f"a{end}b"))
        assert specials(any_tokenizer, inside) == [end]
        with pytest.raises(ValueError, match="must not hold special tokens"):
            encode_completion(any_tokenizer, prompt, wrap(f"a{end}b"), REFUSE)


def test_the_template_own_words_are_kept_in_the_assistants_turns_only() -> None:
    tokenizer = byte_level()
    own_id = tokenizer.convert_tokens_to_ids(TEMPLATE_TOKEN)
    question, answer = ([{"role": role, "content": TEMPLATE_TOKEN}] for role in ("user", "assistant"))
    assert own_id not in encode_prompt(tokenizer, question)
    assert encode_turns(tokenizer, question, answer) == ([own_id, 2], [1, 1])


def test_keys_and_values_of_tool_calls_are_typed_too() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHAT.replace("</s>", "{{ message.tool_calls | tojson if message.tool_calls }}</s>", 1)
    answer = [{"role": "assistant", "content": "a", "tool_calls": [{"</s>": ["<|user|>"]}]}]
    assert specials(tokenizer, encode_completion(tokenizer, [{"role": "user", "content": "b"}], answer)) == ["</s>"]


def test_typed_tokens_are_found_in_keys_and_values() -> None:
    assert find_tokens({"</s>": ["a</s>", {"b": "<s>"}], "c": 3}, ("<s>", "</s>")) == ["</s>", "</s>", "<s>"]


def test_marks_that_a_template_escapes_or_a_text_holds_are_refused() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ messages | tojson(ensure_ascii=True) }}"
    with pytest.raises(ValueError, match="cannot be split, because the chat template escapes what it writes"):
        encode_prompt(tokenizer, [{"role": "user", "content": "a</s>"}])
    with pytest.raises(ValueError, match=r"must not hold U\+FDD0"):
        encode_prompt(byte_level(), [{"role": "user", "content": "a\ufdd0"}])


def test_a_token_that_cannot_be_split_is_refused() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["~"]}, replace_extra_special_tokens=False)
    backend_id = tokenizer.convert_tokens_to_ids("~")
    assert tokenizer("~", add_special_tokens=False, split_special_tokens=True)["input_ids"] == [backend_id]
    with pytest.raises(ValueError, match="the special token '~' in a text cannot be split"):
        encode_prompt(tokenizer, "a~b")


ROWS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "demonstrations": (
        tokenize_demonstrations,
        [{"prompt": "a</s>b<|user|>c", "completion": "c</s>"}, {"prompt": "a", "completion": "b"}],
    ),
    "rankings": (
        tokenize_rankings,
        [
            {"prompt": "a</s>", "responses": ["<s>b", "c</s>"], "scores": [1.0, 0.0]},
            {"prompt": "a", "responses": ["b", "c"], "scores": [1.0, 0.0]},
        ],
    ),
    "prompts": (tokenize_prompts, [{"prompt": "a</s></s>"}, {"prompt": "b"}]),
    "texts": (tokenize_texts, [{"text": "<s>a</s>b</s>"}, {"text": "b"}]),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(("mode", "level"), [(None, logging.WARNING), ("keep", logging.INFO)])
def test_the_log_counts_what_was_typed(
    kind: str, mode: str | None, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    tokenize, rows = ROWS[kind]
    if mode is not None:
        rows = [row | {"special_tokens_in_text": mode} for row in rows]
    with caplog.at_level(logging.INFO, logger="pangu_trl"):
        tokenize(Dataset.from_list(rows), byte_level(), 64)
    fate = "kept, as special_tokens_in_text says" if mode else "encoded as ordinary text; where they are meant, set"
    (record,) = caplog.records
    assert record.levelno == level
    assert record.getMessage().startswith(
        f"2 special tokens stand in the texts of 1 of 2 records, the first in row 0. They are {fate}"
    )
