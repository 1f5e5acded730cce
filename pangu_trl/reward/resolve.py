"""What KWiseRewardTrainer fills in where the user left it open."""

import logging

from torch import nn

from pangu_trl.models.sequence_scores import score_without_padding

from .config import KWiseRewardConfig

logger = logging.getLogger(__name__)


def resolve_padding(args: KWiseRewardConfig, model: nn.Module) -> None:
    """Has the model score without padding if that gives the same scores; see `padding_free`.

    Args:
        args: Options.
        model: The reward model, with its adapter, not wrapped.

    Raises:
        ValueError: `padding_free` is true and the model cannot.
    """
    if args.padding_free is False or args.prefix_sharing or args.pad_to_multiple_of is not None:
        return
    try:
        score_without_padding(model, args.max_length, scores_padding=args.loss_type == "tokenwise")
    except ValueError as error:
        if args.padding_free:
            raise ValueError(f"KWiseRewardTrainer: {error}") from error
        logger.info("Answers are scored and learnt from with padding: %s", error)
