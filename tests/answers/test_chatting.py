"""A talk: text is shown as it is certain, and a stopped or cut answer says so and leaves no half of anything."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from pangu_trl.answers.chatting import End, Talk, _Stream
from pangu_trl.answers.sampling import SamplingConfig, sample_answers

# Byte-level BPE writes the bytes of UTF-8 as these characters: 你 is E4 BD A0.
HALVES = ["ä", "½", "ł"]
TOKENS = ["</s>", "a", "b", "Ġ", *HALVES, "<end>"]
END, A, B, SPACE, E4, BD, A0, TURN_END = range(len(TOKENS))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; the end of a turn is no special token."""
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(TOKENS)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}</s>"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>", chat_template=template + "{% endif %}{% endfor %}"
    )


def one_token_model(token: int, n_positions: int = 32) -> GPT2LMHeadModel:
    """A model that says the same token after any text."""
    config = GPT2Config(
        vocab_size=len(TOKENS), n_positions=n_positions, n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.bias[0] = 1.0
        model.lm_head.weight[token, 0] = 100.0
    return model


def talk(tokenizer, token: int = A, max_new_tokens: int = 5, **options) -> Talk:
    return Talk(one_token_model(token, **options), tokenizer, SamplingConfig(max_new_tokens, temperature=0))


def stopping_after(num_parts: int):
    parts: list[str] = []

    def show(part: str) -> None:
        parts.append(part)
        if len(parts) == num_parts:
            raise KeyboardInterrupt

    return parts, show


def parts_of(tokenizer, ids: list[int]) -> list[str]:
    parts: list[str] = []
    stream = _Stream(tokenizer, [END, TURN_END], parts.append)
    stream.put(torch.tensor([[B, B]]))
    for token in ids:
        stream.put(torch.tensor([token]))
    stream.end()
    return parts


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([A, SPACE, B, END], "a b"),
        ([A, E4, BD, A0, B], "a你b"),
        ([A, E4, BD, A0, E4, BD], "a你"),
        ([E4], ""),
        # Its end is no special token, and belongs to no answer.
        ([A, TURN_END], "a"),
    ],
)
def test_text_is_shown_as_it_comes_and_never_half_a_character(tokenizer, ids, text):
    parts = parts_of(tokenizer, ids)
    assert "".join(parts) == text
    assert all(parts)


def test_the_first_word_is_shown_before_the_second_is_whole(tokenizer):
    assert parts_of(tokenizer, [A, A, SPACE, B])[0] == "a"


def test_half_a_character_is_cut_from_an_answer_that_did_not_end(tokenizer):
    config = SamplingConfig(max_new_tokens=1, temperature=0)
    ((answer,),) = sample_answers(one_token_model(E4), tokenizer, ["a"], 1, config, batch_size=1, seed=0)
    assert (answer.text, answer.finished) == ("", False)


def test_a_stopped_answer_keeps_what_came_and_the_talk_goes_on(tokenizer):
    conversation = talk(tokenizer)
    parts, show = stopping_after(2)
    text, end = conversation.answer("b", show, can_be_stopped=True)
    assert end == End.STOPPED
    # Three tokens came, of which the last was not yet certain.
    assert text == "".join(parts) == "aaa"
    said = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "aaa"}]
    assert conversation.messages == said
    assert conversation.answer("b", lambda part: None) == ("aaaaa", End.LONGEST)
    assert conversation.messages[:2] == said and len(conversation.messages) == 4


def test_an_answer_that_was_stopped_before_its_first_word_leaves_nothing(tokenizer, monkeypatch):
    conversation = talk(tokenizer)

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation.model, "generate", interrupted)
    assert conversation.answer("b", lambda part: None, can_be_stopped=True) == ("", End.STOPPED)
    assert conversation.messages == []
    with pytest.raises(KeyboardInterrupt):
        conversation.answer("b", lambda part: None)


def test_an_answer_says_why_it_ends(tokenizer):
    assert talk(tokenizer, END).answer("b", lambda part: None) == ("", End.BY_ITSELF)
    assert talk(tokenizer, A).answer("b", lambda part: None) == ("aaaaa", End.LONGEST)
    # Of eight positions the prompt has five.
    assert talk(tokenizer, A, n_positions=8).answer("bbbbb", lambda part: None) == ("aaa", End.NO_ROOM)
    with pytest.raises(ValueError, match="together more than the 8 positions"):
        talk(tokenizer, A, n_positions=8).answer("b" * 8, lambda part: None)
