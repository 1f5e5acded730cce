"""Golden models of the reference implementation, what compares forward passes, both engines of the segmenter."""

from collections.abc import Callable
from pathlib import Path

import jieba
import pytest
import torch
from official_tokenizer import load_jieba, official_vocabulary_path
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import pangu_trl
from pangu_trl.gptpangu import segmentation_gptpangu
from pangu_trl.gptpangu.jieba_tables_gptpangu import read_dictionary, read_markov_tables
from pangu_trl.gptpangu.single_characters_gptpangu import WordFinder


@pytest.fixture
def load_golden(fixtures: Path) -> Callable[..., tuple["pangu_trl.GPTPanguForCausalLM", dict[str, Tensor]]]:
    """`load_golden(name, attention)` -> the model of a fixture in eval mode, and its golden tensors."""

    def load(name: str, attention: str = "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(fixtures / name, attn_implementation=attention)
        return model.eval(), load_file(fixtures / name / "golden.safetensors")

    return load


@pytest.fixture
def model(load_golden) -> "pangu_trl.GPTPanguForCausalLM":
    """The golden model whose output head is not the word embedding."""
    return load_golden("tiny_gptpangu")[0]


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """For the golden model: rows of 9, 5 and 2 real tokens, left-padded."""
    ids = torch.randint(10, 1024, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0] * pads + [1] * (9 - pads) for pads in (0, 4, 7)])
    return dict(input_ids=ids.masked_fill(mask == 0, 6), attention_mask=mask)


@pytest.fixture(scope="session")
def engines() -> dict[str, segmentation_gptpangu.Segmenter]:
    """Both engines of the segmenter, by name."""
    word_finder = WordFinder(*read_markov_tables())
    rust = segmentation_gptpangu._load_rust_segmenter(word_finder)
    if rust is None:
        pytest.fail("the tests compare both engines of the segmenter: pip install rjieba==0.2.2")
    return {"rust": rust, "python": segmentation_gptpangu.PythonSegmenter(*read_dictionary(), word_finder)}


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> jieba.Tokenizer:
    """jieba itself, with its cache file in a private folder."""
    return load_jieba(tmp_path_factory.mktemp("jieba"))


@pytest.fixture(scope="session")
def official_vocabulary() -> Path:
    """The official vocab.model of 40,000 pieces."""
    return official_vocabulary_path()


@pytest.fixture(scope="session")
def piece_ids(official_vocabulary: Path) -> dict[str, int]:
    """The ids by the text file beside the model, which the tokenizer does not read."""
    lines = official_vocabulary.with_suffix(".vocab").read_text("utf-8").split("\n")
    return {line.split("\t")[0]: index for index, line in enumerate(lines)}
