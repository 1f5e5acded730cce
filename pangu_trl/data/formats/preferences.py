"""Formats of answers that people or models have judged: HH, UltraFeedback, HelpSteer, Nectar, two benchmarks."""

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

    The judgements, `helpfulness` too, become lists with a value for each answer.
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
    # The scores of the ranking, and an attribute like the others.
    return ranking(prompt, texts, scores) | {"helpfulness": scores}


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


def _from_cheems(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"input", "responses": [{"id", "content"}, ...], "rank": {id: 1 is best}}; scores: the ranks below zero."""
    prompt = [{"role": "user", "content": text_of(row, "input", where)}]
    if kind == "prompt":
        return {"prompt": prompt}
    try:
        texts, ranks = ranked_answers(row)
    except ValueError as error:
        raise RecordError(f"{where} {error}") from error
    return ranking(prompt, texts, [float(-rank) for rank in ranks])


def ranked_answers(row: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Texts and ranks of the answers of a row of CheemsBench, lower is better.

    Raises:
        ValueError: It names the key, what it must be and what it is.
    """
    answers: dict[str, str] = {}
    for response in row.get("responses") or []:
        is_answer = isinstance(response, Mapping) and isinstance(response.get("content"), str)
        if not is_answer or str(response.get("id")) in answers:
            raise ValueError(
                f"'responses' must be objects of text in 'content' and an 'id' of their own; got {response!r}"
            )
        answers[str(response.get("id"))] = response["content"]
    if len(answers) < 2:
        raise ValueError(f"'responses' must be two answers at least; got {row.get('responses')!r}")
    given = row.get("rank")
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, list) or not all(_is_rank(pair) for pair in pairs):
        raise ValueError(f"'rank' must be an object of ids and whole numbers, or pairs of them; got {given!r}")
    # Read as columns, an object has the ids of other rows too, without a rank.
    ranks = {str(identity): int(rank) for identity, rank in pairs if rank is not None}
    if ranks.keys() != answers.keys() or len(ranks) < sum(rank is not None for _, rank in pairs):
        raise ValueError(f"'rank' must give each of the answers {', '.join(answers)} one rank; got {given!r}")
    return list(answers.values()), [ranks[identity] for identity in answers]


def _is_rank(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    rank = pair[1]
    is_whole = isinstance(rank, int) and not isinstance(rank, bool)
    return rank is None or is_whole or (isinstance(rank, str) and rank.strip().isdigit())


HH = Format(("chosen", "rejected"), ("ranking", "demonstration", "prompt"), _from_hh)
NECTAR = Format(("prompt", "answers"), ("ranking", "prompt"), _from_nectar)
ULTRAFEEDBACK = Format(("instruction", "completions"), ("ranking", "prompt"), _from_ultrafeedback)
REWARDBENCH = Format(("prompt", "chosen", "rejected"), ("ranking", "prompt"), _from_rewardbench)
CHEEMS = Format(("input", "responses", "rank"), ("ranking", "prompt"), _from_cheems)
HELPSTEER = Format(
    ("prompt", "response", "helpfulness"), ("ranking", "demonstration", "prompt"), _from_helpsteer, _gather_helpsteer
)
