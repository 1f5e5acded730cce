"""What KWiseRewardTrainer refuses or warns of before it trains: what cannot learn, or would be misread."""

import logging
from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pangu_trl.models.reward_model import check_score_of_text
from pangu_trl.models.vocabulary import check_vocabulary

from .config import KWiseRewardConfig

logger = logging.getLogger(__name__)


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
