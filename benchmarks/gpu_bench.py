"""Shapes, and how cases of benchmarks/gpu.py are run, timed and written down."""

import contextlib
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedConfig

from pangu_trl import GPTPanguConfig

PAD, EOS = 6, 9


class Skip(Exception):
    """A case cannot run here; the message says why."""


@dataclass(frozen=True)
class Size:
    """A shape, and how much work its cases do.

    Attributes:
        hidden_size: Width.
        num_layers: Blocks.
        num_heads: Heads.
        vocab_size: Rows of the embedding.
        tokens: Tokens of a sequence.
        batch: Sequences, or rankings, of a step.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    tokens: int
    batch: int

    def config(self, family: str, num_layers: int | None = None) -> PreTrainedConfig:
        """The configuration of a family in this shape, without dropout."""
        layers = num_layers or self.num_layers
        ids = {"pad_token_id": PAD, "eos_token_id": EOS, "num_labels": 1}
        if family == "Llama":
            return LlamaConfig(
                vocab_size=self.vocab_size,
                hidden_size=self.hidden_size,
                intermediate_size=self.hidden_size * 8 // 3 // 8 * 8,
                num_hidden_layers=layers,
                num_attention_heads=self.num_heads,
                max_position_embeddings=2 * self.tokens,
                **ids,
            )
        return GPTPanguConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=layers,
            num_heads=self.num_heads,
            max_position_embeddings=2 * self.tokens,
            activation_function="gelu_pytorch_tanh",
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            **ids,
        )


SIZES = {
    "tiny": Size(hidden_size=32, num_layers=2, num_heads=2, vocab_size=200, tokens=32, batch=2),
    "350M": Size(hidden_size=1024, num_layers=24, num_heads=16, vocab_size=40_000, tokens=1024, batch=8),
    "2.6B": Size(hidden_size=2560, num_layers=32, num_heads=40, vocab_size=40_000, tokens=1024, batch=2),
}
FAMILIES = ("GPTPangu", "Llama")


@dataclass
class Bench:
    """Runs cases one after another and keeps a row for each.

    Attributes:
        deadline: When no further case starts, as `time.monotonic` counts.
        rows: What came of each case: part, case, and figures or `skipped` or `failed`.
    """

    deadline: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.accelerator.current_accelerator() or torch.device("cpu"))

    @property
    def on_accelerator(self) -> bool:
        return self.device.type != "cpu"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_accelerator else torch.float32

    def case(self, part: str, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Runs a case, if there is time left, and prints its row."""
        row: dict[str, Any] = {"part": part, "case": name}
        try:
            if time.monotonic() > self.deadline:
                raise Skip("no time left")
            if self.on_accelerator:
                torch.accelerator.reset_peak_memory_stats()
            # What trainers log is not part of the table.
            with contextlib.redirect_stdout(sys.stderr):
                row |= run()
            if self.on_accelerator:
                row["peak GiB"] = torch.accelerator.max_memory_allocated() / 2**30
        except Skip as reason:
            row["skipped"] = str(reason)
        except torch.OutOfMemoryError:
            row["skipped"] = "out of memory"
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        self.rows.append(row)
        print(write_row(row), flush=True)
        gc.collect()
        if self.on_accelerator:
            torch.accelerator.empty_cache()

    def seconds(self, step: Callable[[], Any], repeats: int = 3) -> float:
        """Seconds of the fastest of some calls, after one to warm up."""
        step()
        found = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            step()
            self.wait()
            found.append(time.perf_counter() - started)
        return min(found)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.on_accelerator:
            torch.accelerator.synchronize()


def write_row(row: dict[str, Any]) -> str:
    """A row as one line of the table."""
    figures = {name: value for name, value in row.items() if name not in ("part", "case")}
    texts = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    ]
    return f"| {row['part']:<9} | {row['case']:<34} | {', '.join(texts)} |"
