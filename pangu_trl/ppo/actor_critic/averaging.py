"""Exponential moving average (EMA) of the policy's trainable weights."""

import torch
from peft import PeftModel
from torch import Tensor, nn

from pangu_trl.models.sharding import local_part, master_part, put_together


class WeightAverage:
    """Average of the trainable weights of a policy, in float32, each rank for the part that it holds.

    average <- decay * average + (1 - decay) * weight, after every optimiser step. Of weights in half precision it
    averages DeepSpeed's float32 copies (`master_part`), in which alone small steps add up. Under ZeRO-3 a rank averages
    its own shard of every weight, so nothing is gathered until the average is saved.

    Args:
        policy: The unwrapped policy, after the engine has taken its weights.
        decay: Share of the old average that stays.

    Raises:
        ValueError: The weights are sharded in another way than ZeRO's.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        self.policy, self.decay = policy, decay
        self._parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        if any(hasattr(parameter, "to_local") for parameter in self._parameters.values()):
            raise ValueError("PPOTrainer: ema_decay is not supported under FSDP; leave it out, or use DDP or ZeRO.")
        self._average = {name: master_part(p).clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the current weights."""
        for name, parameter in self._parameters.items():
            self._average[name].lerp_(master_part(parameter), 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's part of the average, by names of the policy's parameters."""
        return {name: tensor.contiguous() for name, tensor in self._average.items()}

    def load_state_dict(self, state: dict[str, Tensor] | None) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            ValueError: It belongs to other parameters.
        """
        if state is None:
            raise ValueError("The checkpoint has no average of the weights; resume with ema_decay unset, as it ran.")
        shapes = {name: tensor.shape for name, tensor in self._average.items()}
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise ValueError(
                f"The saved average has {len(state)} tensors, the policy {len(shapes)} trainable ones, or their sizes "
                "differ. Resume with the model, the adapter and the number of processes of the first run."
            )
        for name, tensor in state.items():
            self._average[name].copy_(tensor)

    def whole_weights(self) -> dict[str, Tensor]:
        """Weights of the averaged policy in the policy's dtypes; of a PEFT model those of the adapter alone.

        All ranks call it, since under ZeRO-3 they put their shards together.
        """
        averaged = {name: put_together(p, self._average[name]).to(p.dtype) for name, p in self._parameters.items()}
        if isinstance(self.policy, PeftModel):
            return averaged
        # Parameters by name stand once even where two names share one, so no tied copy keeps the weights of today.
        frozen = {name: p for name, p in self.policy.named_parameters() if not p.requires_grad}
        untouched = {name: put_together(p, local_part(p)) for name, p in frozen.items()}
        return averaged | untouched | dict(_saved_buffers(self.policy))


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}
