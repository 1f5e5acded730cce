"""Policy and critic in one module, so that one engine (DDP, DeepSpeed, FSDP) and one optimiser hold both."""

from contextlib import nullcontext
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
from pangu_trl.models.padding_free import PackedBatch, is_padding_free
from pangu_trl.models.score_head import at_last_token, backbone, innermost, padded_on_the_right, position_arguments

from .token_logprobs import completion_logprobs, in_columns, logprobs_and_states


class PolicyAndValue(nn.Module):
    """A causal language model that acts, and what gives its states values.

    The critic is one of three, or there is none:
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

    @property
    def has_critic(self) -> bool:
        """Whether there is anything that gives values."""
        return hasattr(self, "value_model") or hasattr(self, "value_head")

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
        completion_mask: Tensor | None = None,
        temperature: float = 1.0,
        part: Literal["policy_and_value", "reference", "reward"] = "policy_and_value",
        text_batch: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Scores the answer tokens of whole sequences, or the sequences as a whole.

        One method for all passes, since an engine prepares the weights for `forward` only.

        Args:
            input_ids: Prompt and answer, padded on the left, (B, T).
            attention_mask: 1 for real tokens, (B, T).
            completion_mask: True for answer tokens, (B, C); they are the last columns. Not read for the reward.
            temperature: Divides the logits, as when the answer was sampled.
            part: Policy and critic; the policy's base model without adapters; or the reward adapter.
            text_batch: Token ids, attention mask and labelled places (bool) of texts, (B, T) each, on which the
                policy's language-model loss is computed in the same pass.

        Returns:
            For policy and reference `logprobs` and `entropy` (B, C) in float32 nats; for policy and critic also
            `values` (B, C), the value of the state before each answer token, if there is a critic, and with
            `text_batch` `text_loss`, the summed loss of its labelled tokens; for the reward adapter `scores` (B,). What
            is not of an answer token has no meaning.
        """
        if part == "reward":
            # As `sequence_scores` reads a reward model of its own.
            input_ids, attention_mask = padded_on_the_right(input_ids, attention_mask)
            with selected_adapter(self.policy, REWARD_ADAPTER):
                hidden_states = _hidden_states(self.policy, input_ids, attention_mask, of_reward=True)
            scores = _read(self.reward_head, at_last_token(hidden_states, attention_mask))
            return {"scores": scores.squeeze(-1).float()}
        with selected_adapter(self.policy, None) if part == "reference" else nullcontext():
            logprobs, entropy, states = logprobs_and_states(
                self.policy, input_ids, attention_mask, completion_mask, temperature
            )
        outputs = {"logprobs": logprobs, "entropy": entropy}
        if part == "policy_and_value" and self.has_critic:
            outputs["values"] = self._values(input_ids, attention_mask, completion_mask, states)
        if part == "policy_and_value" and text_batch is not None:
            outputs["text_loss"] = self._text_loss(*text_batch)
        return outputs

    def _values(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, policy_states: Tensor
    ) -> Tensor:
        if hasattr(self, "value_model"):
            return token_values(self.value_model, input_ids, attention_mask, completion_mask)
        if self.has_value_adapter:
            with selected_adapter(self.policy, VALUE_ADAPTER):
                hidden_states = _hidden_states(self.policy, input_ids, attention_mask)
            policy_states = hidden_states[:, -completion_mask.shape[1] - 1 : -1][completion_mask]
        return in_columns(_read(self.value_head, policy_states).squeeze(-1).float(), completion_mask)

    def _text_loss(self, input_ids: Tensor, attention_mask: Tensor, label_mask: Tensor) -> Tensor:
        """Summed negative log-likelihood of the labelled tokens; the first token of a text has no prediction."""
        logprobs, _ = completion_logprobs(self.policy, input_ids, attention_mask, label_mask[:, 1:], 1.0)
        return -torch.where(label_mask[:, 1:], logprobs, 0.0).sum()


def token_values(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
    """Values (B, C) of the states before answer tokens, by a critic of its own; arguments as in `PolicyAndValue`."""
    hidden_states = _hidden_states(model, input_ids, attention_mask)
    return _read(innermost(model).score, hidden_states[:, -completion_mask.shape[1] - 1 : -1]).squeeze(-1).float()


def _hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, of_reward: bool = False) -> Tensor:
    """Last hidden states (B, T, H) of the backbone of a model, under the adapter that is selected.

    Those of the reward are read as `sequence_scores` does: of rows that begin in the first column, with the positions
    that the model counts by itself, and what neighbouring rows begin with is computed once.
    """
    if is_padding_free(model):
        packed = (PackedBatch.sharing if of_reward else PackedBatch.of)(input_ids, attention_mask)
        return backbone(model)(**packed.arguments(model), use_cache=False).last_hidden_state[0][packed.places]
    return backbone(model)(
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_cache=False,
        **({} if of_reward else position_arguments(backbone(model), attention_mask)),
    ).last_hidden_state


def _read(head: nn.Linear, states: Tensor) -> Tensor:
    """What a head gives for states, which may be of another dtype than a head that learns."""
    return head(states.to(head.weight.dtype))
