"""Sampling in a running batch: an answer leaves it with its last token, and another one takes its place.

`generate` carries every row of a batch on until the last one has ended. Here no token is computed behind the end of an
answer, and a prompt is encoded once, however many answers it gets.
"""

import inspect
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from pangu_trl.data.collators import pad_sequences
from pangu_trl.gptpangu.arguments_gptpangu import CACHE_ARGUMENT
from pangu_trl.models.score_head import first_position, innermost
from pangu_trl.models.vocabulary import known_ids

from .running_cache import RunningCache

# Answers join when an eighth of the batch is free, and no more prompts than that are encoded in a pass.
FREE_SHARE = 8
# Prompts are encoded together if they are about as long, or so few that they would not fill a pass.
LIKE_LENGTH, SMALL_PASS = 0.8, 256


@dataclass
class EncodedPrompts:
    """G prompts that the policy has read.

    Attributes:
        prompts: Token ids.
        cache: Keys and values, prompts padded on the left.
        logits: Of the first token of an answer, (G, V).
    """

    prompts: list[list[int]]
    cache: Cache
    logits: Tensor

    def last(self) -> "EncodedPrompts":
        """The last prompt alone."""
        self.cache.batch_select_indices(torch.tensor([len(self.prompts) - 1], device=self.logits.device))
        return EncodedPrompts(self.prompts[-1:], self.cache, self.logits[-1:].clone())


class RunningBatch:
    """Answers that are sampled at the same time.

    Args:
        policy: A causal language model in evaluation mode, perhaps with an adapter.
        prompts: Token ids of N prompts.
        config: Sampling options, stop tokens, and most tokens of an answer.
        num_rows: Most answers at a time.

    Attributes:
        answers: Token ids of each answer up to and including its stop token, as far as it has come.
        logprobs: Log-probabilities of these tokens before `top_p` and `top_k`, nats.
    """

    def __init__(self, policy: nn.Module, prompts: list[list[int]], config: GenerationConfig, num_rows: int) -> None:
        self.policy, self.prompts, self.config = policy, prompts, config
        self.num_rows = min(num_rows, len(prompts))
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.logprobs: list[list[float]] = [[] for _ in prompts]
        # Long prompts first: rows of like length share the batch, and one too large for the memory fails at once. Equal
        # prompts follow one another.
        self._waiting = deque(sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), prompts[row])))
        self._active: list[int] = []
        self._encoded: EncodedPrompts | None = None
        self._num_layers = len(DynamicCache(config=innermost(policy).config.get_text_config(decoder=True)).layers)
        num_columns = max(map(len, prompts)) + config.max_new_tokens
        self._cache = RunningCache(self._num_layers, self.num_rows, num_columns)
        self._takes_positions = "position_ids" in inspect.signature(innermost(policy).forward).parameters
        self._first_position = first_position(policy)
        self._num_known = known_ids(policy)
        self._filters = LogitsProcessorList()
        if config.top_k:
            self._filters.append(TopKLogitsWarper(config.top_k))
        if config.top_p < 1.0:
            self._filters.append(TopPLogitsWarper(config.top_p))

    def run(self) -> None:
        """Samples all answers."""
        while self._waiting or self._active:
            num_free = self.num_rows - len(self._active)
            if self._waiting and (num_free * FREE_SHARE >= self.num_rows or not self._active):
                self._join(num_free)
            else:
                self._step()

    def _join(self, num_free: int) -> None:
        """Starts as many waiting answers as there are places, from prompts that are encoded once each."""
        rows = [self._waiting.popleft() for _ in range(min(num_free, len(self._waiting)))]
        for encoded in self._encode([self.prompts[row] for row in rows]):
            places = {tuple(prompt): place for place, prompt in enumerate(encoded.prompts)}
            joining = [row for row in rows if tuple(self.prompts[row]) in places]
            picked = torch.tensor([places[tuple(self.prompts[row])] for row in joining], device=encoded.logits.device)
            goes_on = self._choose(encoded.logits[picked], joining)
            lengths = [len(self.prompts[joining[index]]) for index in goes_on]
            if goes_on:
                self._cache.add(encoded.cache, picked[goes_on], lengths)
            self._active += [joining[index] for index in goes_on]
        # Of a prompt whose answers have not all found a place, the rest need it once more.
        is_needed = self._waiting and self.prompts[self._waiting[0]] == encoded.prompts[-1]
        self._encoded = encoded.last() if is_needed else None

    def _encode(self, prompts: list[list[int]]) -> Iterator[EncodedPrompts]:
        """The prompts, long ones first, in batches of like length; the first may have been encoded before."""
        new = list(map(list, dict.fromkeys(map(tuple, prompts))))
        if self._encoded is not None:
            yield self._encoded
            del new[0]
        # What a batch keeps stands beside the running one until it is copied there.
        most = max(1, self.num_rows // FREE_SHARE)
        batch: list[list[int]] = []
        for prompt in new:
            is_like = batch and len(batch) < most and len(prompt) >= LIKE_LENGTH * len(batch[0])
            if batch and not is_like and (len(batch) + 1) * len(batch[0]) > SMALL_PASS:
                yield self._read(batch)
                batch = []
            batch.append(prompt)
        if batch:
            yield self._read(batch)

    def _read(self, prompts: list[list[int]]) -> EncodedPrompts:
        pad = self.config.pad_token_id
        input_ids, mask = (part.to(self.policy.device) for part in pad_sequences(prompts, pad, side="left"))
        cache = Cache(layers=[DynamicLayer() for _ in range(self._num_layers)])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return EncodedPrompts(prompts, cache, self._logits(input_ids, mask, positions, cache))

    def _step(self) -> None:
        """Samples the next token of every answer in the batch."""
        cache, device = self._cache, self.policy.device
        cache.make_room()
        starts = torch.tensor(cache.starts, device=device).unsqueeze(1)
        columns = torch.arange(cache.window.start, cache.window.stop + 1, device=device)
        tokens = torch.tensor([[self.answers[row][-1]] for row in self._active], device=device)
        logits = self._logits(tokens, (columns >= starts).long(), columns[-1] - starts, cache)
        goes_on = set(self._choose(logits, self._active))
        for place in reversed([place for place in range(len(self._active)) if place not in goes_on]):
            cache.drop(place)
            self._active[place] = self._active[-1]
            self._active.pop()

    def _logits(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) of the token behind the last one, of the tokens that can be sampled."""
        arguments = {"position_ids": positions + self._first_position} if self._takes_positions else {}
        arguments[CACHE_ARGUMENT] = cache
        output = self.policy(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=True, logits_to_keep=1, **arguments
        )
        return output.logits[:, -1, : self._num_known].float()

    def _choose(self, logits: Tensor, rows: list[int]) -> list[int]:
        """Samples a token of each answer from logits (R, V); returns which answers go on."""
        scores = logits / self.config.temperature
        chosen = sample(self._filters(None, scores).softmax(dim=-1))
        logprobs = scores.gather(1, chosen.unsqueeze(1)).squeeze(1) - scores.logsumexp(dim=-1)
        goes_on = []
        for index, (row, token, logprob) in enumerate(zip(rows, chosen.tolist(), logprobs.tolist(), strict=True)):
            self.answers[row].append(token)
            self.logprobs[row].append(logprob)
            has_ended = token in self.config.eos_token_id or len(self.answers[row]) == self.config.max_new_tokens
            if not has_ended:
                goes_on.append(index)
        return goes_on


def sample(probabilities: Tensor) -> Tensor:
    """A token (R,) for each row of probabilities (R, V), by one uniform number each.

    `torch.multinomial` draws a number for every token, which takes longer on a CPU than a small model's logits.
    """
    sums = probabilities.cumsum(dim=-1, dtype=torch.float64)
    # Below 1, as the last sum would be passed otherwise.
    drawn = torch.rand(len(sums), 1, dtype=torch.float64, device=sums.device).clamp(max=1 - 1e-12)
    return torch.searchsorted(sums, drawn * sums[:, -1:], right=True).squeeze(1)
