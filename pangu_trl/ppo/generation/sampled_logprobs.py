"""Watching what a policy samples: do the log-probabilities that are learnt from belong to it?"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor


class SampledLogprobs(LogitsProcessor):
    """Log-probabilities of tokens as they were sampled, to compare with those that are learnt from.

    A processor sees the logits before temperature, top-p and top-k; it keeps those of one step, (B, V), at a time.

    Args:
        temperature: Divides the logits.
        max_rows: Answers that are watched, the first of the batch.

    Attributes:
        sees_all: Whether it is to see every batch and every token, and not the last batch's first tokens alone.
        rows: Rows of the rollout that the batch holds.
        logprobs: Of the first of these rows, (R, C), once they were sampled. Engines other than `generate`, which know
            them anyway, set them themselves.
    """

    sees_all = False

    def __init__(self, temperature: float, max_rows: int | None) -> None:
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

    def begin(self, rows: list[int]) -> None:
        """Takes the rows of the rollout that the next batch answers."""
        self.rows = rows

    def finish(self, new_tokens: Tensor) -> None:
        """Takes the tokens (B, C) that were sampled, the batch's answers with what follows their ends."""
        self.logprobs = self._take(new_tokens)

    def _take(self, new_tokens: Tensor) -> Tensor:
        self._note(new_tokens[:, -1])
        logprobs = torch.stack(self._steps, dim=1)
        self._steps, self._last = [], None
        return logprobs

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


class AllSampledLogprobs(SampledLogprobs):
    """Log-probabilities of every token of a rollout as it was sampled: for the correction, not only for a look.

    Args:
        temperature: Divides the logits.
        num_answers: Answers of the rollout, N.

    Attributes:
        logprobs: (N, C), NaN behind the last token of an answer.
    """

    sees_all = True

    def __init__(self, temperature: float, num_answers: int) -> None:
        self._answers: list[Tensor | None] = [None] * num_answers
        self._batch: list[int] = []
        self._whole: Tensor | None = None
        super().__init__(temperature, max_rows=None)
        self.rows = list(range(num_answers))

    @property
    def logprobs(self) -> Tensor | None:
        """See the attribute of `SampledLogprobs`."""
        if self._answers[0] is None:
            return self._whole
        return pad_sequence(self._answers, batch_first=True, padding_value=torch.nan)

    @logprobs.setter
    def logprobs(self, logprobs: Tensor | None) -> None:
        self._whole = logprobs

    def begin(self, rows: list[int]) -> None:
        """See `SampledLogprobs.begin`."""
        self._batch = rows

    def finish(self, new_tokens: Tensor) -> None:
        """See `SampledLogprobs.finish`; what stands behind a stop token is nobody's."""
        for row, logprobs in zip(self._batch, self._take(new_tokens), strict=True):
            self._answers[row] = logprobs
