"""GPTPangu against transformers' GPT-2 of the same shape: training step, prefill, decoding; float32 on the CPU.

    python benchmarks/model.py --threads 2

Both have 12 blocks, width 768, 12 heads and a vocabulary of 20,000: about 100M parameters. The two take turns, and each
figure is the best of all turns, as a busy machine only ever adds time. The training step is compared with the fastest
matrix product that the same machine reaches in the same run. Model flops are 6 per matrix weight and token, and those
of attention, as in PaLM (arXiv:2204.02311, appendix B).
"""

import argparse
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from pangu_trl import GPTPanguConfig, GPTPanguForCausalLM

LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 12, 768, 12, 20_000, 1024
TRAIN_TOKENS, PROMPT, NEW_TOKENS = 512, 512, 32


def build_models() -> dict[str, PreTrainedModel]:
    """Random models of one shape, without dropout."""
    torch.manual_seed(0)
    pangu = GPTPanguConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        max_position_embeddings=POSITIONS,
        activation_function="gelu_pytorch_tanh",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    gpt2 = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=1,
        eos_token_id=9,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    return {"GPTPangu": GPTPanguForCausalLM(pangu), "GPT-2": GPT2LMHeadModel(gpt2)}


def training_step(model: PreTrainedModel) -> Callable[[], None]:
    """One step of AdamW on one sequence of 512 tokens."""
    ids = torch.randint(10, VOCABULARY, (1, TRAIN_TOKENS), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        model.train()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def prefill(model: PreTrainedModel) -> Callable[[], None]:
    """A prompt of 512 tokens, logits of the last one."""
    ids = torch.randint(10, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        model.eval()
        with torch.inference_mode():
            model(ids, logits_to_keep=1)

    return run


def decoding(model: PreTrainedModel, batch_size: int) -> Callable[[], None]:
    """`generate` of 32 tokens after 32, greedy, with the cache."""
    shape = (batch_size, 32)
    ids = torch.randint(10, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
    settings = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)

    def run() -> None:
        model.eval()
        model.generate(ids, attention_mask=torch.ones_like(ids), **settings)

    return run


def seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def best_in_turn(runs: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Best time of each, in seconds, after one turn to warm up."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(turns + 1):
        for name, run in runs.items():
            taken = seconds(run)
            if turn > 0:
                best[name] = min(best[name], taken)
    return best


def matrix_product_peak(turns: int) -> float:
    """Fastest float32 matrix product seen, in flops a second."""
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (512, WIDTH, 4 * WIDTH), (512, 4 * WIDTH, WIDTH)):
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        out = torch.empty(rows, columns)
        taken = min(seconds(lambda: torch.mm(left, right, out=out)) for _ in range(10 * turns))  # noqa: B023
        best = max(best, 2 * rows * inner * columns / taken)
    return best


def training_flops() -> float:
    """Of one step on 512 tokens; the tables of positions and words are looked up, the output head is a product."""
    weights = 12 * LAYERS * WIDTH * WIDTH + VOCABULARY * WIDTH
    return TRAIN_TOKENS * (6 * weights + 12 * LAYERS * WIDTH * TRAIN_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=10, help="timed turns of each figure (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = build_models()
    sizes = {name: f"{model.num_parameters() / 1e6:.1f}M" for name, model in models.items()}
    print(f"parameters {sizes}, {args.threads} threads, best of {args.turns}")
    cases = {
        f"training step, {TRAIN_TOKENS} tokens": (training_step, TRAIN_TOKENS),
        f"prefill, {PROMPT} tokens": (prefill, PROMPT),
        "decoding, batch 1": (lambda model: decoding(model, 1), NEW_TOKENS),
        "decoding, batch 16": (lambda model: decoding(model, 16), 16 * NEW_TOKENS),
    }
    print(f"{'tokens/s':28}{'GPTPangu':>10}{'GPT-2':>10}{'ratio':>8}")
    training_seconds = None
    for name, (make, num_tokens) in cases.items():
        best = best_in_turn({model_name: make(model) for model_name, model in models.items()}, args.turns)
        training_seconds = training_seconds or best["GPTPangu"]
        speeds = [num_tokens / best[model_name] for model_name in models]
        print(f"{name:28}{speeds[0]:10.0f}{speeds[1]:10.0f}{speeds[0] / speeds[1]:8.2f}", flush=True)
    peak = matrix_product_peak(args.turns)
    reached = training_flops() / training_seconds
    print(f"matrix product peak {peak / 1e9:.0f} GFLOP/s; GPTPangu's training step {reached / 1e9:.0f} GFLOP/s")
    print(f"model-flops utilisation {reached / peak:.2f}")


if __name__ == "__main__":
    main()
