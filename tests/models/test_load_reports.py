"""What is reported of a model's files when a new head is made, and what stays out."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, GPT2Model

from pangu_trl.models.load_reports import reports_of_files
from pangu_trl.models.loading import load_with_adapter


@contextmanager
def told_by_transformers() -> Iterator[io.StringIO]:
    # Transformers' own handler keeps the stream that it was made with.
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("transformers").addHandler(handler)
    try:
        yield stream
    finally:
        logging.getLogger("transformers").removeHandler(handler)


def load(folder, new_head: str | None) -> str:
    with told_by_transformers() as told, reports_of_files(new_head):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    return told.getvalue()


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_head_is_no_news_and_a_weight_without_a_place_is(tied, tmp_path):
    config = GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=tied)
    config.pad_token_id = 0
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert "LOAD REPORT" not in load(tmp_path, "score.")
    told = load(tmp_path, None)
    # Without codes for colours, as this is no terminal.
    assert "LOAD REPORT" in told and "score.weight" in told and "\x1b" not in told


def test_other_weights_that_are_missing_are_still_reported(tmp_path):
    model = GPT2Model(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2, pad_token_id=0))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "ln_f.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    told = load(tmp_path, "score.")
    assert "ln_f.weight" in told


def test_a_head_that_an_adapter_brings_is_not_called_new(tmp_path, tokenizer):
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=8, n_embd=8, n_layer=1, n_head=2, pad_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["c_attn"])
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    with told_by_transformers() as told:
        _, _, missing = load_with_adapter(AutoModelForSequenceClassification, str(tmp_path / "adapter"), num_labels=1)
    assert not missing
    assert "LOAD REPORT" not in told.getvalue()
    with told_by_transformers() as told:
        load_with_adapter(AutoModelForSequenceClassification, str(tmp_path / "base"), num_labels=1)
    assert "score.weight" in told.getvalue()
