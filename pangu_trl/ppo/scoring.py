"""Everything that is known of answers before learning starts: scores, log-probabilities, values."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pangu_trl.data.answer_end import answer_end

from .actor_critic.token_logprobs import completion_logprobs
from .reward_sources import RewardSource, StepReward
from .rollout import Rollout


def score_completions(
    sources: list[RewardSource],
    models: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rollout: Rollout,
    examples: list[dict[str, Any]],
    batch_size: int,
) -> Tensor:
    """Scores whole answers by every source.

    Args:
        sources: S parts of the reward.
        models: PolicyAndValue, as its engine wraps it; the source on its backbone scores through it.
        tokenizer: The policy's; decodes for the message.
        rollout: N answers.
        examples: The prompt records that were answered, one per answer.
        batch_size: Answers per forward pass of a model.

    Returns:
        Scores (N, S) in float32, before weights. Those of process rewards are sums over the steps, whose weighted
        scores are filled in as `rollout.step_rewards`.

    Raises:
        ValueError: A score is NaN or infinite, or a function returns another number of scores than answers; the
            message shows the prompt and the answer.
    """
    answered, rollout = rollout, rollout.with_ends(_known_ends(tokenizer, rollout, examples))
    columns = []
    for source in sources:
        if isinstance(source, StepReward):
            steps = source.score_tokens(rollout, examples)
            earlier = 0.0 if answered.step_rewards is None else answered.step_rewards
            answered.step_rewards = earlier + source.weight * steps
            scores = steps.sum(dim=1)
        else:
            scores = source.score(models, rollout, examples, batch_size)
        _check_finite(source.name, scores, tokenizer, rollout, examples)
        columns.append(scores)
    return torch.stack(columns, dim=1)


def _known_ends(tokenizer: PreTrainedTokenizerBase, rollout: Rollout, examples: list[dict[str, Any]]) -> Tensor:
    """The token that ended the training answers to prompts like these, (N,); of prompts given as ids the answer's own.

    A policy may stop at any of several tokens.
    """
    ends = {is_chat: answer_end(tokenizer, is_chat) for is_chat in (False, True)}
    tokens = [
        ids[-1] if "input_ids" in example else ends[not isinstance(example["prompt"], str)]
        for ids, example in zip(rollout.completions(), examples, strict=True)
    ]
    return torch.tensor(tokens, device=rollout.input_ids.device)


def _check_finite(
    name: str, scores: Tensor, tokenizer: PreTrainedTokenizerBase, rollout: Rollout, examples: list[dict[str, Any]]
) -> None:
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        answer = tokenizer.decode(rollout.completions()[bad[0]])
        raise ValueError(
            f"The reward ({name}) of {len(bad)} of {len(scores)} answers is not a finite number; the first is "
            f"{scores[bad[0]].item()} for prompt {examples[bad[0]]['prompt']!r} and answer {answer!r}. No update was "
            "made with them. Check the reward model's weights (a half-loaded or fp16 model often gives NaN)."
        )


def combine_scores(scores: Tensor, sources: list[RewardSource], combination: str, std_coef: float) -> Tensor:
    """One score of each answer (N,) from those of the sources (N, S).

    Args:
        scores: Of each source, before its weight.
        sources: The sources.
        combination: `sum`, of the weighted scores; of an ensemble, whose members have one scale, `minimum`, or
            `mean_minus_std`, the mean minus `std_coef` population standard deviations (arXiv:2310.02743).
        std_coef: See there.
    """
    if combination == "minimum":
        return scores.amin(dim=1)
    if combination == "mean_minus_std":
        return scores.mean(dim=1) - std_coef * scores.std(dim=1, correction=0)
    return scores @ scores.new_tensor([source.weight for source in sources])


def score_tokens(
    models: nn.Module,
    ref_model: nn.Module | None,
    rollout: Rollout,
    batches: list[Tensor],
    temperature: float,
    asks_reference: bool = True,
) -> None:
    """Fills in log-probabilities of policy and reference, entropy and values of the answer tokens.

    Args:
        models: PolicyAndValue, as its engine wraps it.
        ref_model: The reference; None takes the policy with its adapter off.
        rollout: N answers.
        batches: Rows of each forward pass, every row once.
        temperature: As when the answers were sampled.
        asks_reference: Whether the reference's log-probabilities are wanted.
    """
    for rows in batches:
        batch = rollout.select(rows)
        arguments = (batch.input_ids, batch.attention_mask, batch.completion_mask, temperature)
        with torch.no_grad():
            outputs = models(*arguments)
            if asks_reference and ref_model is None:
                outputs["ref_logprobs"] = models(*arguments, part="reference")["logprobs"]
            elif asks_reference:
                outputs["ref_logprobs"], _ = completion_logprobs(ref_model, *arguments)
        for name, tensor in outputs.items():
            if getattr(rollout, name) is None:
                setattr(rollout, name, tensor.new_zeros(rollout.completion_mask.shape))
            getattr(rollout, name)[rows] = rollout.in_place_of(rows, tensor)
