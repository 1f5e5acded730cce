"""Sampling of ragged answers: `generate`, PPO's continuous engine, and transformers' `generate_batch`.

    python benchmarks/rollouts.py

A random GPTPangu of 30 million parameters on CPU in float32 answers the same prompts of 4 to 64 tokens with up to 64
tokens, which end early at random after 24 on average. Three rollouts: all answers in one batch; four times as many as
the batch has rows, so that answers join as others leave; and 8 answers to each of a few long prompts. The engines take
turns in one process; the best turn of each counts, per answer token, since each draws answers of its own.

The floor is what must be computed: every distinct prompt token and every answer token but the last once, and the head
for every answer token. Beside it stands what `generate` computes, by the lengths that it drew: prompts and answers
padded to the longest of their batch. That quotient is what leaving padding out can win. The share of the machine's peak
is the floor's operations over those of a large matrix product in the same time.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from ppo import ANSWER_TOKENS, EOS, PAD, VOCABULARY, ending_policy
from transformers import ContinuousBatchingConfig, GenerationConfig

import pangu_trl
from pangu_trl.data.collators import pad_sequences
from pangu_trl.ppo.generation.continuous import RunningBatch

SIZE = dict(hidden_size=512, num_layers=8, num_heads=8, max_position_embeddings=256)
ENGINES = ("generate", "continuous", "generate_batch")


@dataclass(frozen=True)
class Rollout:
    """What is to be answered: `num_prompts` prompts of so many tokens, `copies` answers each, `rows` at a time."""

    num_prompts: int
    tokens: tuple[int, int]
    copies: int
    rows: int

    def prompts(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(1)
        low, high = self.tokens
        lengths = torch.randint(low, high + 1, (self.num_prompts,), generator=generator).tolist()
        ids = [torch.randint(10, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
        return [row for row in ids for _ in range(self.copies)]


ROLLOUTS = {
    "64 answers, 64 rows": Rollout(64, (4, 64), 1, 64),
    "128 answers, 32 rows": Rollout(128, (4, 64), 1, 32),
    "8 x 8 answers to 128-192 tokens, 64 rows": Rollout(8, (128, 192), 8, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="turns of each engine")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--layers", type=int, default=SIZE["num_layers"])
    options = parser.parse_args()
    torch.manual_seed(0)
    config = pangu_trl.GPTPanguConfig(
        vocab_size=VOCABULARY, pad_token_id=PAD, eos_token_id=EOS, **SIZE | {"num_layers": options.layers}
    )
    policy = ending_policy(config).eval()
    peak = peak_flops()
    print(f"matrix products: {peak / 1e9:.0f} GFLOP per CPU second")
    for name, rollout in ROLLOUTS.items():
        compare(name, rollout, policy, options, peak)


def compare(name: str, rollout: Rollout, policy, options: argparse.Namespace, peak: float) -> None:
    prompts = rollout.prompts()
    engines: dict[str, Callable] = {
        "generate": lambda: by_generate(policy, prompts, rollout.rows),
        "continuous": lambda: continuously(policy, prompts, rollout.rows),
        "generate_batch": lambda: by_generate_batch(policy, prompts, rollout.rows),
    }
    best: dict[str, tuple[float, float]] = {}
    floors, padded = [], []
    for _ in range(options.repeats):
        for engine in options.engines:
            started, cpu_started = time.perf_counter(), time.process_time()
            with torch.no_grad():
                lengths = engines[engine]()
            cpu, wall = time.process_time() - cpu_started, time.perf_counter() - started
            tokens = sum(lengths)
            figures = (cpu / tokens, wall / tokens)
            best[engine] = tuple(map(min, figures, best.get(engine, figures)))
            floors.append(floor_flops(policy, prompts, lengths) / tokens)
            if engine == "generate":
                padded.append(padded_flops(policy, prompts, lengths, rollout.rows) / tokens)
    floor = sum(floors) / len(floors)
    print(f"\n{name}: ms per answer token, CPU (wall-clock)")
    for engine, (cpu, wall) in best.items():
        gained = f", {best['generate'][0] / cpu:.2f} ({best['generate'][1] / wall:.2f}) times `generate`"
        share = f", {floor / peak / cpu:.2f} of the peak"
        print(f"  {engine:15s} {1e3 * cpu:6.2f} ({1e3 * wall:6.2f}){gained if 'generate' in best else ''}{share}")
    if padded:
        print(f"  floor: {sum(padded) / len(padded) / floor:.2f} times `generate`, by operations without padding")


def by_generate(policy, prompts: list[list[int]], rows: int) -> list[int]:
    """Batches of prompts of like length; each goes on until its longest answer has ended."""
    lengths = []
    for batch in batches(prompts, rows):
        input_ids, mask = pad_sequences(batch, PAD, side="left")
        found = policy.generate(input_ids=input_ids, attention_mask=mask, generation_config=sampling())
        lengths += [answer_length(row) for row in found[:, input_ids.shape[1] :].tolist()]
    return lengths


def continuously(policy, prompts: list[list[int]], rows: int) -> list[int]:
    batch = RunningBatch(policy, prompts, sampling(), rows)
    batch.run()
    return [len(batch.answers[row]) for row in in_order(prompts)]


def by_generate_batch(policy, prompts: list[list[int]], rows: int) -> list[int]:
    settings = ContinuousBatchingConfig(
        page_size=32, num_blocks=16 * rows, max_batch_tokens=8 * rows, max_requests_per_batch=rows
    )
    # It puts another attention into the model, and takes it out again.
    found = policy.generate_batch(
        [prompts[row] for row in in_order(prompts)],
        generation_config=sampling(),
        continuous_batching_config=settings,
        warmup=False,
    )
    return [len(request.generated_tokens) for request in found.values()]


def in_order(prompts: list[list[int]]) -> list[int]:
    return sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))


def batches(prompts: list[list[int]], rows: int) -> list[list[list[int]]]:
    ordered = [prompts[row] for row in in_order(prompts)]
    return [ordered[start : start + rows] for start in range(0, len(ordered), rows)]


def answer_length(tokens: list[int]) -> int:
    return tokens.index(EOS) + 1 if EOS in tokens else len(tokens)


def sampling() -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=ANSWER_TOKENS,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=[EOS],
        pad_token_id=PAD,
    )


def flops(policy, tokens: int, predictions: int) -> float:
    """Operations of the matrix products of so many tokens, and of the head for so many predictions."""
    head = policy.get_output_embeddings().weight.numel()
    blocks = sum(parameter.numel() for parameter in policy.transformer.h.parameters())
    return 2.0 * (blocks * tokens + head * predictions)


def floor_flops(policy, prompts: list[list[int]], lengths: list[int]) -> float:
    read = sum(map(len, set(map(tuple, prompts))))
    return flops(policy, read + sum(lengths) - len(lengths), sum(lengths))


def padded_flops(policy, prompts: list[list[int]], lengths: list[int], rows: int) -> float:
    """What `generate` computes for answers of these lengths, given in the order of the batches."""
    total = 0.0
    for start, batch in zip(range(0, len(prompts), rows), batches(prompts, rows), strict=True):
        longest = max(lengths[start : start + rows])
        total += flops(policy, len(batch) * (len(batch[0]) + longest - 1), len(batch) * longest)
    return total


def peak_flops(size: int = 1024) -> float:
    """Operations of a large matrix product per CPU second, the best of several."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(10):
        started = time.process_time()
        left @ right
        seconds.append(time.process_time() - started)
    return 2.0 * size**3 / min(seconds)


if __name__ == "__main__":
    main()
