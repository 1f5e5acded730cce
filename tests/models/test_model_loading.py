"""The tokenizer that is loaded with a model: of any kind that transformers knows, never an empty one."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from pangu_trl.models.loading import load_merged, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A language model of transformers, for which AutoTokenizer would make a tokenizer out of nothing."""
    GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    return tmp_path


def load(folder):
    return load_merged(AutoModelForCausalLM, str(folder))[1]


def write_word_pieces(folder):
    (folder / "vocab.txt").write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n好\n人\n", "utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def write_byte_pairs(folder):
    (folder / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")


def write_bytes(folder):
    """A tokenizer that has no vocabulary file at all."""
    ByT5Tokenizer().save_pretrained(folder)


def write_tokenizers_json(folder):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "好": 1, "人": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)


@pytest.mark.parametrize(
    ("write", "text", "ids"),
    [
        (write_word_pieces, "好人", [5, 6]),
        (write_byte_pairs, "ab", [2]),
        # Bytes come behind the three special tokens: 0x61 + 3.
        (write_bytes, "a", [100]),
        (write_tokenizers_json, "好人", [1, 2]),
    ],
)
def test_every_kind_of_tokenizer_loads_with_its_model(folder, write, text, ids):
    write(folder)
    assert load(folder).encode(text, add_special_tokens=False) == ids


def test_a_model_without_a_tokenizer_does_not_get_an_empty_one(folder):
    with pytest.raises(ValueError, match=rf"{folder}: no tokenizer can be loaded .* Its vocabulary is missing"):
        load(folder)


@pytest.mark.parametrize("model_type", ["qwen2", "bert", "t5", "gemma3_text", "cpmant", "llama"])
def test_tokenizers_that_transformers_makes_up_are_refused(folder, model_type):
    (folder / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    with pytest.raises(ValueError, match="no tokenizer can be loaded from it; save the model's tokenizer there"):
        load_tokenizer(str(folder), "main", trust_remote_code=False)


def test_a_damaged_tokenizer_is_named_with_its_flaw(folder):
    (folder / "tokenizer.json").write_text('{"version')
    with pytest.raises(ValueError, match=rf"{folder}: no tokenizer can be loaded from it.*Unterminated string"):
        load(folder)


def test_what_cannot_be_loaded_is_named_with_its_flaw(folder, tmp_path_factory):
    write_bytes(folder)
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(ValueError, match="config.json: .* it is a file; give the folder that it lies in"):
        load(folder / "config.json")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 16}))
    with pytest.raises(ValueError, match="its weights have other sizes than config.json says"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2ForSequenceClassification"]}))
    with pytest.raises(ValueError, match=r"a reward model or critic \(GPT2ForSequenceClassification\)"):
        load(folder)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(other / "gone")}
    (other / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(
        ValueError, match=rf"gone \(the base model that the adapter {other} names\): there is no such folder"
    ):
        load(other)
    (other / "adapter_config.json").write_text(json.dumps(adapter | {"peft_type": "LORAX"}))
    with pytest.raises(ValueError, match=f"{other}: .* names the method 'LORAX', which this version of PEFT does not"):
        load(other)
