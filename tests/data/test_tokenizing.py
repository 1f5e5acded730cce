"""Token ids of records, worked out by hand with a tokenizer of a dozen words."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from pangu_trl.data import (
    EncodingColumns,
    encode_completion,
    encode_prompt,
    load_records,
    tokenize_demonstrations,
    tokenize_prompts,
    tokenize_rankings,
    write_jsonl,
)

VOCABULARY = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "hello": 3,
    "world": 4,
    "good": 5,
    "bad": 6,
    "day": 7,
    "<|user|>": 8,
    "<|assistant|>": 9,
    "\n": 10,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTION = [{"role": "user", "content": "hello world"}]
GOOD = [{"role": "assistant", "content": "good day"}]
BAD = [{"role": "assistant", "content": "bad"}]


def build_tokenizer(special_tokens: str = "<s> $A") -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single=special_tokens, special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "\n"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_text_prompt_has_the_special_tokens_before_it(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode_prompt(tokenizer, "hello world") == [1, 3, 4]


def test_text_prompt_loses_only_the_end_of_sequence_that_the_tokenizer_adds() -> None:
    tokenizer = build_tokenizer("<s> $A </s>")
    assert tokenizer("hello")["input_ids"] == [1, 3, 2]
    assert encode_prompt(tokenizer, "hello") == [1, 3]
    assert encode_prompt(tokenizer, "hello</s>", EncodingColumns(special_tokens_in_text="keep")) == [1, 3, 2]


def test_text_completion_is_encoded_apart_and_ends_with_one_end_of_sequence(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # Encoded at once, "hello" + "day" would be the unknown word "helloday".
    assert encode_prompt(tokenizer, "hello") + encode_completion(tokenizer, "hello", "day") == [1, 3, 7, 2]
    assert encode_completion(tokenizer, "hello", "day</s>") == [7, 2]
    assert encode_completion(tokenizer, "hello", "day</s></s>") == [7, 2]
    assert encode_completion(build_tokenizer("<s> $A </s>"), "hello", "day") == [7, 2]


def test_messages_follow_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    # <|user|>hello world</s>\n<|assistant|>  and then  good day</s>, without the template's last line break.
    assert encode_prompt(tokenizer, QUESTION) == [8, 3, 4, 2, 10, 9]
    assert encode_completion(tokenizer, QUESTION, GOOD) == [5, 7, 2]


def test_answer_of_several_messages_keeps_the_ends_between_them(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = GOOD + [{"role": "user", "content": "bad"}] + GOOD
    assert encode_completion(tokenizer, QUESTION, answer) == [5, 7, 2, 10, 8, 6, 2, 10, 9, 5, 7, 2]


def test_end_of_sequence_is_added_when_the_template_writes_none(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace("</s>\n", "")
    assert encode_completion(tokenizer, QUESTION, GOOD) == [5, 7, 2]


def test_template_that_does_not_continue_the_prompt_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|assistant|>", "<|assistant|>good ")
    with pytest.raises(ValueError) as caught:
        encode_completion(tokenizer, QUESTION, BAD)
    assert str(caught.value) == (
        "the chat template must write a conversation turn by turn, each as the continuation of what is before it; "
        "after 'ld</s>\\n<|assistant|>' it writes 'good ' for the prompt alone and 'bad</s>\\n' for the whole. Use "
        "another chat template, split the conversation into records of one answer each, or use text records."
    )


def test_missing_end_of_sequence_or_chat_template_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="must have an eos_token, .* it has none. Set it to the token"):
        encode_completion(tokenizer, "hello", "day")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="must have a chat template to encode messages; it has none"):
        encode_prompt(tokenizer, QUESTION)


def test_text_of_which_no_token_remains_is_refused() -> None:
    tokenizer = build_tokenizer("$A")
    with pytest.raises(ValueError, match="the prompt must give at least one token"):
        encode_prompt(tokenizer, " ")
    with pytest.raises(ValueError, match="the completion must give at least one token before the end of sequence"):
        encode_completion(tokenizer, "hello", "</s>")


def test_demonstrations_get_ids_and_completion_mask(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"prompt": ["hello", "hello world"], "completion": ["day", "good day"], "id": [1, 2]})
    assert list(tokenize_demonstrations(dataset, tokenizer, max_length=6)) == [
        {"input_ids": [1, 3, 7, 2], "completion_mask": [0, 0, 1, 1]},
        {"input_ids": [1, 3, 4, 5, 7, 2], "completion_mask": [0, 0, 0, 1, 1, 1]},
    ]


def test_demonstrations_train_only_on_completions_in_trl(
    tokenizer: PreTrainedTokenizerFast, fixtures: Path, tmp_path: Path
) -> None:
    from pangu_trl import GPTPanguConfig, GPTPanguForCausalLM

    config = GPTPanguConfig.from_pretrained(fixtures / "tiny_gptpangu")
    tokenizer.pad_token = "</s>"
    dataset = Dataset.from_dict({"prompt": [QUESTION], "completion": [GOOD]})
    trainer = SFTTrainer(
        GPTPanguForCausalLM(config),
        args=SFTConfig(str(tmp_path), completion_only_loss=True, bf16=False, use_cpu=True, report_to="none"),
        train_dataset=tokenize_demonstrations(dataset, tokenizer, max_length=16),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].tolist() == [[8, 3, 4, 2, 10, 9, 5, 7, 2]]
    assert batch["labels"].tolist() == [[-100] * 6 + [5, 7, 2]]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_rankings_get_ids_of_prompt_and_responses(tokenizer: PreTrainedTokenizerFast, num_proc: int | None) -> None:
    dataset = Dataset.from_dict(
        {
            "prompt": [QUESTION, QUESTION],
            "responses": [[BAD, GOOD], [GOOD, BAD, GOOD]],
            "scores": [[0.0, 1.0], [1.0, 0.5, 1.0]],
            "id": ["a", "b"],
        }
    )
    prompt_ids = [8, 3, 4, 2, 10, 9]
    assert list(tokenize_rankings(dataset, tokenizer, max_length=9, num_proc=num_proc)) == [
        {"prompt_input_ids": prompt_ids, "response_input_ids": [[6, 2], [5, 7, 2]], "scores": [0.0, 1.0]},
        {
            "prompt_input_ids": prompt_ids,
            "response_input_ids": [[5, 7, 2], [6, 2], [5, 7, 2]],
            "scores": [1.0, 0.5, 1.0],
        },
    ]


def test_prompts_keep_every_column(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "hello", "answer": "day"}, {"prompt": "good day", "answer": None}]
    assert list(tokenize_prompts(Dataset.from_list(rows), tokenizer, max_prompt_length=3)) == [
        {**rows[0], "prompt_input_ids": [1, 3]},
        {**rows[1], "prompt_input_ids": [1, 5, 7]},
    ]


def test_overlong_demonstrations_are_left_out_and_counted(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    # Lengths with <s> and </s>: 4, 6, 5, 7.
    completions = ["day", "good good day", "good day", "good good good day"]
    dataset = Dataset.from_dict({"prompt": ["hello"] * 4, "completion": completions})
    tokenized = tokenize_demonstrations(dataset, tokenizer, max_length=5)
    assert list(tokenized["input_ids"]) == [[1, 3, 7, 2], [1, 3, 5, 7, 2]]
    assert caplog.messages == [
        "2 of 4 demonstrations left out: the longest has 7 tokens, max_length is 5. Raise max_length or remove them to "
        "silence this."
    ]


def test_ranking_with_one_overlong_response_is_left_out_and_counted(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    responses = [["good good day", "bad"], ["good day", "bad"]]
    dataset = Dataset.from_dict({"prompt": ["hello"] * 2, "responses": responses, "scores": [[1.0, 0.0]] * 2})
    tokenized = tokenize_rankings(dataset, tokenizer, max_length=5)
    assert list(tokenized["response_input_ids"]) == [[[5, 7, 2], [6, 2]]]
    assert caplog.messages == [
        "1 of 2 rankings left out: the longest has 6 tokens, max_length is 5. Raise max_length or remove them to "
        "silence this."
    ]


def test_unknown_tokens_are_counted_in_whatever_is_learnt(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    responses = [["good", "\U0001f600 \U0001f600 day"], ["good", "day"]]
    dataset = Dataset.from_dict({"prompt": ["\U0001f600", "hello"], "responses": responses, "scores": [[1.0, 0.0]] * 2})
    rankings = tokenize_rankings(dataset, tokenizer, max_length=9)
    assert set(rankings.column_names) == {"prompt_input_ids", "response_input_ids", "scores"}
    assert caplog.messages == [
        "3 tokens are unknown to the tokenizer, in 1 of 2 records, the first in row 0. Such characters are all one "
        "token to the model, and what they say is lost; another tokenizer may know them."
    ]


def test_an_end_that_is_also_called_unknown_counts_as_an_end(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.unk_token = tokenizer.eos_token
    tokenize_demonstrations(Dataset.from_dict({"prompt": ["hello"], "completion": ["day"]}), tokenizer, 4)
    assert caplog.messages == []


def test_nothing_is_said_when_everything_fits(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pangu_trl"):
        tokenize_demonstrations(Dataset.from_dict({"prompt": ["hello"], "completion": ["day"]}), tokenizer, 4)
    assert caplog.messages == []


def test_no_record_that_fits_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"prompt": ["hello"] * 2, "completion": ["good day", "good good day"]})
    with pytest.raises(ValueError) as caught:
        tokenize_demonstrations(dataset, tokenizer, max_length=4)
    assert str(caught.value) == (
        "at least one of the 2 demonstrations must fit in max_length = 4 tokens; the shortest has 5. Raise max_length."
    )


@pytest.mark.parametrize("num_proc", [None, 2])
def test_prompt_without_room_is_an_error_that_names_its_row(
    tokenizer: PreTrainedTokenizerFast, num_proc: int | None
) -> None:
    prompts = ["hello", "hello world", "hello hello hello"]
    dataset = Dataset.from_dict({"prompt": prompts, "completion": ["day"] * 3})
    with pytest.raises(ValueError) as caught:
        tokenize_demonstrations(dataset, tokenizer, max_length=4, num_proc=num_proc)
    assert str(caught.value) == (
        "row 2: the prompt must leave room for an answer within max_length = 4 tokens; it has 4. Raise max_length, or "
        "shorten or remove the record."
    )
    with pytest.raises(ValueError) as caught:
        tokenize_prompts(dataset, tokenizer, max_prompt_length=3, num_proc=num_proc)
    assert str(caught.value) == (
        "row 2: the prompt must have at most max_prompt_length = 3 tokens; it has 4. Raise max_prompt_length, or "
        "shorten or remove the prompt."
    )


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_row_of_a_file_is_named_by_its_line_too(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, num_proc: int | None
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "hello"}\n\n{"prompt": "good day"}\n{"prompt": "hello world"}\n', encoding="utf-8")
    dataset = load_records(file, "prompt")
    with pytest.raises(ValueError) as caught:
        tokenize_prompts(dataset, tokenizer, max_prompt_length=2, num_proc=num_proc)
    assert str(caught.value).startswith(f"row 1 ({file}:3): the prompt must have at most max_prompt_length = 2 tokens")
    # The second row of what was derived stands in another line.
    with pytest.raises(ValueError, match="^row 1: the prompt must"):
        tokenize_prompts(dataset.select([0, 2]), tokenizer, max_prompt_length=2, num_proc=num_proc)


def test_another_process_finds_the_same_cache(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, datasets_cache: Path
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "hello", "completion": "day", "meta": {"b": 1, "a": 2}}])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    script = tmp_path / "run.py"
    script.write_text(
        "from transformers import AutoTokenizer\n"
        "from pangu_trl.data import load_records, tokenize_demonstrations\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / 'tokenizer')!r})\n"
        f"dataset = load_records({str(tmp_path / 'rows.jsonl')!r}, 'demonstration')\n"
        "print(tokenize_demonstrations(dataset, tokenizer, 8).cache_files[0]['filename'])\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_DATASETS_CACHE": str(datasets_cache),
    }
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

    dataset = load_records(tmp_path / "rows.jsonl", "demonstration")
    tokenized = tokenize_demonstrations(dataset, AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), 8)
    assert tokenized.cache_files == [{"filename": run.stdout.strip()}]
