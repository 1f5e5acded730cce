"""The policy's weights as a plain transformers model has them: whole, without PEFT's names, with the LoRA added."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from pangu_trl.models.adapter_selection import active_adapter, can_merge
from pangu_trl.models.score_head import innermost
from pangu_trl.models.sharding import gathered, whole_shape


@dataclass(frozen=True)
class PlainWeight:
    """A weight of the policy.

    Attributes:
        name: Its name in the model without PEFT.
        parameter: What this rank holds of it.
        lora: The layer whose adapter belongs to it, if there is one.
        adapter: Name of the policy's adapter.
    """

    name: str
    parameter: nn.Parameter
    lora: LoraLayer | None
    adapter: str | None

    @property
    def announcement(self) -> tuple[str, str, list[int]]:
        """Name, dtype and shape of the whole weight, of which nothing needs to be gathered for that."""
        return self.name, str(self.parameter.dtype).removeprefix("torch."), list(whole_shape(self.parameter))

    @torch.no_grad()
    def read(self) -> Tensor:
        """The whole weight with its LoRA added; under ZeRO-3 all ranks call it together.

        The sum is a new tensor, so that the base weight keeps its bits.
        """
        parts = [self.parameter]
        if self.lora is not None:
            parts += [part[self.adapter].weight for part in (self.lora.lora_A, self.lora.lora_B)]
        with gathered(parts):
            if self.lora is None:
                return self.parameter.detach()
            return self.parameter.detach().clone().add_(self.lora.get_delta_weight(self.adapter))


def plain_weights(policy: nn.Module) -> list[PlainWeight]:
    """All weights of a policy, unwrapped; one that two modules share stands once, under its first name.

    Under FSDP2 the list holds only while the policy is whole (see `whole_weights`).
    """
    model = innermost(policy)
    adapter = active_adapter(policy) if isinstance(policy, PeftModel) else None
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and adapter in module.lora_A]
    lora_of = {id(layer.get_base_layer().weight): layer for layer in layers}
    # Also those of critic and reward model, where they are adapters of the same base.
    adapter_mark = policy.base_model.prefix if isinstance(policy, PeftModel) else None
    return [
        PlainWeight(name.replace(".base_layer.", "."), parameter, lora_of.get(id(parameter)), adapter)
        for name, parameter in model.named_parameters()
        if adapter_mark is None or adapter_mark not in name
    ]


def check_plain_weights(policy: nn.Module) -> None:
    """Refuses a policy whose adapter is more than can be added to the base weights.

    Raises:
        ValueError: The message names the parts.
    """
    if not isinstance(policy, PeftModel):
        return
    adapter, embedding = active_adapter(policy), policy.get_input_embeddings().weight
    refused = []
    for name, module in innermost(policy).named_modules():
        if isinstance(module, LoraLayer):
            has_adapter = adapter in module.lora_A or adapter in module.lora_embedding_A
            if has_adapter and not can_merge(module, adapter, embedding):
                refused.append(name)
        elif isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            refused.append(name)
    if refused:
        raise ValueError(
            "PPOTrainer: rollout_engine='vllm' sends vLLM the base weights with the policy's LoRA added, and "
            f"these parts of the adapter cannot be added: {', '.join(refused)}. Use LoRA on linear layers without "
            "DoRA, lora_bias, modules_to_save and quantisation, and not on a head that is tied to the embedding; or "
            "leave out rollout_engine."
        )
