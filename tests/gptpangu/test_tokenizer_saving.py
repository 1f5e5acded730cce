"""A tokenizer is the same after saving, pickling, loading from published folders, and in the eyes of `datasets`."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from official_tokenizer import EOT, GOODBYE, HELLO, dialogues
from transformers import AddedToken, AutoTokenizer

from pangu_trl import GPTPanguTokenizer


@pytest.fixture
def tokenizer(official_vocabulary: Path) -> GPTPanguTokenizer:
    return GPTPanguTokenizer(official_vocabulary)


def test_saved_tokenizer_is_the_same(tokenizer: GPTPanguTokenizer, tmp_path: Path) -> None:
    tokenizer.append_eot = True
    assert tokenizer.add_tokens(["新词儿"]) == 1
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"]}) == 1
    tokenizer.save_pretrained(tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    for loaded in (GPTPanguTokenizer.from_pretrained(tmp_path / "moved"), pickle.loads(pickle.dumps(tokenizer))):
        assert loaded.append_eot
        assert loaded("你好新词儿<tool>再见").input_ids == [HELLO, 40_000, 40_001, GOODBYE, EOT]
        assert loaded.decode([HELLO, 40_000, 40_001]) == "你好新词儿<tool>"
        assert loaded.decode([HELLO, 40_000, 40_001], skip_special_tokens=True) == "你好新词儿"
        assert (loaded.vocab_size, len(loaded), loaded.chat_template) == (40_000, 40_002, tokenizer.chat_template)


def test_pickle_holds_little_more_than_the_vocabulary_file(
    tokenizer: GPTPanguTokenizer, official_vocabulary: Path
) -> None:
    assert len(pickle.dumps(tokenizer)) < official_vocabulary.stat().st_size + 10_000


def test_saved_tokenizer_keeps_its_options(official_vocabulary: Path, tmp_path: Path) -> None:
    options = {
        "append_eot": True, "split_special_tokens": True, "padding_side": "left", "truncation_side": "left",
        "model_max_length": 77, "chat_template": "{{ messages }}",
    }  # fmt: skip
    GPTPanguTokenizer(official_vocabulary, **options).save_pretrained(tmp_path / "once")
    AutoTokenizer.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "twice")
    assert type(loaded) is GPTPanguTokenizer
    assert {name: getattr(loaded, name) for name in options} == options
    assert loaded.encode("你好<eot>")[-1] == EOT and loaded.encode("你好<eot>").count(EOT) == 1


def test_added_tokens_that_strip_survive_saving(tokenizer: GPTPanguTokenizer, tmp_path: Path) -> None:
    tokenizer.add_tokens([AddedToken("<br>", lstrip=True, rstrip=True)])
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("你好  <br> 再见").input_ids == [HELLO, 40_000, GOODBYE]


@pytest.fixture
def published(official_vocabulary: Path, tmp_path: Path) -> Path:
    """A folder as it lies on the Hub, with a dot in its name and with code that must not run."""
    folder = tmp_path / "pangu-2.6B"
    folder.mkdir()
    shutil.copy(official_vocabulary, folder)
    config = {
        "eos_token": "<eot>", "pad_token": "<pad>", "unk_token": "<unk>", "sep_token": "<sep>", "bos_token": "<s>",
        "add_prefix_space": False, "tokenizer_class": "GPTPanguTokenizer", "use_fast": False,
        "auto_map": {"AutoTokenizer": ["tokenization_gptpangu.GPTPanguTokenizer", None]},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "config.json").write_text('{"model_type": "pangu"}', "utf-8")
    (folder / "tokenization_gptpangu.py").write_text("raise SystemExit('the remote code ran')", "utf-8")
    return folder


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": False}, {"trust_remote_code": True}], ids=str)
@pytest.mark.parametrize("has_config", [True, False])
def test_published_folder_loads_with_our_class_and_never_runs_its_code(
    published: Path, trust: dict, has_config: bool
) -> None:
    if not has_config:
        (published / "config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(published, **trust)
    assert type(tokenizer) is GPTPanguTokenizer
    assert tokenizer("你好<eot>").input_ids == [HELLO, EOT]
    tokenizer.save_pretrained(published / "saved")
    assert "auto_map" not in json.loads((published / "saved" / "tokenizer_config.json").read_text("utf-8"))
    assert not list((published / "saved").glob("*.py"))


def test_published_argument_name_works(official_vocabulary: Path) -> None:
    assert GPTPanguTokenizer(model_file=str(official_vocabulary))("你好").input_ids == [HELLO]


def test_missing_or_foreign_vocabulary_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPTPanguTokenizer"}', "utf-8")
    with pytest.raises(ValueError, match=r"expected a file vocab\.model, found none"):
        GPTPanguTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.model").write_text("version https://git-lfs.github.com/spec/v1", "utf-8")
    with pytest.raises(ValueError, match=r"vocab\.model: expected a SentencePiece model, .*Git LFS"):
        GPTPanguTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no vocabulary"):
        GPTPanguTokenizer()("你好")


def test_fingerprint_is_stable_after_use_and_between_processes(official_vocabulary: Path) -> None:
    tokenizer = GPTPanguTokenizer(official_vocabulary)
    fingerprint = Hasher.hash(tokenizer)
    tokenizer(["你好，世界<eot>"] * 3, padding=True)
    tokenizer.decode([HELLO])
    assert Hasher.hash(tokenizer) == fingerprint
    script = (
        "import sys; from datasets.fingerprint import Hasher; from pangu_trl import GPTPanguTokenizer; "
        "print(Hasher.hash(GPTPanguTokenizer(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, str(official_vocabulary)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip() == (
        fingerprint
    )
    tokenizer.add_tokens(["新词儿"])
    assert Hasher.hash(tokenizer) != fingerprint


def test_map_with_two_processes_gives_the_same_and_is_cached(tokenizer: GPTPanguTokenizer, tmp_path: Path) -> None:
    texts = dialogues()[:200]
    dataset = Dataset.from_generator(rows, gen_kwargs={"texts": texts}, cache_dir=str(tmp_path))

    def encode(batch: dict) -> dict:
        return tokenizer(batch["text"])

    mapped = dataset.map(encode, batched=True, batch_size=30, num_proc=2)
    assert mapped["input_ids"] == tokenizer(texts).input_ids
    again = dataset.map(encode, batched=True, batch_size=30, num_proc=2)
    assert [file["filename"] for file in again.cache_files] == [file["filename"] for file in mapped.cache_files]


def rows(texts: list[str]):
    yield from ({"text": text} for text in texts)


def test_threads_may_share_a_tokenizer(tokenizer: GPTPanguTokenizer) -> None:
    texts = dialogues()
    expected = tokenizer(texts).input_ids
    with ThreadPoolExecutor(4) as pool:
        assert all(ids == expected for ids in pool.map(lambda _: tokenizer(texts).input_ids, range(4)))
