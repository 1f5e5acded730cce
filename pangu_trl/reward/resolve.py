"""How KWiseRewardTrainer has its model score answers: checked, and filled in where the user left it open."""

import logging

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from pangu_trl.models.adapter_kinds import check_adapter_method
from pangu_trl.models.loading import name_base_for_good
from pangu_trl.models.quantised import compute_alike_in_both_modes, is_quantised
from pangu_trl.models.score_head import innermost
from pangu_trl.models.sequence_scores import score_without_padding

from .checks import check_model
from .config import KWiseRewardConfig
from .language_model import check_language_model
from .prefix_sharing import enable_prefix_sharing

logger = logging.getLogger(__name__)


def resolve_scoring(
    args: KWiseRewardConfig, model: nn.Module, tokenizer: PreTrainedTokenizerBase, shards_weights: bool
) -> None:
    """Readies a reward model once RewardTrainer has given it its pad token and adapter.

    Args:
        args: Options.
        model: The sequence classification model, with its adapter, not wrapped.
        tokenizer: Its tokenizer.
        shards_weights: Whether ZeRO-3 or FSDP does.

    Raises:
        ValueError: The model cannot learn, or cannot score in a way that was asked for.
    """
    if isinstance(model, PeftModel):
        check_adapter_method("KWiseRewardTrainer: the model", model.active_peft_config)
        name_base_for_good(model)
    check_model(innermost(model), tokenizer, args)
    if args.lm_coefficient is not None:
        check_language_model(innermost(model), shards_weights)
    if is_quantised(model):
        compute_alike_in_both_modes(model)
    if args.prefix_sharing:
        enable_prefix_sharing(innermost(model), args.max_length)
    else:
        resolve_padding(args, model)


def resolve_padding(args: KWiseRewardConfig, model: nn.Module) -> None:
    """Has the model score without padding if that gives the same scores; see `padding_free`.

    Args:
        args: Options.
        model: The reward model, with its adapter, not wrapped.

    Raises:
        ValueError: `padding_free` is true and the model cannot.
    """
    if args.padding_free is False or args.pad_to_multiple_of is not None:
        return
    try:
        score_without_padding(model, args.max_length, scores_padding=args.loss_type == "tokenwise")
    except ValueError as error:
        if args.padding_free:
            raise ValueError(f"KWiseRewardTrainer: {error}") from error
        logger.info("Answers are scored and learnt from with padding: %s", error)
