"""Training on a stream: what it needs, what it cannot have, and what it says at its end."""

import logging
from typing import Any

from datasets import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from pangu_trl.data.streams import EncodedStream

logger = logging.getLogger(__name__)

# Refused with a stream: option, values that are fine, why not, and what to do.
_UNFIT: list[tuple[str, tuple[Any, ...], str, str]] = [
    ("packing", (False, None), "fills rows from records that are all there", "leave it out"),
    (
        "train_sampling_strategy",
        ("random", "sequential", None),
        "needs the lengths of all records",
        "leave it out; streaming_buffer shuffles",
    ),
    ("dataloader_num_workers", (0, 1), "would cut the stream into parts", "set it to 0 or 1"),
    ("ignore_data_skip", (False,), "would begin the stream again at a resume", "leave it out"),
]


def is_stream(dataset: Any) -> bool:
    """Whether records come one by one."""
    return isinstance(dataset, IterableDataset)


def resolve_stream(args: TrainingArguments, trainer: str) -> None:
    """Refuses options that training on a stream cannot follow, and fills in what was left open.

    Every process reads the whole stream itself and takes its share, in the order of the stream.

    Args:
        args: Options of the run.
        trainer: Begins the messages.

    Raises:
        ValueError: The number of steps is open, or an option needs all records at once; the message says which.
    """
    if args.max_steps <= 0:
        raise ValueError(
            f"{trainer}: max_steps is required with a stream of training records, which has no length to count epochs "
            f"by; got {args.max_steps}. Set max_steps, or load the records without streaming."
        )
    if getattr(args, "sampling_is_open", False):
        args.train_sampling_strategy = "sequential"
    for name, fine, reason, cure in _UNFIT:
        value = getattr(args, name, fine[0])
        if value not in fine:
            raise ValueError(f"{trainer}: {name} cannot be {value!r} with a stream: it {reason}. Please {cure}.")
    if args.accelerator_config.dispatch_batches or args.accelerator_config.split_batches:
        raise ValueError(
            f"{trainer}: accelerator_config's dispatch_batches and split_batches must be off with a stream, which "
            "every process reads for itself. Leave them out."
        )
    args.accelerator_config.dispatch_batches = False


def order_seed(args: TrainingArguments) -> int:
    """The seed of the order of the training data."""
    return args.seed if args.data_seed is None else args.data_seed


class ReportStreams(TrainerCallback):
    """Says at the end of training what became of the records of its streams."""

    def __init__(self, *streams: EncodedStream) -> None:
        self.streams = streams

    def on_train_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """On one process, since all read the same."""
        if args.process_index == 0:
            for stream in self.streams:
                level = logging.WARNING if stream.totals[1] else logging.INFO
                logger.log(level, "At the end of training: %s.", stream.describe())


def report_streams(trainer: Trainer, *datasets: Any) -> None:
    """Has a trainer say at its end how many records of its streams were too long; other datasets are left alone."""
    streams = [dataset.encoded_stream for dataset in datasets if hasattr(dataset, "encoded_stream")]
    if streams:
        trainer.add_callback(ReportStreams(*streams))
