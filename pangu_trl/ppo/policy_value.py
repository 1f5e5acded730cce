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
from torch.nn.modules.dropout import _DropoutNd
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

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Adds to a model card what PEFT says there of an adapter; the Trainer calls it after a LoRA run."""
        self.policy.create_or_update_model_card(output_dir)

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
        model = innermost(self.value_model)
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


def position_arguments(model: nn.Module, attention_mask: Tensor) -> dict[str, Tensor]:
    """Positions that count real tokens only, for the models that take positions.

    Many models count from the first column when they get a mask without positions, which moves a left-padded row to
    other positions than `generate` used for it.
    """
    if "position_ids" not in inspect.signature(innermost(model).forward).parameters:
        return {}
    return {"position_ids": (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)}


def innermost(model: nn.Module) -> nn.Module:
    """The transformers model inside an engine and an adapter."""
    model = getattr(model, "module", model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


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
    """Sets every dropout to 0: with dropout the ratio of new to old probabilities is noise from the first step on.

    Modules of dropout and, for the models that call dropout as a function, attributes that hold its probability
    (`dropout`, `attention_dropout`, `resid_pdrop`, `layerdrop`, ...).
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)


def parameter_groups(
    model: nn.Module, learning_rates: dict[str, float], decayed: set[str], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of an optimiser that give each part of the model (`policy`, `value_model`) its own learning rate.

    Args:
        model: PolicyAndValue, possibly wrapped by an engine that keeps the names.
        learning_rates: Learning rate of each part.
        decayed: Names of the parameters that `weight_decay` applies to.
        weight_decay: Weight decay of those.
    """
    groups = []
    for part, learning_rate in learning_rates.items():
        for decay in (True, False):
            parameters = [
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad and name.startswith(f"{part}.") and (name in decayed) == decay
            ]
            if parameters:
                group_decay = weight_decay if decay else 0.0
                groups.append({"params": parameters, "lr": learning_rate, "weight_decay": group_decay})
    return groups
