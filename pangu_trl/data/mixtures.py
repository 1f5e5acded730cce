"""Mixture cards: several sources as one, by weights or by passes, in an order that a seed decides."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .cards import CardError, read_block, read_kind, refusal

MIXTURE_KEYS = ("kind", "mix", "records", "seed")


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
        source: As for `load_records`; files and cards are named relative to the mixture card.
        split: The split of the source.
        format: The public format of its rows, for a source that is no card.
        weight: Its share of the records, relative to the other parts.
        epochs: How often each of its records occurs; a fraction takes that part of them.
    """

    source: str
    split: str = "train"
    format: str | None = None
    weight: float | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class Mixture:
    """A card whose records are those of other sources.

    Attributes:
        file: The card.
        kind: The kind of record.
        parts: The sources; all have weights, or none has.
        records: How many records to take by weight; None: as many as there are without taking one twice.
        seed: Of the order and of the choice.
    """

    file: Path
    kind: str
    parts: tuple[Part, ...]
    records: int | None = None
    seed: int = 0

    @classmethod
    def load(cls, path: str | Path) -> "Mixture":
        """Reads a mixture card.

        Raises:
            CardError: If a key of it is unknown or has an unusable value.
        """
        file = Path(path)
        block = read_block(file)
        for key in block:
            if key not in MIXTURE_KEYS:
                raise CardError(
                    f"{file}: 'pangu_trl.{key}' is not a key of a mixture; the keys are {', '.join(MIXTURE_KEYS)}."
                )
        kind = read_kind(file, block)
        if not isinstance(block["mix"], list) or not block["mix"]:
            raise refusal(file, "mix", "a list of sources", block["mix"])
        parts = tuple(_read_part(file, index, part) for index, part in enumerate(block["mix"]))
        weights = [part.weight is not None for part in parts]
        if any(weights) and not all(weights):
            raise CardError(f"{file}: 'pangu_trl.mix' must give a 'weight' to every source or to none.")
        records, seed = block.get("records"), block.get("seed", 0)
        if records is not None and not (all(weights) and _is_number(records, int) and records > 0):
            raise refusal(file, "records", "a positive integer, and every source needs a 'weight'", records)
        if not _is_number(seed, int):
            raise refusal(file, "seed", "an integer", seed)
        return cls(file, kind, parts, records, seed)

    def check_streams(self) -> None:
        """Refuses a mixture that cannot be streamed, since nobody counts the records of its sources.

        Raises:
            CardError: Its sources have no weights, or it says how many records to take.
        """
        if self.parts[0].weight is None:
            raise CardError(
                f"{self.file}: 'pangu_trl.mix' must give a 'weight' to every source to be streamed: records are drawn "
                "by weight, as the sizes of the sources are not known. Give weights, or load it without streaming."
            )
        if self.records is not None:
            raise CardError(
                f"{self.file}: 'pangu_trl.records' has no effect in a stream, which goes on as long as the run. Leave "
                "it out and set max_steps, or load the mixture without streaming."
            )

    def order(self, sizes: Sequence[int]) -> list[int]:
        """Which record comes when, for as many records of each part as `sizes` says, counted through all parts.

        A part is taken in passes, each in an order of its own; then all that is taken is shuffled. The same for the
        same seed on every machine.
        """
        generator = random.Random(self.seed)
        taken: list[int] = []
        start = 0
        for size, count in zip(sizes, self.counts(sizes), strict=True):
            for first in range(0, count, size):
                one_pass = list(range(start, start + size))
                generator.shuffle(one_pass)
                taken += one_pass[: count - first]
            start += size
        generator.shuffle(taken)
        return taken

    def counts(self, sizes: Sequence[int]) -> list[int]:
        """How many records of each part are taken.

        Shares that are no whole numbers are rounded so that the total is right, the largest remainders up.
        """
        if self.parts[0].weight is None:
            return [
                round(size * (1.0 if part.epochs is None else part.epochs))
                for part, size in zip(self.parts, sizes, strict=True)
            ]
        weights = [part.weight / math.fsum(part.weight for part in self.parts) for part in self.parts]
        without_repeats = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        total = self.records or math.floor(without_repeats + 1e-9)
        shares = [total * weight for weight in weights]
        counts = [math.floor(share + 1e-9) for share in shares]
        by_remainder = sorted(range(len(shares)), key=lambda index: counts[index] - shares[index])
        for index in by_remainder[: total - sum(counts)]:
            counts[index] += 1
        return counts


def is_mixture(path: str | Path) -> bool:
    """Whether a card is one of a mixture; raises as `read_block`."""
    return "mix" in read_block(Path(path))


def _read_part(file: Path, index: int, part: Any) -> Part:
    key = f"mix[{index}]"
    known = [attribute.name for attribute in fields(Part)]
    if not isinstance(part, Mapping) or not isinstance(part.get("source"), str):
        raise refusal(file, key, "a mapping with 'source'", part)
    for name, value in part.items():
        if name not in known:
            raise CardError(
                f"{file}: 'pangu_trl.{key}.{name}' is not a key of a part; the keys are {', '.join(known)}."
            )
        if name in ("split", "format") and not isinstance(value, str):
            raise refusal(file, f"{key}.{name}", "text", value)
        if name in ("weight", "epochs") and not (_is_number(value, int | float) and 0 < value < math.inf):
            raise refusal(file, f"{key}.{name}", "a positive number", value)
    if "weight" in part and "epochs" in part:
        raise CardError(f"{file}: 'pangu_trl.{key}' must have 'weight' or 'epochs', not both.")
    beside = file.absolute().parent / part["source"]
    return Part(**{**part, "source": str(beside) if beside.exists() else part["source"]})


def _is_number(value: Any, types: Any) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)
