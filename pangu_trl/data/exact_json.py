"""Nested values in a column of Arrow, as they were written.

A struct column of Arrow gives every object the fields of all: a tool call would get the arguments of other tool calls,
as nulls that nobody wrote. The `Json` feature of `datasets` keeps each object apart as JSON text, but reads and writes
it with a parser that takes 1.7 for 1.7000000000000002 and keeps ten digits of a number.
"""

import json
import warnings
from dataclasses import dataclass, field
from typing import Any

import datasets
from datasets.features.features import register_feature


@dataclass
class ExactJson(datasets.Json):
    """`datasets.Json` for objects, whose numbers come back as they were.

    `Dataset.map` writes a column that its function has read with the parser of `datasets`, and so with ten digits a
    number; columns that it has not read stay exact.
    """

    _type: str = field(default="ExactJson", init=False, repr=False)

    def encode_example(self, value: Any) -> str | None:
        """The text that is stored."""
        return None if value is None else json.dumps(value, ensure_ascii=False, allow_nan=False)

    def decode_example(self, value: str | None, token_per_repo_id: dict[str, Any] | None = None) -> Any:
        """The value that was stored."""
        return None if value is None else json.loads(value)


with warnings.catch_warnings():
    # Its warning is that the function is experimental.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(ExactJson, ExactJson.__name__)
