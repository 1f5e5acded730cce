"""How likely models find sampled answers: their perplexity, and how far one model has moved from another."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from friendly_judge import answer_text
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pangu_trl.answers.sampling import load_language_model
from pangu_trl.data.collators import pad_sequences
from pangu_trl.data.jsonl import read_jsonl
from pangu_trl.data.tokenizing import encode_completion, encode_prompt
from pangu_trl.models.modes import evaluation_mode


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens of one prompt and of one answer to it; the end of the turn belongs to an answer that has it."""

    prompt_ids: list[int]
    answer_ids: list[int]


def encode_answers(tokenizer: PreTrainedTokenizerBase, records: Sequence[dict]) -> list[AnswerTokens]:
    """Tokens of all answers of a file of `pangu-trl sample` but the empty ones, which have none.

    Raises:
        ValueError: All are empty.
    """
    encoded = []
    for record in records:
        prompt_ids = encode_prompt(tokenizer, record["prompt"])
        for response, finished in zip(record["responses"], record["finished"], strict=True):
            if not answer_text(response):
                continue
            answer_ids = encode_completion(tokenizer, record["prompt"], response)
            encoded.append(AnswerTokens(prompt_ids, answer_ids if finished else answer_ids[:-1]))
    if not encoded:
        raise ValueError(
            f"none of the answers to {len(records)} prompts has a token, so there is no likelihood of them"
        )
    return encoded


@torch.no_grad()
def answer_logprobs(
    model: PreTrainedModel,
    answers: Sequence[AnswerTokens],
    temperatures: Sequence[float] = (1.0,),
    batch_size: int = 16,
) -> list[list[float]]:
    """Log-probability of each answer, summed over its tokens, in nats, at each temperature from one pass.

    Args:
        model: Language model.
        answers: N encoded answers.
        temperatures: T numbers that the logits are divided by.
        batch_size: Answers in one pass.

    Returns:
        For each temperature the N log-probabilities.
    """
    order = sorted(range(len(answers)), key=lambda row: -len(answers[row].prompt_ids + answers[row].answer_ids))
    sums = [[0.0] * len(answers) for _ in temperatures]
    with evaluation_mode(model):
        for start in tqdm(range(0, len(order), batch_size), desc="likelihoods", unit="batch"):
            rows = order[start : start + batch_size]
            sequences = [answers[row].prompt_ids + answers[row].answer_ids for row in rows]
            input_ids, attention_mask = pad_sequences(sequences, 0, side="right")
            # Nobody reads the logits of prompts, and the head is a fifth of a small model.
            shortest = min(len(answers[row].prompt_ids) for row in rows) - 1
            kept = input_ids.size(1) - shortest
            logits = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=kept).logits
            for row, ids, row_logits in zip(rows, sequences, logits, strict=True):
                first = len(answers[row].prompt_ids)
                predicted = row_logits[first - 1 - shortest : len(ids) - 1 - shortest].float()
                answer_ids = torch.tensor(ids[first:])[:, None]
                for sums_at, temperature in zip(sums, temperatures, strict=True):
                    logprobs = (predicted / temperature).log_softmax(dim=-1)
                    sums_at[row] = logprobs.gather(-1, answer_ids).sum().item()
    return sums


def perplexity(logprobs: Sequence[float], answers: Sequence[AnswerTokens]) -> float:
    """exp of the negative log-probability per token, over the tokens of all answers."""
    return math.exp(-sum(logprobs) / sum(len(answer.answer_ids) for answer in answers))


def measure_likelihoods(start: Path, policy: Path, samples: dict[str, Path], temperature: float, output: Path) -> dict:
    """Perplexity of the answers of both models under the start model, and the KL divergence of the policy from it.

    Args:
        start: The start model.
        policy: The tuned model.
        samples: Files of answers, `start` and `ppo`.
        temperature: At which they were sampled. The divergence is that of the two distributions at this temperature,
            as PPO counts it; perplexities are those of the model as it is.
        output: JSON file for the figures.
    """
    model, tokenizer = load_language_model(str(start))
    answers = {name: encode_answers(tokenizer, read_jsonl(path)) for name, path in samples.items()}
    (own,) = answer_logprobs(model, answers["start"])
    tuned, reference = answer_logprobs(model, answers["ppo"], (1.0, temperature))
    policy_model, _ = load_language_model(str(policy))
    (drifted,) = answer_logprobs(policy_model, answers["ppo"], (temperature,))
    figures = {
        "perplexity_start": perplexity(own, answers["start"]),
        "perplexity_ppo": perplexity(tuned, answers["ppo"]),
        "kl": mean_divergence(drifted, reference),
    }
    output.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    return figures


def mean_divergence(drifted: Sequence[float], reference: Sequence[float]) -> float:
    """KL divergence of a policy from its reference in nats an answer, estimated from answers that the policy sampled.

    Args:
        drifted: Their log-probabilities under the policy.
        reference: Those under the reference.
    """
    return sum(after - before for after, before in zip(drifted, reference, strict=True)) / len(drifted)
