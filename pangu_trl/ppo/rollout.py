"""Answers of the current policy and everything that is known about them before learning starts."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pangu_trl.data.collators import pad_sequences


@dataclass
class Rollout:
    """N answers on this rank; prompts are padded on the left to P, answers on the right to C, T = P + C.

    The fields after `ended` are None until the answers have been scored, and some where a run has no use for them.
    """

    input_ids: Tensor  # (N, T) prompt and answer
    attention_mask: Tensor  # (N, T) 1 for real tokens
    completion_mask: Tensor  # (N, C) True up to and including the last answer token
    ended: Tensor  # (N,) True where the answer ended with a stop token
    sampling_logprobs: Tensor | None = None  # (N, C) as the engine that sampled gave them; kept only on demand
    logprobs: Tensor | None = None  # (N, C) under the policy that sampled
    ref_logprobs: Tensor | None = None  # (N, C) under the reference, where it was asked
    entropy: Tensor | None = None  # (N, C) of the policy that sampled, nats
    values: Tensor | None = None  # (N, C) of the critic at rollout, if there is one
    source_scores: Tensor | None = None  # (N, S) of each part of the reward
    step_rewards: Tensor | None = None  # (N, C) weighted scores of steps, where a process reward gives them
    scores: Tensor | None = None  # (N,) what they come to together, before scaling, clipping and penalties
    advantages: Tensor | None = None  # (N, C)
    returns: Tensor | None = None  # (N, C) targets of the critic
    importance_weights: Tensor | None = None  # (N, C) of the policy's losses; None where all are 1
    kept_mask: Tensor | None = None  # (N, C) tokens that are learnt from; None where all answer tokens are

    @classmethod
    def from_answers(
        cls,
        prompts: list[list[int]],
        answers: list[list[int]],
        stop_token_ids: list[int],
        pad_token_id: int,
        device: torch.device,
    ) -> "Rollout":
        """N prompts and their answers, token ids each; an answer has ended if its last token is a stop token."""
        prompt_ids, prompt_mask = pad_sequences(prompts, pad_token_id, side="left")
        answer_ids, answer_mask = pad_sequences(answers, pad_token_id, side="right")
        return cls(
            input_ids=torch.cat([prompt_ids, answer_ids], dim=1).to(device),
            attention_mask=torch.cat([prompt_mask, answer_mask], dim=1).to(device),
            completion_mask=answer_mask.bool().to(device),
            ended=torch.tensor([answer[-1] in stop_token_ids for answer in answers], device=device),
        )

    def select(self, rows: Tensor) -> "Rollout":
        """The given rows, each moved to end in the last column, without the columns that are padding in all of them.

        Padding then stands on the left alone, and a batch of like lengths has hardly any. Scoring and learning select
        alike, so both compute the same numbers.
        """
        chosen = {f.name: getattr(self, f.name)[rows] for f in fields(self) if getattr(self, f.name) is not None}
        num_tokens, num_answer_tokens = chosen["attention_mask"].sum(dim=1), chosen["completion_mask"].sum(dim=1)
        width, answer_width = int(num_tokens.max()), int(num_answer_tokens.max())
        ends = self.input_ids.shape[1] - self.completion_width + num_answer_tokens
        for name, tensor in chosen.items():
            if name in ("input_ids", "attention_mask"):
                chosen[name] = _moved(tensor, ends - width, width)
            elif tensor.ndim == 2 and name != "source_scores":
                chosen[name] = _moved(tensor, num_answer_tokens - answer_width, answer_width)
        return Rollout(**chosen)

    def with_answers_of(self, other: "Rollout", rows: Tensor, other_rows: Tensor, pad_token_id: int) -> "Rollout":
        """Puts scored answers of another rollout, to the same prompts, in the place of answers of this one.

        Args:
            other: Holds the new answers.
            rows: Which answers of this rollout they replace, (R,).
            other_rows: Which of the other's they are, (R,).
            pad_token_id: Fills rows.
        """
        width = max(self.completion_width, other.completion_width)

        def replaced(ours: Tensor, theirs: Tensor, fill: float = 0) -> Tensor:
            wide = torch.nn.functional.pad(ours, (0, width - self.completion_width), value=fill)
            wide[rows] = torch.nn.functional.pad(theirs, (0, width - other.completion_width), value=fill)[other_rows]
            return wide

        prompts = slice(None, -self.completion_width)
        answers, their_answers = (part.input_ids[:, -part.completion_width :] for part in (self, other))
        mask = replaced(self.completion_mask, other.completion_mask)
        merged = Rollout(
            input_ids=torch.cat([self.input_ids[:, prompts], replaced(answers, their_answers, pad_token_id)], dim=1),
            attention_mask=torch.cat([self.attention_mask[:, prompts], mask.to(self.attention_mask.dtype)], dim=1),
            completion_mask=mask,
            ended=self.ended.index_copy(0, rows, other.ended[other_rows]),
            source_scores=self.source_scores.index_copy(0, rows, other.source_scores[other_rows]),
            scores=self.scores.index_copy(0, rows, other.scores[other_rows]),
        )
        if self.step_rewards is not None:
            merged.step_rewards = replaced(self.step_rewards, other.step_rewards)
        if self.sampling_logprobs is not None:
            merged.sampling_logprobs = replaced(self.sampling_logprobs, other.sampling_logprobs, torch.nan)
        return merged

    def with_ends(self, ends: Tensor) -> "Rollout":
        """The answers with the given last tokens, (N,), where they have ended, whichever stop token ended them.

        A reward model knows one end of an answer, and must give a text the same score wherever it meets it.
        """
        last = self.input_ids.shape[1] - self.completion_width + self.completion_mask.sum(dim=1, keepdim=True) - 1
        tokens = torch.where(self.ended, ends, self.input_ids.gather(1, last).squeeze(1))
        return replace(self, input_ids=self.input_ids.scatter(1, last, tokens.unsqueeze(1)))

    def in_place_of(self, rows: Tensor, tensor: Tensor) -> Tensor:
        """Moves per-token values (B, .) of selected rows back to where a rollout has them, (B, C)."""
        offsets = tensor.shape[1] - self.completion_mask[rows].sum(dim=1)
        return _moved(tensor, offsets, self.completion_width)

    @property
    def learnt_mask(self) -> Tensor:
        """True for the answer tokens that are learnt from, (N, C)."""
        return self.completion_mask if self.kept_mask is None else self.kept_mask

    @property
    def lengths(self) -> Tensor:
        """Tokens of prompt and answer of each row, (N,)."""
        return self.attention_mask.sum(dim=1)

    @property
    def completion_width(self) -> int:
        """Columns of the answers, C."""
        return self.completion_mask.shape[1]

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The answers as texts, without their ends, which not every tokenizer counts among its special tokens."""
        answers = zip(self.completions(), self.ended.tolist(), strict=True)
        return tokenizer.batch_decode([ids[:-1] if ended else ids for ids, ended in answers], skip_special_tokens=True)

    def completions(self) -> list[list[int]]:
        """Token ids of each answer, without padding."""
        ids = self.input_ids[:, -self.completion_width :]
        return [row[mask].tolist() for row, mask in zip(ids, self.completion_mask, strict=True)]


def _moved(tensor: Tensor, offsets: Tensor, width: int) -> Tensor:
    """Columns `offset` to `offset + width` of each row of (B, .), 0 where there are none: (B, width)."""
    columns = torch.arange(width, device=tensor.device) + offsets.unsqueeze(1)
    exists = (columns >= 0) & (columns < tensor.shape[1])
    return tensor.gather(1, columns.clamp(0, tensor.shape[1] - 1)).masked_fill(~exists, 0)
