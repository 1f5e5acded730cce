"""Rankings of every form as the reward trainer learns from them: token ids, with scores and what else is annotated."""

import sys

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from pangu_trl.data.loading import origin_of
from pangu_trl.data.streams import EncodedStream, column_names, read_whole
from pangu_trl.data.tokenized_datasets import tokenize_rankings
from pangu_trl.runs.streaming import is_stream

from .attributes import with_attribute_scores
from .checks import check_columns, check_rankings
from .config import KWiseRewardConfig
from .implicit_prompts import canonical_ranking
from .tokenized_pairs import rankings_from_ids

# What the set of `predict` is called; unlike the others it need not have a better and a worse answer.
PREDICTED = "test"


def prepare_rankings(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    args: KWiseRewardConfig,
    name: str,
    is_learnt_stream: bool,
) -> Dataset | IterableDataset:
    """Brings a set into the columns that `RankingCollator` takes.

    Args:
        dataset: Rankings as text or messages, as pairs, as token ids, or prepared already.
        tokenizer: Encodes them.
        args: Options.
        name: What the trainer calls the set, "train" the one that it learns from.
        is_learnt_stream: Whether the set is a stream that is learnt from, record by record; other streams are read
            whole, since figures are over the whole set, on several ranks without a ranking twice.

    Raises:
        ValueError: The set cannot be learnt from or measured; the message says why.
    """
    check_columns(dataset, args, name)
    columns, origin = column_names(dataset), origin_of(dataset)
    is_encoded, has_ids = "response_input_ids" in columns, {"chosen_ids", "rejected_ids"} <= set(columns)
    max_length = sys.maxsize if args.max_length is None else args.max_length
    with PartialState().local_main_process_first():
        if not is_encoded and not has_ids and (origin is None or origin.kind != "ranking"):
            dataset = dataset.map(canonical_ranking, with_indices=True, fn_kwargs={"source": name})
        if args.attributes and not is_encoded:
            dataset = with_attribute_scores(dataset, args.attributes, name)
        if is_stream(dataset) and not is_learnt_stream:
            dataset = read_whole(dataset, None, name)
        if is_encoded:
            return EncodedStream(dataset, dict, None, "rankings").dataset() if is_learnt_stream else dataset
        if has_ids:
            return rankings_from_ids(dataset, max_length, name, args.dataset_num_proc)
        try:
            dataset = tokenize_rankings(dataset, tokenizer, max_length, num_proc=args.dataset_num_proc)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
    if name != PREDICTED and not is_learnt_stream:
        check_rankings(dataset["scores"], name)
    return dataset
