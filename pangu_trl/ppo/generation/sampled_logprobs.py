"""Watching what a policy samples: do the log-probabilities that are learnt from belong to it?"""

import torch
from torch import Tensor
from transformers import LogitsProcessor


class SampledLogprobs(LogitsProcessor):
    """Log-probabilities of tokens as they were sampled, to compare with those that are learnt from.

    A processor sees the logits before temperature, top-p and top-k; it keeps those of one step, (B, V), at a time.

    Args:
        temperature: Divides the logits.
        max_rows: Answers that are watched, the first of the batch.

    Attributes:
        rows: Rows of the rollout that the batch holds; whoever samples sets them.
        logprobs: Of the first of these rows, (R, C), once they were sampled; a server that samples sets them itself.
    """

    def __init__(self, temperature: float, max_rows: int) -> None:
        self.temperature, self.max_rows = temperature, max_rows
        self.rows: list[int] = []
        self.logprobs: Tensor | None = None
        self._steps: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Notes the token chosen last and leaves the logits (B, V) alone."""
        self._note(input_ids[:, -1])
        self._last = (scores[: self.max_rows].float() / self.temperature).log_softmax(dim=-1)
        return scores

    def finish(self, new_tokens: Tensor) -> None:
        """Takes the tokens (B, C) that were sampled."""
        self._note(new_tokens[:, -1])
        self.logprobs = torch.stack(self._steps, dim=1)

    def _note(self, chosen: Tensor) -> None:
        if self._last is not None:
            chosen = chosen[: self.max_rows].unsqueeze(-1)
            self._steps.append(self._last.gather(-1, chosen).squeeze(-1))

    def gap(self, logprobs: Tensor, completion_mask: Tensor) -> Tensor:
        """Mean absolute difference (nats) to the log-probabilities of a rollout.

        Args:
            logprobs: Those that are learnt from, (N, C).
            completion_mask: True for answer tokens, (N, C).
        """
        rows = self.rows[: len(self.logprobs)]
        width = min(self.logprobs.shape[1], logprobs.shape[1])
        difference = self.logprobs[:, :width] - logprobs[rows, :width]
        return difference[completion_mask[rows, :width]].abs().mean()
