"""Which data a recipe reads."""

from dataclasses import dataclass, field

from accelerate import PartialState
from datasets import Dataset

from .formats import FORMATS
from .loading import load_records
from .typed_tokens import MODE_COLUMN, check_mode

FORMS = "a file of records, a .md data card or mixture of them, a folder or a Hub dataset"


@dataclass
class DataArguments:
    """Sources of a recipe's records."""

    train_data: str = field(default="", metadata={"help": f"Training records: {FORMS}."})
    eval_data: str | None = field(
        default=None, metadata={"help": "Held-out records, in the same forms. Default: no evaluation."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of train_data to read."})
    eval_split: str = field(default="train", metadata={"help": "Split of eval_data to read (a file is all 'train')."})

    train_format: str | None = field(
        default=None,
        metadata={
            "help": "Public format of the rows of train_data, where it is no data card. Default: the columns are ours.",
            "choices": list(FORMATS),
        },
    )
    eval_format: str | None = field(
        default=None, metadata={"help": "The same for eval_data.", "choices": list(FORMATS)}
    )

    special_tokens_in_text: str | None = field(
        default=None,
        metadata={
            "help": "What becomes of special tokens that the texts of the records spell, such as an end of sequence "
            "that a user typed: split (ordinary text), refuse (an error) or keep (the special token). Default: what "
            "the data card or the record says, otherwise split."
        },
    )

    def __post_init__(self) -> None:
        if self.special_tokens_in_text is not None:
            check_mode(self.special_tokens_in_text, MODE_COLUMN)
        if not self.train_data:
            raise ValueError(f"train_data is required: {FORMS}.")
        for name in ("train_data", "eval_data"):
            source = getattr(self, name)
            # A YAML file may hold a list, which the parser hands on.
            if source is not None and not isinstance(source, str):
                raise ValueError(
                    f"{name} must be one source: {FORMS}; got {source!r}. "
                    "Put several files into a folder, or name the sources in a mixture card, see data_cards/README.md."
                )

    def load(self, kind: str) -> tuple[Dataset, Dataset | None]:
        """Loads and validates training and held-out records of one kind; the latter may be None."""
        # One process of a machine does the work, the others read its cache.
        with PartialState().local_main_process_first():
            train_dataset = self.load_source(self.train_data, kind, self.train_split, self.train_format)
            eval_dataset = (
                self.load_source(self.eval_data, kind, self.eval_split, self.eval_format) if self.eval_data else None
            )
        return train_dataset, eval_dataset

    def load_source(self, source: str, kind: str, split: str, data_format: str | None = None) -> Dataset:
        """Loads and validates records of one more source under the same options."""
        return load_records(source, kind, split, data_format, self.special_tokens_in_text)
