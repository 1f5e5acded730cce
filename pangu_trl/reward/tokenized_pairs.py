"""Pairs of answers that are token ids already, as TRL's RewardTrainer takes them."""

from functools import partial
from itertools import takewhile
from typing import Any

from datasets import Dataset, IterableDataset

from pangu_trl.data.streams import EncodedStream
from pangu_trl.data.tokenized_datasets import LENGTH_COLUMN, drop_overlong


def rankings_from_ids(
    dataset: Dataset | IterableDataset, max_length: int, name: str, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """Takes `chosen_ids` and `rejected_ids`, each prompt and answer together, as rankings of two.

    The prompt is what both begin with; of each at least one token is left as the answer.

    Args:
        dataset: The pairs; columns `margin` and `weight` stay.
        max_length: Longer pairs are left out and counted in a warning.
        name: What the trainer calls the set.
        num_proc: Processes to use.

    Raises:
        ValueError: A side has no token, or no pair is short enough.
    """
    if isinstance(dataset, IterableDataset):
        return EncodedStream(dataset, partial(_as_ranking, index=None, name=name), max_length, "pairs").dataset()
    dropped = [column for column in dataset.column_names if column not in ("margin", "weight")]
    encoded = dataset.map(
        _as_ranking, with_indices=True, remove_columns=dropped, num_proc=num_proc, fn_kwargs={"name": name}
    )
    return drop_overlong(encoded, max_length, "pairs")


def _as_ranking(row: dict[str, Any], index: int | None, name: str) -> dict[str, Any]:
    chosen, rejected = row["chosen_ids"], row["rejected_ids"]
    if not chosen or not rejected:
        place = name if index is None else f"{name} row {index}"
        raise ValueError(f"{place}: chosen_ids and rejected_ids must hold a token at least; got {row!r}")
    shortest = min(len(chosen), len(rejected)) - 1
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen[:shortest], rejected, strict=False)))
    return {
        "prompt_input_ids": chosen[:shared],
        "response_input_ids": [chosen[shared:], rejected[shared:]],
        "scores": [1.0, 0.0],
        LENGTH_COLUMN: max(len(chosen), len(rejected)),
    } | {column: row[column] for column in ("margin", "weight") if column in row}
