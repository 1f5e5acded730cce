"""Policy and critic in one module, so that one engine (DDP, DeepSpeed, FSDP) and one optimiser hold both."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel


class PolicyAndValue(nn.Module):
    """A causal language model that acts and a sequence classification model whose score head gives state values.

    Args:
        policy: Causal language model, possibly with a PEFT adapter.
        value_model: Sequence classification model with one label, possibly with a PEFT adapter.
    """

    # Tells the Trainer that `forward` does not divide a loss by num_items_in_batch.
    accepts_loss_kwargs = False

    def __init__(self, policy: PreTrainedModel | PeftModel, value_model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model

    @property
    def config(self) -> Any:
        """Configuration of the policy, which the Trainer and DeepSpeed's automatic settings read."""
        return self.policy.config

    @property
    def generation_config(self) -> Any:
        """Generation settings of the policy."""
        return self.policy.generation_config

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recomputes activations in the backward pass, in both models."""
        for model in (self.policy, self.value_model):
            model.activation_checkpointing_enable(**kwargs)
            if isinstance(model, PeftModel):
                # The embeddings are frozen; re-entrant checkpoints need an input that asks for a gradient.
                model.enable_input_require_grads()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_completion_tokens: int,
        temperature: float,
        use_reference: bool = False,
        with_values: bool = True,
    ) -> dict[str, Tensor]:
        """Scores the answer tokens of whole sequences.

        Args:
            input_ids: Prompt, padded on the left, then answer, padded on the right, (B, T).
            attention_mask: 1 for real tokens, (B, T).
            num_completion_tokens: Columns of the answer, C; they are the last ones.
            temperature: Divides the logits, as when the answer was sampled.
            use_reference: Switches the policy's adapter off for this pass.
            with_values: Whether to run the critic.

        Returns:
            `logprobs` and `entropy` (B, C) in float32 nats, and `values` (B, C): the value of the state before each
            answer token.
        """
        with adapters_disabled(self.policy) if use_reference else nullcontext():
            logprobs, entropy = completion_logprobs(
                self.policy, input_ids, attention_mask, num_completion_tokens, temperature
            )
        outputs = {"logprobs": logprobs, "entropy": entropy}
        if with_values:
            outputs["values"] = self._values(input_ids, attention_mask, num_completion_tokens)
        return outputs

    def _values(self, input_ids: Tensor, attention_mask: Tensor, num_completion_tokens: int) -> Tensor:
        model = self.value_model.get_base_model() if isinstance(self.value_model, PeftModel) else self.value_model
        backbone = getattr(model, model.base_model_prefix)
        hidden_states = backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            **position_arguments(backbone, attention_mask),
        ).last_hidden_state
        return model.score(hidden_states[:, -num_completion_tokens - 1 : -1]).squeeze(-1).float()


def completion_logprobs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, num_completion_tokens: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token and entropy of its distribution, both (B, C) in float32 nats.

    Arguments as in `PolicyAndValue.forward`; the logits of the prompt are never computed.
    """
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_cache=False,
        logits_to_keep=num_completion_tokens + 1,
        **position_arguments(model, attention_mask),
    ).logits[:, :-1]
    return _token_logprobs(logits, input_ids, temperature)


def _token_logprobs(logits: Tensor, input_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token and entropy of its distribution, (B, C) each, from logits (B, C, V)."""
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    tokens = input_ids[:, -logits.shape[1] :]
    normaliser = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - normaliser
    with torch.no_grad():
        # Row by row: a softmax of everything would double the largest tensor of the step.
        expected = torch.stack([(row.softmax(dim=-1) * row).sum(dim=-1) for row in logits])
    return logprobs, normaliser.detach() - expected


def position_arguments(model: nn.Module, attention_mask: Tensor) -> dict[str, Tensor]:
    """Positions that count real tokens only, for the models that take positions.

    Many models count from the first column when they get a mask without positions, which moves a left-padded row to
    other positions than `generate` used for it.
    """
    model = getattr(model, "module", model)
    target = model.get_base_model() if isinstance(model, PeftModel) else model
    if "position_ids" not in inspect.signature(target.forward).parameters:
        return {}
    return {"position_ids": (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)}


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Runs the base model without its adapters, and leaves `requires_grad` alone.

    PEFT's own `disable_adapter` freezes the adapter's parameters on exit, and they silently stop learning.
    """
    layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout to 0: with dropout the ratio of new to old probabilities is noise from the first step on."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
