"""What PPOTrainer fills in where the user left it open; `checks` has refused what cannot be by then."""

import logging
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pangu_trl.data.answer_end import note_stop_tokens
from pangu_trl.models.padding_free import make_padding_free
from pangu_trl.models.quantised import compute_alike_in_both_modes, is_quantised
from pangu_trl.models.score_head import innermost
from pangu_trl.models.sequence_scores import score_without_padding
from pangu_trl.models.sharding import runs_zero3
from pangu_trl.models.vocabulary import limit_vocabulary

from .actor_critic.policy_value import PolicyAndValue, token_values
from .actor_critic.tiled_head import allow_tiles
from .actor_critic.token_logprobs import completion_logprobs
from .checks import scoring_models
from .config import PPOConfig
from .reward_sources import ModelReward, RewardSource

logger = logging.getLogger(__name__)


def resolve_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a tokenizer without a pad token its end of sequence as one."""
    if tokenizer.pad_token_id is None:
        logger.warning(
            "The tokenizer has no pad token; its eos token pads. Masks keep the two apart. Set tokenizer.pad_token to "
            "silence this."
        )
        tokenizer.pad_token = tokenizer.eos_token


def resolve_model_pad_tokens(
    models: PolicyAndValue, rewards: list[RewardSource], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Tells critic and reward models the pad token of their tokenizer where their configuration has none.

    A sequence classification model finds the end of a text by it.
    """
    for _, model, its_tokenizer in scoring_models(models, rewards, tokenizer):
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = its_tokenizer.pad_token_id


def resolve_quantised(
    policy: nn.Module, value_model: nn.Module | None, ref_model: nn.Module | None, rewards: list[RewardSource]
) -> None:
    """Has quantised layers of all models, as they were passed, score answers as they learn from them."""
    for model in (policy, value_model, ref_model, *(r.model for r in rewards if isinstance(r, ModelReward))):
        if is_quantised(model):
            compute_alike_in_both_modes(model)


def resolve_vocabulary(models: PolicyAndValue, ref_model: nn.Module | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keeps policy and reference to the tokens that the tokenizer knows, as embeddings may be padded, and not alike.

    The policy's generation config gets the tokens that end its answers.
    """
    note_stop_tokens(innermost(models.policy), tokenizer)
    for model in (models.policy, ref_model):
        if model is not None:
            limit_vocabulary(model, tokenizer)


def resolve_checkpointing(args: PPOConfig, models: PolicyAndValue) -> None:
    """Makes gradient checkpoints re-entrant, which a PEFT model under ZeRO-3 needs.

    The other kind compares shapes of saved and recomputed tensors, and ZeRO-3 partitions frozen weights in between.
    """
    learning = (models.policy, getattr(models, "value_model", None))
    if not (args.activation_checkpointing and runs_zero3(args) and any(isinstance(m, PeftModel) for m in learning)):
        return
    options = dict(args.activation_checkpointing_kwargs or {})
    if options.get("use_reentrant") is False:
        logger.warning(
            "PEFT under ZeRO-3 needs re-entrant gradient checkpoints: use_reentrant is set to True. Leave it out of "
            "activation_checkpointing_kwargs to silence this."
        )
    args.activation_checkpointing_kwargs = options | {"use_reentrant": True}


def resolve_padding(
    args: PPOConfig, models: PolicyAndValue, ref_model: nn.Module | None, rewards: list[RewardSource], tiles: bool
) -> None:
    """Has every model score and learn without padding that gives the same figures so; see `padding_free`.

    Args:
        args: Options.
        models: Policy and critic, not wrapped.
        ref_model: The reference, if it is a model of its own.
        rewards: Parts of the reward.
        tiles: Whether many logits may be computed tile by tile, which wants weights that stay between the passes.

    Raises:
        ValueError: `padding_free` is true and a model cannot.
    """
    if args.padding_free is False:
        return
    tokens, mask = torch.tensor([[1, 2, 3, 1], [1, 3, 1, 2]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    answers = torch.tensor([[False, True, True], [False, False, True]])

    def logprobs(model: nn.Module) -> Tensor:
        return completion_logprobs(model, tokens.to(model.device), mask.to(model.device), answers, 1.0)[0][answers]

    def values(model: nn.Module) -> Tensor:
        return token_values(model, tokens.to(model.device), mask.to(model.device), answers)[answers]

    trials = [("policy", models.policy, logprobs), ("ref_model", ref_model, logprobs)]
    trials += [("value_model", getattr(models, "value_model", None), values)]
    trials += [(f"reward {r.name}", r.model, None) for r in rewards if isinstance(r, ModelReward)]
    max_length = args.max_prompt_length + args.max_completion_length
    for name, model, figures in trials:
        if model is None:
            continue
        try:
            if figures is None:
                score_without_padding(model, max_length)
            else:
                make_padding_free(model, max_length, partial(figures, model))
        except ValueError as error:
            if args.padding_free:
                raise ValueError(f"PPOTrainer: {name}: {error}") from error
            logger.info("%s: scored and learnt from with padding: %s", name, error)
        else:
            if tiles and figures is logprobs:
                allow_tiles(model, partial(figures, model))
