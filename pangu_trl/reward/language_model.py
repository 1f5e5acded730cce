"""The language-model loss on best answers, beside the score: a regulariser of the backbone (GRM, arXiv:2406.10216).

The reward model keeps its language model's tied head, the word embedding, and goes on predicting the tokens of the best
answer of each prompt from the hidden states that its score is read from, in the same pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from pangu_trl.models.padding_free import token_places

from .answer_scores import compared_tokens
from .config import KWiseRewardConfig
from .losses import has_pair


def check_language_model(model: PreTrainedModel, is_sharded: bool) -> None:
    """Refuses a reward model whose hidden states have no language model's head to go with.

    Raises:
        ValueError: The head is not tied to the embedding, so that it was dropped; or weights are sharded, so that the
            embedding is not whole outside of the model's own pass.
    """
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        raise ValueError(
            f"KWiseRewardTrainer: lm_coefficient needs a model whose output head is its word embedding; that of "
            f"{type(model).__name__} is another one, which a reward model does not keep. Leave lm_coefficient out."
        )
    if is_sharded:
        raise ValueError(
            "KWiseRewardTrainer: lm_coefficient reads the word embedding beside the model's pass, where ZeRO-3 and "
            "FSDP hold only a part of it. Use DDP, ZeRO-1 or ZeRO-2, or leave lm_coefficient out."
        )


@contextmanager
def head_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collects the hidden states (rows, T, H) that the score head gets in each forward pass within the block."""
    collected: list[Tensor] = []
    handle = model.score.register_forward_pre_hook(lambda module, inputs: collected.append(inputs[0]))
    try:
        yield collected
    finally:
        handle.remove()


def best_answer_losses(states: Tensor, places: Tensor, embedding: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the tokens of each prompt's best answer, in nats; its end belongs to them.

    Args:
        states: Hidden states of the N tokens of the pass that scored the batch, (N, H).
        places: Which of them the tokens of the real answers are, one answer a row, (rows, T); see `token_places`.
        embedding: The word embedding, which is the head.
        batch: Of `RankingCollator`.

    Returns:
        (B,); 0 for a prompt without a pair, where no answer is the best.
    """
    mask, labels = batch["answer_mask"], batch["scores"]
    best = labels.masked_fill(~mask, -torch.inf).argmax(dim=1)
    first_rows = mask.sum(dim=1).cumsum(0) - mask.sum(dim=1)
    ranked = has_pair(labels, mask)
    losses = []
    for prompt in range(len(mask)):
        answer = best[prompt]
        start, length = batch["prompt_lengths"][prompt], batch["answer_lengths"][prompt, answer]
        row = first_rows[prompt] + mask[prompt, :answer].sum()
        # A first token without anything before it has no prediction.
        first = start.clamp(min=1)
        tokens = batch["input_ids"][prompt, answer, first : start + length]
        logits = functional.linear(states[places[row, first - 1 : start + length - 1]], embedding.weight)
        mean = functional.cross_entropy(logits.float(), tokens) if len(tokens) else logits.sum()
        losses.append(mean * ranked[prompt])
    return torch.stack(losses)


def language_model_losses(
    model: PreTrainedModel, states: Tensor, batch: dict[str, Tensor], args: KWiseRewardConfig
) -> Tensor:
    """`best_answer_losses` from the states (rows, T, H) that the head of the reward model got in the loss's pass."""
    mask = batch["answer_mask"]
    computed = compared_tokens(batch) if args.loss_type == "tokenwise" else batch["attention_mask"][mask]
    places = token_places(model, computed)
    return best_answer_losses(states.flatten(0, 1), places, model.get_input_embeddings(), batch)


def mean_of_ranked(losses: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean of the losses (B,) over the prompts with a pair."""
    return losses.sum() / has_pair(batch["scores"], batch["answer_mask"]).sum().clamp(min=1)
