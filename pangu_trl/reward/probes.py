"""Answers that no good reward model likes: what a policy finds first when it learns to please a bad one."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pangu_trl.data.conversations import EncodingColumns
from pangu_trl.data.records import answer_text
from pangu_trl.models.reward_model import encode_sequence, score_responses

SENTENCE_END = re.compile(r"(?<=[。！？!?.\n])")
MAX_PROMPTS = 200


def probe_metrics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Mapping[str, Any]],
    batch_size: int,
    max_length: int | None,
) -> dict[str, dict[str, float]]:
    """Sets the best annotated answer of each prompt against answers that are wrong by construction.

    Args:
        model: Reward model.
        tokenizer: Its tokenizer.
        rankings: Canonical rankings; the first `MAX_PROMPTS` are used.
        batch_size: Answers in one forward pass.
        max_length: Most tokens that the model takes. Longer probes are left out, which `prompts` shows.

    Returns:
        For each probe of `PROBES`: `prompts`, how many there were; `best_answer_wins`, the share of them whose best
        answer has the higher score, equal scores counting half; `mean_score` of the probe and `mean_best_score`.
    """
    rankings = rankings[:MAX_PROMPTS]
    best = [
        ranking["responses"][max(range(len(ranking["scores"])), key=ranking["scores"].__getitem__)]
        for ranking in rankings
    ]
    prompts = [ranking["prompt"] for ranking in rankings]
    columns = [EncodingColumns.of(ranking) for ranking in rankings]
    best_scores = score_responses(model, tokenizer, prompts, best, batch_size, columns=columns)
    metrics = {}
    for name, make in PROBES.items():
        probes = [make(row, prompts, best) for row in range(len(prompts))]
        kept = [
            row
            for row, probe in enumerate(probes)
            if probe is not None
            and (max_length is None or len(encode_sequence(tokenizer, prompts[row], probe, columns[row])) <= max_length)
        ]
        scores = score_responses(
            model,
            tokenizer,
            [prompts[row] for row in kept],
            [probes[row] for row in kept],
            batch_size,
            columns=[columns[row] for row in kept],
        )
        references = [best_scores[row] for row in kept]
        wins = [(best > probe) + 0.5 * (best == probe) for best, probe in zip(references, scores, strict=True)]
        metrics[name] = {
            "prompts": len(kept),
            "best_answer_wins": _mean(wins),
            "mean_score": _mean(scores),
            "mean_best_score": _mean(references),
        }
    return metrics


def probe_verdicts(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Says in words which probes a policy would learn to give: those that are scored above the best answers.

    Args:
        metrics: What `probe_metrics` gave.

    Returns:
        A sentence for each such probe; none if the reward model passes.
    """
    verdicts = []
    for name, probe in metrics.items():
        wins = 1 - probe["best_answer_wins"]
        if probe["prompts"] and wins >= 0.5:
            verdicts.append(
                f"The probe {name} beats the best answer on {wins:.0%} of {probe['prompts']} prompts (mean score "
                f"{probe['mean_score']:.2f} against {probe['mean_best_score']:.2f}): a policy that is trained against "
                "this reward model will find that out. Add such answers to its training data as the worst of their "
                "prompts."
            )
    return verdicts


def _empty(row: int, prompts: Sequence[Any], best: Sequence[Any]) -> Any:
    return _like(best[row], "")


def _prompt_repeated(row: int, prompts: Sequence[Any], best: Sequence[Any]) -> Any:
    prompt = prompts[row]
    return _like(best[row], prompt if isinstance(prompt, str) else prompt[-1]["content"])


def _answer_to_another_prompt(row: int, prompts: Sequence[Any], best: Sequence[Any]) -> Any:
    """The best answer to the next prompt that is another one; None if all prompts are equal."""
    others = ((row + step) % len(prompts) for step in range(1, len(prompts)))
    return next((best[other] for other in others if prompts[other] != prompts[row]), None)


def _repeated_sentence(row: int, prompts: Sequence[Any], best: Sequence[Any]) -> Any:
    """The first sentence of the best answer, twice or as often as the answer is long."""
    text = answer_text(best[row])
    sentence = SENTENCE_END.split(text.strip())[0]
    return _like(best[row], sentence * max(2, round(len(text) / len(sentence))))


PROBES: dict[str, Callable[[int, Sequence[Any], Sequence[Any]], Any]] = {
    "empty": _empty,
    "prompt_repeated": _prompt_repeated,
    "answer_to_another_prompt": _answer_to_another_prompt,
    "repeated_sentence": _repeated_sentence,
}


def _like(response: Any, text: str) -> Any:
    """A text in the form of a response: text, or messages."""
    return text if isinstance(response, str) else [{"role": "assistant", "content": text}]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
