"""Where the time of a PPO run goes, against what it must compute: `python benchmarks/ppo.py --profile`.

CPU seconds of sampling, scoring and learning beside their floors. The floor of a phase is the larger of two times, in
learning their sum: the operations of its matrix products (2 for each weight and token forward, 6 with the backward
pass) at the speed of a large matrix product; and bytes at the speed of a large copy, which are the weights once for
each token of the longest answer, once for scoring, and in learning what the optimiser reads and writes. Tokens are the
real ones of the run: prompts and answers, the head at answer tokens only. Attention itself, norms and softmax are not
counted.

`tokens` is the share of the floor by tokens alone: those that had to be read over those that the models' embeddings
were asked for.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

# AdamW reads weight, gradient and two moments, and writes weight and moments, of 4 bytes each.
OPTIMIZER_BYTES = 7 * 4
PHASES = ("sampling", "scoring", "learning")
# A backward pass costs two forward passes.
LEARNING_PASSES = 3


class TokensRead:
    """Counts the tokens that models read, a token that is learnt from three times.

    Args:
        models: All models of a run.

    Attributes:
        count: The tokens so far.
    """

    def __init__(self, models: Iterable[Any]) -> None:
        self.count = 0
        for model in models:
            model.get_input_embeddings().register_forward_pre_hook(self._add)

    def _add(self, _: Any, arguments: tuple) -> None:
        import torch

        self.count += arguments[0].numel() * (LEARNING_PASSES if torch.is_grad_enabled() else 1)


class Profile:
    """Counts seconds and tokens of the phases of a run.

    Args:
        trainer: A PPOTrainer with four models.
        passes: Passes over each rollout.
    """

    def __init__(self, trainer: Any, passes: int) -> None:
        self.trainer, self.passes = trainer, passes
        self.seconds: dict[str, float] = defaultdict(float)
        self.computed: dict[str, int] = defaultdict(int)
        self.needed: dict[str, int] = defaultdict(int)
        self.flops: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, float] = defaultdict(float)
        self._phase = "learning"
        models = trainer.model
        self.policy, self.critic = models.policy, models.value_model
        reward = trainer.collector.rewards[0].model
        self.scorers = (self.policy, trainer.ref_model, self.critic, reward)
        for model in self.scorers:
            model.get_input_embeddings().register_forward_pre_hook(self._count)
        collector = trainer.collector
        collector.answer = self._timed("sampling", collector.answer)
        collector.score = self._timed("scoring", collector.score)
        self._collect, collector.collect = collector.collect, self._collected

    def _count(self, _: Any, arguments: tuple) -> None:
        self.computed[self._phase] += arguments[0].numel()

    def _timed(self, phase: str, call: Callable) -> Callable:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            before, started = self._phase, time.process_time()
            self._phase = phase
            try:
                return call(*arguments, **keywords)
            finally:
                self._phase = before
                self.seconds[phase] += time.process_time() - started

        return timed

    def _collected(self, *arguments: Any) -> Any:
        rollout = self._collect(*arguments)
        answers = rollout.completion_mask.sum(dim=1)
        all_tokens, answer_tokens = int(rollout.attention_mask.sum()), int(answers.sum())
        prompt_tokens = all_tokens - answer_tokens
        # The last token of an answer is sampled and not read.
        sampled = prompt_tokens + answer_tokens - len(answers)
        self.needed["sampling"] += sampled
        self.flops["sampling"] += 2 * (blocks(self.policy) * sampled + head(self.policy) * answer_tokens)
        self.bytes["sampling"] += int(answers.max()) * 4 * (blocks(self.policy) + head(self.policy))
        self.needed["scoring"] += len(self.scorers) * all_tokens
        heads = sum(head(model) for model in self.scorers[:2]) * answer_tokens
        self.flops["scoring"] += 2 * (sum(map(blocks, self.scorers)) * all_tokens + heads)
        self.bytes["scoring"] += 4 * (sum(map(blocks, self.scorers)) + sum(map(head, self.scorers[:2])))
        learning = (self.policy, self.critic)
        self.needed["learning"] += self.passes * len(learning) * all_tokens
        per_pass = 2 * LEARNING_PASSES * (sum(map(blocks, learning)) * all_tokens + head(self.policy) * answer_tokens)
        self.flops["learning"] += self.passes * per_pass
        weights = sum(parameter.numel() for model in learning for parameter in model.parameters())
        self.bytes["learning"] += self.passes * OPTIMIZER_BYTES * weights
        return rollout

    def tokens_needed(self) -> int:
        """Tokens that had to be read, those that are learnt from three times."""
        return self.needed["sampling"] + self.needed["scoring"] + LEARNING_PASSES * self.needed["learning"]

    def figures(self, train_seconds: float) -> dict[str, dict[str, float]]:
        """Seconds, floors and shares of each phase; what is neither sampled nor scored of a run is learning."""
        self.seconds["learning"] = train_seconds - self.seconds["sampling"] - self.seconds["scoring"]
        peak, bandwidth = machine()
        found = {}
        for phase in PHASES:
            # Learning must do both: its bytes are the optimiser's, which moves after the passes.
            times = (self.flops[phase] / peak, self.bytes[phase] / bandwidth)
            floor = sum(times) if phase == "learning" else max(times)
            found[phase] = {
                "seconds": self.seconds[phase],
                "flop_floor": times[0],
                "byte_floor": times[1],
                "share": floor / self.seconds[phase],
                "tokens": self.needed[phase] / self.computed[phase],
            }
        return found


def blocks(model: Any) -> int:
    """Weights that every token passes."""
    return sum(parameter.numel() for parameter in model.transformer.h.parameters())


def head(model: Any) -> int:
    return model.get_output_embeddings().weight.numel()


def machine() -> tuple[float, float]:
    """Operations of a large matrix product, and bytes read and written by a large copy, per CPU second."""
    import torch

    def best(call: Callable) -> float:
        seconds = []
        for _ in range(10):
            started = time.process_time()
            call()
            seconds.append(time.process_time() - started)
        return min(seconds)

    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    return 2 * size**3 / best(lambda: left @ right), 2 * source.nbytes / best(lambda: target.copy_(source))


def print_profile(found: dict[str, dict[str, float]]) -> None:
    print(f"{'phase':10s} {'CPU s':>8s} {'FLOP s':>8s} {'bytes s':>8s} {'share':>6s} {'tokens':>7s}")
    for phase, figures in found.items():
        times = " ".join(f"{figures[name]:8.2f}" for name in ("seconds", "flop_floor", "byte_floor"))
        print(f"{phase:10s} {times} {figures['share']:6.2f} {figures['tokens']:7.2f}")
