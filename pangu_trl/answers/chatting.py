"""A talk with a model, a turn at a time; answers are drawn as `sampling` draws them, and shown as they come."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from .sampling import SamplingConfig, sample_answers


class _Stream(TextStreamer):
    """Hands text on as soon as its characters are certain."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show = show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.show(text)


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

    def answer(self, text: str, show: Callable[[str], None]) -> str:
        """Answers one turn, which then belongs to the talk.

        Args:
            text: What the user says.
            show: Gets the parts of the answer as they come.

        Raises:
            ValueError: The talk and the longest answer need more positions than the model has; nothing was added.
        """
        said = [*self.messages, {"role": "user", "content": text}]
        # Each turn has numbers of its own, also where the same is said twice.
        seed = self.seed + self.num_turns
        streamer = _Stream(self.tokenizer, show)
        prompts = [said if self.is_chat else text]
        (answer,) = sample_answers(
            self.model, self.tokenizer, prompts, 1, self.config, 1, seed, where=["the talk"], streamer=streamer
        )[0]
        self.num_turns += 1
        if self.is_chat:
            self.messages = [*said, {"role": "assistant", "content": answer.text}]
        return answer.text
