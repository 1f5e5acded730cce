"""A talk with a model, a turn at a time; answers are drawn as `sampling` draws them, and shown as they come."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from pangu_trl.data.answer_end import HALF_CHARACTER, sampled_text, stop_tokens
from pangu_trl.data.tokenizing import encode_prompt
from pangu_trl.models.modes import position_limit

from .sampling import SamplingConfig, sample_answers


class End(Enum):
    """Why an answer ends where it does."""

    BY_ITSELF = auto()
    LONGEST = auto()  # It reached `max_new_tokens`.
    NO_ROOM = auto()  # The talk fills the positions of the model.
    STOPPED = auto()  # By Ctrl-C.


class _Stream(BaseStreamer):
    """Hands text on as soon as its characters are certain: as far as the next token left it as it was."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: list[int], show: Callable[[str], None]):
        self.tokenizer, self.ends, self.show = tokenizer, ends, show
        self.ids: list[int] = []
        self.text = ""
        self._num_shown = 0
        self._has_prompt = False

    def put(self, value: Tensor) -> None:
        """Takes the prompt, and then a token at a time."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self.ids += value.tolist()
        before, self.text = self.text, self.tokenizer.decode(self._ids_of_text(), skip_special_tokens=True)
        self._show_up_to(len(os.path.commonprefix([before, self.text]).rstrip(HALF_CHARACTER)))

    def end(self) -> None:
        """Shows what is left of the answer."""
        self.text, _ = sampled_text(self.tokenizer, self.ids, self.ends)
        self._show_up_to(len(self.text))

    def _ids_of_text(self) -> list[int]:
        return [token for token in self.ids if token not in self.ends]

    def _show_up_to(self, length: int) -> None:
        start, self._num_shown = self._num_shown, max(self._num_shown, length)
        if length > start:
            self.show(self.text[start:length])


@dataclass
class Talk:
    """What was said to a model, and by it.

    Attributes:
        model: Causal language model.
        tokenizer: Its tokenizer.
        config: How to draw answers.
        seed: Turn i draws from (seed, i).
        messages: What was said so far; stays empty where the tokenizer has no chat template, as there each text is
            continued by itself.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: SamplingConfig
    seed: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    num_turns: int = 0

    @property
    def is_chat(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def answer(self, text: str, show: Callable[[str], None], can_be_stopped: bool = False) -> tuple[str, End]:
        """Answers one turn, which then belongs to the talk; one that was stopped before its first word does not.

        Args:
            text: What the user says.
            show: Gets the parts of the answer as they come.
            can_be_stopped: Whether a KeyboardInterrupt ends the answer, and no more than that.

        Returns:
            The answer, and why it ends.

        Raises:
            ValueError: The talk leaves the model no position for an answer; nothing was added.
        """
        said = [*self.messages, {"role": "user", "content": text}]
        prompt = said if self.is_chat else text
        room = self._room(prompt)
        config = replace(self.config, max_new_tokens=room)
        # Each turn has numbers of its own, also where the same is said twice.
        seed = self.seed + self.num_turns
        self.num_turns += 1
        stream = _Stream(self.tokenizer, stop_tokens(self.tokenizer, self.model.generation_config), show)
        try:
            ((answer,),) = sample_answers(
                self.model, self.tokenizer, [prompt], 1, config, 1, seed, where=["the talk"], streamer=stream
            )
            cut_by = End.LONGEST if room == self.config.max_new_tokens else End.NO_ROOM
            answer_text, end = answer.text, End.BY_ITSELF if answer.finished else cut_by
        except KeyboardInterrupt:
            if not can_be_stopped:
                raise
            stream.end()
            answer_text, end = stream.text, End.STOPPED
        if self.is_chat and (answer_text or end != End.STOPPED):
            self.messages = [*said, {"role": "assistant", "content": answer_text}]
        return answer_text, end

    def _room(self, prompt: Any) -> int:
        """The longest answer: `max_new_tokens`, or what the positions of the model leave of it, but one at least."""
        limit = position_limit(self.model)
        if limit is None:
            return self.config.max_new_tokens
        return max(1, min(self.config.max_new_tokens, limit - len(encode_prompt(self.tokenizer, prompt))))
