"""Which data a recipe reads."""

from dataclasses import dataclass, field

from accelerate import PartialState
from datasets import Dataset

from .loading import load_records


@dataclass
class DataArguments:
    """Sources of a recipe's records: a `.jsonl` file, a `.md` data card, a folder or a Hub id."""

    train_data: str = field(
        default="", metadata={"help": "Training records: a .jsonl file, a .md data card, a folder or a Hub dataset."}
    )
    eval_data: str | None = field(
        default=None, metadata={"help": "Held-out records, in the same forms. Default: no evaluation."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of train_data to read."})
    eval_split: str = field(
        default="train", metadata={"help": "Split of eval_data to read (a .jsonl file is all 'train')."}
    )

    def __post_init__(self) -> None:
        if not self.train_data:
            raise ValueError("train_data is required: a .jsonl file, a .md data card, a folder or a Hub dataset.")

    def load(self, kind: str) -> tuple[Dataset, Dataset | None]:
        """Loads and validates training and held-out records of one kind; the latter may be None."""
        # One process of a machine does the work, the others read its cache.
        with PartialState().local_main_process_first():
            train_dataset = load_records(self.train_data, kind, self.train_split)
            eval_dataset = load_records(self.eval_data, kind, self.eval_split) if self.eval_data else None
        return train_dataset, eval_dataset
