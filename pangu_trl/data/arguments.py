"""Which data a recipe reads."""

import logging
from dataclasses import dataclass, field

from accelerate import PartialState
from datasets import Dataset, IterableDataset

from .formats import FORMATS
from .loading import load_records
from .streams import stream_records
from .typed_tokens import MODE_COLUMN, check_mode

logger = logging.getLogger(__name__)

DEFAULT_BUFFER = 1000
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

    dataset_streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training records (and ptx_data) as they are needed, instead of whole before the work: "
            "for sources larger than the disk, or without an end. Needs max_steps; docs/data.md says what else."
        },
    )
    streaming_buffer: int | None = field(
        default=None,
        metadata={
            "help": "With dataset_streaming: records that are shuffled among themselves as they pass; 0 keeps the "
            f"order of the source. Default: {DEFAULT_BUFFER}."
        },
    )

    def __post_init__(self) -> None:
        if self.streaming_buffer is not None and not self.dataset_streaming:
            raise ValueError("streaming_buffer has no effect without dataset_streaming; leave it out.")
        if self.streaming_buffer is not None and self.streaming_buffer < 0:
            raise ValueError(f"streaming_buffer must be 0 or more; got {self.streaming_buffer}.")
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

    def load(self, kind: str, seed: int = 0) -> tuple[Dataset | IterableDataset, Dataset | None]:
        """Loads and validates training and held-out records of one kind; the latter may be None.

        With `dataset_streaming` the training records are a stream, in an order by the seed; the held-out ones are
        whole, since figures are over all of them.
        """
        if (self.eval_data, self.eval_split, self.eval_format) == (
            self.train_data,
            self.train_split,
            self.train_format,
        ):
            logger.warning(
                "eval_data is train_data: its figures are of what was learnt, and of nothing held out. `pangu-trl "
                "check-data FILE --against OTHER` counts the records that two sources share."
            )
        # One process of a machine does the work, the others read its cache.
        with PartialState().local_main_process_first():
            train_dataset = self.load_training(self.train_data, kind, self.train_split, self.train_format, seed)
            eval_dataset = None
            if self.eval_data:
                eval_dataset = load_records(
                    self.eval_data, kind, self.eval_split, self.eval_format, self.special_tokens_in_text
                )
        return train_dataset, eval_dataset

    def load_training(
        self, source: str, kind: str, split: str, data_format: str | None = None, seed: int = 0
    ) -> Dataset | IterableDataset:
        """Loads and validates records of one more source to learn from, under the same options."""
        if not self.dataset_streaming:
            return load_records(source, kind, split, data_format, self.special_tokens_in_text)
        buffer = DEFAULT_BUFFER if self.streaming_buffer is None else self.streaming_buffer
        return stream_records(source, kind, split, data_format, self.special_tokens_in_text, seed, buffer)

    def refuse_streaming(self, stage: str) -> None:
        """Refuses `dataset_streaming` for a stage that reads its records more than once.

        Raises:
            ValueError: It is set.
        """
        if self.dataset_streaming:
            raise ValueError(
                f"dataset_streaming: {stage} needs its records whole. Leave it out; streams are for SFT, the reward "
                "model, PPO and its ptx_data."
            )
