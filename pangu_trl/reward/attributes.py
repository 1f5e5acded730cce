"""Attributes of answers as the reward trainer learns them: columns of the data become one, and are checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from pangu_trl.data.records import is_finite_number
from pangu_trl.data.streams import column_names

COLUMN = "attribute_scores"


def with_attribute_scores(
    dataset: Dataset | IterableDataset, attributes: Sequence[str], name: str
) -> Dataset | IterableDataset:
    """Adds a column with the values of all attributes of a ranking, for each a list over its responses.

    Args:
        dataset: Canonical rankings with a column for each attribute.
        attributes: Their names.
        name: What the trainer calls the set.

    Raises:
        ValueError: A column is not there; a stream of records is checked as they pass.
    """
    columns = column_names(dataset)
    missing = [attribute for attribute in attributes if attribute not in columns]
    if missing:
        raise ValueError(
            f"KWiseRewardTrainer: the {name} set has no column {missing[0]!r}, which attributes names; it has "
            f"{', '.join(columns)}."
        )
    return dataset.map(_gather, with_indices=True, fn_kwargs={"attributes": list(attributes), "name": name})


def _gather(record: Mapping[str, Any], row: int, attributes: list[str], name: str) -> dict[str, Any]:
    num_responses = len(record["responses"])
    gathered = []
    for attribute in attributes:
        values = record[attribute]
        is_list = isinstance(values, list | tuple) and len(values) == num_responses
        if not is_list or not all(value is None or is_finite_number(value) for value in values):
            raise ValueError(
                f"{name} row {row}: {attribute!r} must hold a finite number, or null, for each of the {num_responses} "
                f"responses; got {values!r}"
            )
        gathered.append([None if value is None else float(value) for value in values])
    return {COLUMN: gathered}
