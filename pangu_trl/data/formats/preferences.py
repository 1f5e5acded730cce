"""Formats of answers that people or models have judged: HH, UltraFeedback, HelpSteer, Nectar, RewardBench 2."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from ..records import OnFault, RecordError
from .format import Format, Message, Row, list_of, number_of, object_of, of_conversation, ranking, text_of

logger = logging.getLogger(__name__)

HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HELPSTEER_TURN = re.compile(r"<extra_id_1>(User|Assistant)\n")
SPEAKERS = {"Human": "user", "User": "user", "Assistant": "assistant"}


def _from_hh(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"chosen", "rejected"}: dialogues, `\\n\\nHuman: ... \\n\\nAssistant: ...`, that differ in the last answer."""
    chosen = _turns(text_of(row, "chosen", where), HH_TURN, f"{where} 'chosen'")
    if kind != "ranking":
        return of_conversation(chosen, kind, where)
    rejected = _turns(text_of(row, "rejected", where), HH_TURN, f"{where} 'rejected'")
    if chosen[:-1] != rejected[:-1]:
        raise RecordError(f"{where} 'chosen' and 'rejected' must differ in their last message alone. Remove the row.")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _turns(text: str, mark: re.Pattern[str], where: str) -> list[Message]:
    before, *pieces = mark.split(text)
    if before.strip() or not pieces:
        raise RecordError(f"{where} must begin with {mark.pattern!r}; got {text[:40]!r}.")
    speakers, contents = pieces[::2], pieces[1::2]
    return [
        {"role": SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(speakers, contents, strict=True)
    ]


def _from_nectar(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"prompt": as in HH, "answers": [{"answer", "rank": 1 is best}, ...]}; the scores are the ranks below zero."""
    prompt = _turns(text_of(row, "prompt", where), HH_TURN, f"{where} 'prompt'")
    if prompt[-1] == {"role": "assistant", "content": ""}:
        prompt.pop()
    if kind == "prompt":
        return {"prompt": prompt}
    answers = [object_of(answer, "answers", where) for answer in list_of(row, "answers", where)]
    texts = [text_of(answer, "answer", f"{where} answers:") for answer in answers]
    return ranking(prompt, texts, [-number_of(answer, "rank", f"{where} answers:") for answer in answers])


def _from_ultrafeedback(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"instruction", "completions": [{"response", "overall_score"}, ...]}."""
    prompt = [{"role": "user", "content": text_of(row, "instruction", where)}]
    if kind == "prompt":
        return {"prompt": prompt}
    answers = [object_of(answer, "completions", where) for answer in list_of(row, "completions", where)]
    texts = [text_of(answer, "response", f"{where} completions:") for answer in answers]
    return ranking(prompt, texts, [number_of(answer, "overall_score", f"{where} completions:") for answer in answers])


def _gather_helpsteer(rows: Iterable[Row], kind: str, on_fault: OnFault) -> Iterator[Row]:
    """Rows that follow one another with the same prompt are the answers to it."""
    num_single = 0
    for prompt, group in groupby(rows, key=lambda row: row[1].get("prompt")):
        places = list(group)
        if len(places) == 1 and kind == "ranking":
            num_single += 1
            continue
        # A demonstration each, or one prompt, or one ranking.
        for member in [[place] for place in places] if kind == "demonstration" else [places]:
            rows_of_member = [row for _, row in member]
            names = dict.fromkeys(name for row in rows_of_member for name in row)
            yield member[0][0], {name: [row.get(name) for row in rows_of_member] for name in names} | {"prompt": prompt}
    if num_single:
        logger.warning("helpsteer: left out %d prompts with a single answer, which rank nothing.", num_single)


def _from_helpsteer(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"prompt", "response", "helpfulness"}, a row for each answer; later questions stand behind `<extra_id_1>User`.

    The other judgements, such as `correctness`, become lists with a value for each answer.
    """
    prompt = _turns(f"<extra_id_1>User\n{text_of(row, 'prompt', where)}", HELPSTEER_TURN, f"{where} 'prompt'")
    if prompt[-1] == {"role": "assistant", "content": ""}:
        prompt.pop()
    if kind == "prompt":
        return {"prompt": prompt}
    texts = [text_of({"response": text}, "response", where) for text in row["response"]]
    if kind == "demonstration":
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": texts[0]}]}
    scores = [number_of({"helpfulness": score}, "helpfulness", where) for score in row.get("helpfulness") or [None]]
    return ranking(prompt, texts, scores)


def _from_rewardbench(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"prompt", "chosen", "rejected"}: lists of right answers, which are all best, and of wrong ones."""
    prompt = [{"role": "user", "content": text_of(row, "prompt", where)}]
    if kind == "prompt":
        return {"prompt": prompt}
    answers = {
        name: [text_of({name: text}, name, where) for text in list_of(row, name, where)]
        for name in ("chosen", "rejected")
    }
    scores = [1.0] * len(answers["chosen"]) + [0.0] * len(answers["rejected"])
    return ranking(prompt, answers["chosen"] + answers["rejected"], scores)


HH = Format(("chosen", "rejected"), ("ranking", "demonstration", "prompt"), _from_hh)
NECTAR = Format(("prompt", "answers"), ("ranking", "prompt"), _from_nectar)
ULTRAFEEDBACK = Format(("instruction", "completions"), ("ranking", "prompt"), _from_ultrafeedback)
REWARDBENCH = Format(("prompt", "chosen", "rejected"), ("ranking", "prompt"), _from_rewardbench)
HELPSTEER = Format(
    ("prompt", "response", "helpfulness"), ("ranking", "demonstration", "prompt"), _from_helpsteer, _gather_helpsteer
)
