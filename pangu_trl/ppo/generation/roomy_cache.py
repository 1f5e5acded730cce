"""A cache with room to grow: a new token is written behind the others, where transformers copies all of them."""

import inspect

from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from pangu_trl.gptpangu.arguments_gptpangu import CACHE_ARGUMENT
from pangu_trl.models.score_head import innermost


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, (B, heads, tokens, head width), at the front of tensors that hold more tokens.

    Args:
        room: Tokens to leave free whenever new tensors are made.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes new tokens behind those that are there; returns keys and values of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, stop = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        if not self._has_room(stop):
            self._buffers = tuple(
                new.new_empty(*new.shape[:2], stop + self.room, new.shape[-1]) for new in (key_states, value_states)
            )
            if start:
                self._buffers[0][:, :, :start], self._buffers[1][:, :, :start] = self.keys, self.values
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = new
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows, with their room."""
        if not self._has_room(self.get_seq_length()):
            super().batch_select_indices(indices)
            return
        stop = self.get_seq_length()
        self._buffers = tuple(buffer[indices] for buffer in self._buffers)
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self._buffers)

    def _has_room(self, num_tokens: int) -> bool:
        """Whether the tensors hold these keys and values (another method may have put others there) and more tokens."""
        if self._buffers is None or self.keys.numel() == 0:
            return False
        buffer = self._buffers[0]
        is_ours = self.keys.data_ptr() == buffer.data_ptr() and self.keys.shape[:2] == buffer.shape[:2]
        return is_ours and buffer.shape[-2] >= num_tokens


def make_roomy_cache(policy: nn.Module, room: int) -> Cache | None:
    """An empty cache for `generate`; None for models that keep anything else than keys and values of all tokens.

    Args:
        policy: Has `generate`.
        room: Tokens of an answer.
    """
    model = innermost(policy)
    takes_cache = CACHE_ARGUMENT in inspect.signature(model.forward).parameters
    if not takes_cache or model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer(room) for _ in cache.layers]
    return cache
