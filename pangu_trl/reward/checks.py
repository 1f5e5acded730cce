"""What KWiseRewardTrainer refuses or warns of before it trains: what cannot learn, or would be misread."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pangu_trl.data.streams import column_names
from pangu_trl.models.reward_model import check_score_of_text
from pangu_trl.models.vocabulary import check_vocabulary

from .attributes import COLUMN as ATTRIBUTE_COLUMN
from .config import KWiseRewardConfig

logger = logging.getLogger(__name__)


def check_columns(dataset: Any, args: KWiseRewardConfig, name: str) -> None:
    """Looks at the columns of a set of rankings.

    Raises:
        ValueError: It is no dataset, or has a column that the loss does not know, or lacks one that it needs.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ValueError(
            f"KWiseRewardTrainer: the {name} dataset must be a datasets.Dataset or IterableDataset; got "
            f"{type(dataset).__name__}. Make one of a list with Dataset.from_list."
        )
    columns = column_names(dataset)
    for column in ("margin", "annotator_scores"):
        if column in columns and args.loss_type != "pairwise":
            raise ValueError(
                f"KWiseRewardTrainer: the {name} set has a column {column!r}, which only loss_type 'pairwise' knows; "
                f"got {args.loss_type!r}. Remove the column, or take that loss."
            )
    has_ids, is_encoded = {"chosen_ids", "rejected_ids"} <= set(columns), "response_input_ids" in columns
    if args.attributes and (has_ids or is_encoded and ATTRIBUTE_COLUMN not in columns):
        raise ValueError(
            f"KWiseRewardTrainer: the {name} set holds token ids without values of attributes; give rankings as text "
            "or messages, with a column for each attribute."
        )


def check_rankings(scores: Iterable[Sequence[float]], name: str) -> None:
    """Looks for answers to one prompt that have different scores.

    Args:
        scores: Of each ranking.
        name: What the trainer calls the set, "train" the one that it learns from.

    Raises:
        ValueError: There are none.
    """
    if any(min(group) < max(group) for group in scores):
        return
    if name == "train":
        what, cure = "learn", "Look at the scores: all may be ties, or of an unset column"
    else:
        what, cure = "measure", "Leave the set out"
    raise ValueError(
        f"KWiseRewardTrainer: the {name} set has no prompt with two answers of different scores, so there is nothing "
        f"to {what}. {cure}."
    )


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: KWiseRewardConfig) -> None:
    """Looks at a reward model once RewardTrainer has given it its pad token and adapter.

    Args:
        model: The sequence classification model, not wrapped.
        tokenizer: Its tokenizer.
        args: Options.

    Raises:
        ValueError: The tokenizer has tokens beyond the embedding, or a quantised base computes in another dtype than
            its adapter and head.
    """
    check_vocabulary(model, tokenizer, "KWiseRewardTrainer")
    check_score_of_text("KWiseRewardTrainer: the model", model, tokenizer.pad_token_id)
    is_quantised = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    dtype = model.get_input_embeddings().weight.dtype
    if is_quantised and dtype != torch.bfloat16 and not (args.bf16 or args.fp16):
        raise ValueError(
            "KWiseRewardTrainer: RewardTrainer keeps adapter and head on a quantised base in bfloat16, what the base "
            f"computes here is {dtype}. Set bf16 to true, or load the model with dtype bfloat16."
        )
    head = getattr(model, "score", None)
    if head is not None and not any(parameter.requires_grad for parameter in head.parameters()):
        logger.warning(
            "The score head is frozen; if it is new, it stays random. With PEFT set task_type='SEQ_CLS', or name "
            "'score' in modules_to_save. Training it too silences this."
        )
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        logger.warning(
            "The tokenizer pads with its end of sequence, %s. pangu_trl reads scores there all the same, by the mask; "
            "transformers alone takes the token before. Set tokenizer.pad_token to another one to silence this.",
            tokenizer.eos_token,
        )
