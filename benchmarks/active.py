"""What active order is worth: pair accuracy over the number of ranked prompts, random and active, a few seeds.

    python benchmarks/active.py --output active.json

The answers are endings of the demo's Chinese reviews, K = 4 to an opening. The annotator is simulated: the demo's
sentiment classifier, with normal noise on the log-odds before it ranks. After every round a small reward model is
trained from the same random weights on all that was ranked so far; in active order it then says which prompts come
next, those whose answers it can hardly tell apart. The first round is the same for both. Accuracy is over all pairs of
held-out prompts, ranked by the classifier without noise.
"""

import argparse
import importlib
import json
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers.trainer_utils import set_seed

from pangu_trl import (
    GPTPanguConfig,
    GPTPanguForSequenceClassification,
    GPTPanguTokenizer,
    KWiseRewardConfig,
    KWiseRewardTrainer,
)
from pangu_trl.annotation.dealing import indecision, make_deck
from pangu_trl.annotation.decisions import prompt_digest
from pangu_trl.answers.judge import judge_of_model
from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

DEMO = Path(__file__).parent.parent / "recipes" / "demo"
NUM_ANSWERS = 4
ORDERS = ("random", "active")
Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run of each order for each")
    parser.add_argument("--pool", type=int, default=2000, help="prompts that can be ranked (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=300, help="prompts that measure (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, nargs="+", default=[100, 200, 400, 800], help="prompts ranked after each round"
    )
    parser.add_argument(
        "--noise", type=float, default=1.0, help="standard deviation on the annotator's log-odds (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=4, help="of each reward model (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few prompts and steps, to see that everything runs")
    parser.add_argument("--output", type=Path, help="write the figures as JSON (default: only print them)")
    args = parser.parse_args()
    vocab_size = 700 if args.quick else 2000
    if args.quick:
        args.seeds, args.pool, args.held_out, args.rounds, args.epochs = args.seeds[:1], 24, 8, [8, 16], 1
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    results: dict[str, list[list[float]]] = {order: [] for order in ORDERS}
    with tempfile.TemporaryDirectory() as folder:
        records = prepare_records(args.pool + args.held_out)
        texts = [record["prompt"] + text for record in records for text in record["responses"]]
        tokenizer = train_vocabulary(texts, folder, vocab_size)
        for seed in args.seeds:
            random.Random(seed).shuffle(records)
            pool, held_out = records[: args.pool], records[args.pool :]
            ranked = simulate_annotator(pool, args.noise, seed)
            for order in ORDERS:
                accuracies = run(order, ranked, held_out, tokenizer, args, seed, folder)
                results[order].append(accuracies)
                print(f"{order}, seed {seed}: {', '.join(f'{value:.3f}' for value in accuracies)}", flush=True)
    means = {order: [statistics.fmean(column) for column in zip(*runs, strict=True)] for order, runs in results.items()}
    print(f"{'ranked':>8}  {'random':>8}  {'active':>8}")
    for place, count in enumerate(args.rounds):
        print(f"{count:8}  {means['random'][place]:8.3f}  {means['active'][place]:8.3f}")
    if args.output is not None:
        figures = {"rounds": args.rounds, "seeds": args.seeds, "noise": args.noise, "means": means, "runs": results}
        args.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def prepare_records(count: int) -> list[Record]:
    """Openings of reviews, each with its own ending and three others, and what the classifier thinks of each."""
    sys.path.insert(0, str(DEMO))
    reviews, judge = importlib.import_module("reviews"), importlib.import_module("judge")
    texts, _ = reviews.clean_reviews(reviews.read_lines())
    random.Random(0).shuffle(texts)
    parts: dict[str, str] = {}
    for text in texts:
        length = reviews.opening_length(text)
        if length is not None:
            parts.setdefault(text[:length], text[length:])
    openings = list(parts)[:count]
    endings = [parts[opening] for opening in openings]
    records = []
    for place, opening in enumerate(openings):
        responses = [endings[(place + step) % count] for step in range(NUM_ANSWERS)]
        records.append({"prompt": opening, "responses": responses})
    scores = dict(zip(endings, judge.sentiment(openings, endings), strict=True))
    return [record | {"scores": [log_odds(scores[text]) for text in record["responses"]]} for record in records]


def simulate_annotator(records: Sequence[Record], noise: float, seed: int) -> dict[str, Record]:
    """The pool as the annotator would rank it, by digest."""
    draw = random.Random(seed)
    return {
        prompt_digest(record): record | {"scores": [score + draw.gauss(0, noise) for score in record["scores"]]}
        for record in records
    }


def run(
    order: str,
    pool: dict[str, Record],
    held_out: Sequence[Record],
    tokenizer: GPTPanguTokenizer,
    args: argparse.Namespace,
    seed: int,
    folder: str,
) -> list[float]:
    """Pair accuracy after each round."""
    ranked: list[str] = []
    accuracies = []
    judge = None
    for count in args.rounds:
        free = [digest for digest in pool if digest not in ranked]
        torn = None
        if order == "active" and judge is not None:
            scores = judge_all(judge, [pool[digest] for digest in free])
            torn = {
                digest: indecision([given], pool[digest]["responses"])
                for digest, given in zip(free, scores, strict=True)
            }
        deck = make_deck(free, 0, "random" if torn is None else "active", seed, 0, torn)
        ranked += deck.prompts[: count - len(ranked)]
        judge = train([pool[digest] for digest in ranked], tokenizer, args.epochs, seed, folder)
        accuracies.append(pair_accuracy(judge_all(judge, held_out), held_out))
    return accuracies


def train(records: Sequence[Record], tokenizer: GPTPanguTokenizer, epochs: int, seed: int, folder: str) -> Any:
    """A reward model as a judge, from random weights that depend on the seed alone."""
    set_seed(seed)
    config = GPTPanguConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        num_labels=1,
    )
    model = GPTPanguForSequenceClassification(config)
    options = KWiseRewardConfig(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        warmup_steps=5,
        max_length=255,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=seed,
    )
    dataset = Dataset.from_list(list(records))
    trainer = KWiseRewardTrainer(model=model, args=options, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    return judge_of_model("the reward model", trainer.model.eval(), tokenizer, 64)


def judge_all(judge: Any, records: Sequence[Record]) -> list[list[float]]:
    """Scores of all answers, (records, K)."""
    pairs = [(record["prompt"], text) for record in records for text in record["responses"]]
    scores = judge([prompt for prompt, _ in pairs], [text for _, text in pairs])
    return [scores[start : start + NUM_ANSWERS] for start in range(0, len(scores), NUM_ANSWERS)]


def pair_accuracy(scores: Sequence[Sequence[float]], records: Sequence[Record]) -> float:
    """Share of the pairs with different scores whose better answer has the higher reward; equal rewards count half."""
    won = count = 0.0
    for given, record in zip(scores, records, strict=True):
        for better in range(NUM_ANSWERS):
            for worse in range(NUM_ANSWERS):
                if record["scores"][better] > record["scores"][worse]:
                    won += 1.0 if given[better] > given[worse] else 0.5 if given[better] == given[worse] else 0.0
                    count += 1
    return won / count


def log_odds(probability: float) -> float:
    """Of a probability, within ten of zero."""
    within = min(max(probability, math.exp(-10)), 1 - math.exp(-10))
    return math.log(within / (1 - within))


if __name__ == "__main__":
    main()
