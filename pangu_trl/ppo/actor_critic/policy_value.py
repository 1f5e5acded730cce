"""Policy and critic in one module, so that one engine (DDP, DeepSpeed, FSDP) and one optimiser hold both."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from pangu_trl.models.adapter_selection import (
    REWARD_ADAPTER,
    VALUE_ADAPTER,
    pin_adapter_for_recompute,
    selected_adapter,
)
from pangu_trl.models.modes import evaluation_mode
from pangu_trl.models.score_head import at_last_token, innermost, padded_on_the_right, position_arguments
from pangu_trl.models.sharding import is_sharded
from pangu_trl.models.vocabulary import known_ids


class PolicyAndValue(nn.Module):
    """A causal language model that acts, and what gives its states values.

    The critic is one of three:
      - a model of its own: a sequence classification model, whose score head gives the values (`value_model`);
      - a head on the hidden states of the policy itself, from the same pass (`value_head`);
      - an adapter and a head on the policy's base model (`value_head`, and the adapter VALUE_ADAPTER of the policy).

    In the last case the adapter REWARD_ADAPTER and `reward_head` may be the reward model, so that one backbone serves
    policy, critic, reward model and reference.

    Args:
        policy: Causal language model, possibly with PEFT adapters.
        value_model: Sequence classification model with one label, possibly with a PEFT adapter.
        value_head: Linear layer from hidden states to one value, instead of `value_model`.
        reward_head: Linear layer from hidden states to one score.
    """

    # Tells the Trainer that `forward` does not divide a loss by num_items_in_batch.
    accepts_loss_kwargs = False

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        value_model: PreTrainedModel | PeftModel | None = None,
        value_head: nn.Linear | None = None,
        reward_head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        # Only what there is becomes a module, so that names in a state dict say which critic it is.
        if value_model is not None:
            self.value_model = value_model
        if value_head is not None:
            self.value_head = value_head
        if reward_head is not None:
            self.reward_head = reward_head

    @property
    def config(self) -> Any:
        """Configuration of the policy, which the Trainer and DeepSpeed's automatic settings read."""
        return self.policy.config

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the blocks of all models, which FSDP shards one by one; otherwise it would fetch all at once."""
        models = [innermost(model) for model in (self.policy, getattr(self, "value_model", None)) if model is not None]
        return sorted({name for model in models for name in model._no_split_modules or []})

    @property
    def generation_config(self) -> Any:
        """Generation settings of the policy."""
        return self.policy.generation_config

    @property
    def has_value_adapter(self) -> bool:
        """Whether the critic is an adapter on the policy's base model."""
        return isinstance(self.policy, PeftModel) and VALUE_ADAPTER in self.policy.peft_config

    def is_critic(self, name: str) -> bool:
        """Whether the parameter of this name belongs to the critic."""
        return name.startswith(("value_model.", "value_head.")) or f".{VALUE_ADAPTER}" in name

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recomputes activations in the backward pass, in all models."""
        for model in (self.policy, getattr(self, "value_model", None)):
            if model is None:
                continue
            model.activation_checkpointing_enable(**kwargs)
            if isinstance(model, PeftModel):
                # The embeddings are frozen; re-entrant checkpoints need an input that asks for a gradient.
                model.enable_input_require_grads()
                pin_adapter_for_recompute(model)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Adds to a model card what PEFT says there of an adapter; the Trainer calls it after a LoRA run."""
        self.policy.create_or_update_model_card(output_dir)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_completion_tokens: int = 0,
        temperature: float = 1.0,
        part: Literal["policy_and_value", "reference", "reward"] = "policy_and_value",
        text_batch: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Scores the answer tokens of whole sequences, or the sequences as a whole.

        One method for all passes, since an engine prepares the weights for `forward` only.

        Args:
            input_ids: Prompt and answer, padded on the left, (B, T).
            attention_mask: 1 for real tokens, (B, T).
            num_completion_tokens: Tokens of the longest answer, C; answers are the last columns.
            temperature: Divides the logits, as when the answer was sampled.
            part: Policy and critic; the policy's base model without adapters; or the reward adapter.
            text_batch: Token ids, attention mask and labelled places (bool) of texts, (B, T) each, on which the
                policy's language-model loss is computed in the same pass.

        Returns:
            For policy and reference `logprobs` and `entropy` (B, C) in float32 nats; for policy and critic also
            `values` (B, C), the value of the state before each answer token, and with `text_batch` `text_loss`, the
            summed loss of its labelled tokens; for the reward adapter `scores` (B,).
        """
        if part == "reward":
            # As `sequence_scores` reads a reward model of its own.
            input_ids, attention_mask = padded_on_the_right(input_ids, attention_mask)
            with selected_adapter(self.policy, REWARD_ADAPTER):
                hidden_states = _hidden_states(self.policy, input_ids, attention_mask, own_positions=True)
            scores = _read(self.reward_head, at_last_token(hidden_states, attention_mask))
            return {"scores": scores.squeeze(-1).float()}
        with selected_adapter(self.policy, None) if part == "reference" else nullcontext():
            with _head_inputs(self.policy) as head_inputs:
                logprobs, entropy = completion_logprobs(
                    self.policy, input_ids, attention_mask, num_completion_tokens, temperature
                )
        outputs = {"logprobs": logprobs, "entropy": entropy}
        if part == "policy_and_value":
            before_answer_tokens = slice(-num_completion_tokens - 1, -1)
            outputs["values"] = self._values(input_ids, attention_mask, before_answer_tokens, head_inputs[0])
            if text_batch is not None:
                outputs["text_loss"] = self._text_loss(*text_batch)
        return outputs

    def _values(self, input_ids: Tensor, attention_mask: Tensor, places: slice, policy_states: Tensor) -> Tensor:
        if hasattr(self, "value_model"):
            hidden_states, head = _hidden_states(self.value_model, input_ids, attention_mask), self.value_model.score
        elif self.has_value_adapter:
            with selected_adapter(self.policy, VALUE_ADAPTER):
                hidden_states = _hidden_states(self.policy, input_ids, attention_mask)
            head = self.value_head
        else:
            hidden_states, head = policy_states, self.value_head
        return _read(head, hidden_states[:, places]).squeeze(-1).float()

    def _text_loss(self, input_ids: Tensor, attention_mask: Tensor, label_mask: Tensor) -> Tensor:
        """Summed negative log-likelihood of the labelled tokens; the first token of a text has no prediction."""
        logprobs, _ = completion_logprobs(self.policy, input_ids, attention_mask, input_ids.shape[1] - 1, 1.0)
        return -torch.where(label_mask[:, 1:], logprobs, 0.0).sum()


def completion_logprobs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, num_completion_tokens: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token and entropy of its distribution, both (B, C) in float32 nats.

    Arguments as in `PolicyAndValue.forward`; the logits of the prompt are never computed. The distribution is over
    `known_ids`, from which answers are sampled.
    """
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_cache=False,
        logits_to_keep=num_completion_tokens + 1,
        **position_arguments(model, attention_mask),
    ).logits[:, :-1, : known_ids(model)]
    return _token_logprobs(logits, input_ids, temperature)


@torch.no_grad()
def wrong_reading(model: nn.Module, text: list[int], pad_token_id: int) -> str | None:
    """What a policy reads of a text that it must not: padding before it, or later tokens; None if neither.

    Some models take padding into their recurrent state, and encoders see what is still to be said. None as well where
    it cannot be tried, as with sharded weights or an attention that the model's device has not.

    Args:
        model: Causal language model.
        text: A few token ids.
        pad_token_id: Stands before the text.
    """
    if is_sharded(model):
        return None
    num_scored = len(text) - 2
    rows = {
        "": (text[:-1], 0),
        "padding before it": ([pad_token_id] * 3 + text[:-1], 3),
        "the tokens behind it": (text, 0),
    }
    found = {}
    with evaluation_mode(model):
        for what, (row, num_pads) in rows.items():
            ids = torch.tensor([row], device=model.device)
            mask = torch.tensor([[0] * num_pads + [1] * (len(row) - num_pads)], device=model.device)
            try:
                logprobs, _ = completion_logprobs(model, ids, mask, len(row) - num_pads - 1, 1.0)
            except (RuntimeError, NotImplementedError, ImportError):
                return None
            found[what] = logprobs[0, :num_scored]
    limit = 0.2 if model.dtype.itemsize == 2 else 1e-3
    expected = found.pop("")
    return next((what for what, logprobs in found.items() if (logprobs - expected).abs().max() > limit), None)


def _token_logprobs(logits: Tensor, input_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token and entropy of its distribution, (B, C) each, from logits (B, C, V).

    Row by row, so that what float32, temperature and softmax need on the way is one row's (C, V); of the whole, a
    learning pass keeps one float32 copy at most, and a pass without gradients none.
    """
    logprobs, entropy = [], []
    for row, tokens in zip(logits, input_ids[:, -logits.shape[1] :], strict=True):
        row = row.float()
        if temperature != 1.0:
            row = row / temperature
        normaliser = row.logsumexp(dim=-1)
        logprobs.append(row.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - normaliser)
        with torch.no_grad():
            entropy.append(normaliser - (row.softmax(dim=-1) * row).sum(dim=-1))
    return torch.stack(logprobs), torch.stack(entropy)


def _hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, own_positions: bool = False) -> Tensor:
    """Last hidden states (B, T, H) of the backbone of a model, under the adapter that is selected.

    Rows that begin in the first column may be left to the positions that the model counts by itself.
    """
    model = innermost(model)
    backbone = getattr(model, model.base_model_prefix)
    return backbone(
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_cache=False,
        **({} if own_positions else position_arguments(backbone, attention_mask)),
    ).last_hidden_state


def _read(head: nn.Linear, states: Tensor) -> Tensor:
    """What a head gives for states, which may be of another dtype than a head that learns."""
    return head(states.to(head.weight.dtype))


@contextmanager
def _head_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the hidden states that a causal language model hands to its head: those of the kept logits."""
    inputs: list[Tensor] = []
    head = innermost(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()
