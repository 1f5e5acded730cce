"""What a record may look like, what comes out, and how each mistake is named."""

import math

import pytest

from pangu_trl.data import RecordError, validate_record

PLACE = "answers.jsonl:3"
QUESTION = [{"role": "user", "content": "你好吗？"}]
ANSWER = [{"role": "assistant", "content": "我很好。"}]


def refusal(record: dict, kind: str) -> str:
    with pytest.raises(RecordError) as caught:
        validate_record(record, kind, PLACE)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("demonstration", {"prompt": "问", "completion": "答"}),
        ("demonstration", {"prompt": QUESTION, "completion": ANSWER}),
        ("prompt", {"prompt": "问"}),
        ("prompt", {"prompt": [{"role": "system", "content": ""}, *QUESTION]}),
        ("text", {"text": "一段话"}),
        ("ranking", {"prompt": "问", "responses": ["甲", "乙"], "scores": [0.5, 2.0]}),
        ("ranking", {"prompt": QUESTION, "responses": [ANSWER, ANSWER * 2], "scores": [1.0, 0.0]}),
    ],
)
def test_canonical_record_comes_back_as_it_is_with_its_extra_columns(kind: str, record: dict) -> None:
    record = record | {"来源": "网络", "extra": None}
    assert validate_record(record, kind, PLACE) == record


def test_responses_without_scores_are_best_first() -> None:
    record = validate_record({"prompt": "问", "responses": ["甲", "乙", "丙"]}, "ranking", PLACE)
    assert record == {"prompt": "问", "responses": ["甲", "乙", "丙"], "scores": [2.0, 1.0, 0.0]}
    assert all(type(score) is float for score in record["scores"])


def test_integer_scores_become_floats() -> None:
    record = validate_record({"prompt": "问", "responses": ["甲", "乙"], "scores": [1, 3]}, "ranking", PLACE)
    assert record["scores"] == [1.0, 3.0]
    assert all(type(score) is float for score in record["scores"])


def test_chosen_and_rejected_become_two_responses() -> None:
    record = validate_record({"prompt": "问", "chosen": "好", "rejected": "坏", "id": 7}, "ranking", PLACE)
    assert record == {"prompt": "问", "responses": ["好", "坏"], "scores": [1.0, 0.0], "id": 7}


def test_field_that_is_none_counts_as_absent() -> None:
    record = {"prompt": "问", "responses": ["甲", "乙"], "chosen": None, "rejected": None}
    assert validate_record(record, "ranking", PLACE)["scores"] == [1.0, 0.0]
    pair = {"prompt": "问", "responses": None, "scores": None, "chosen": "甲", "rejected": "乙"}
    assert validate_record(pair, "ranking", PLACE)["scores"] == [1.0, 0.0]


def test_all_tied_group_is_valid() -> None:
    record = {"prompt": "问", "responses": ["甲", "乙"], "scores": [1.0, 1.0]}
    assert validate_record(record, "ranking", PLACE) == record


def test_equal_responses_with_equal_scores_are_valid() -> None:
    record = {"prompt": "问", "responses": ["甲", "甲", "乙"], "scores": [1.0, 1.0, 0.0]}
    assert validate_record(record, "ranking", PLACE) == record


def test_unranked_samples_serve_as_prompts_and_once_scored_as_rankings() -> None:
    samples = {"prompt": "问", "responses": ["甲", "乙"], "ranked": False}
    assert validate_record(samples, "prompt", PLACE) == samples
    scored = samples | {"scores": [0.0, 1.0]}
    assert validate_record(scored, "ranking", PLACE) == scored


def test_input_record_is_not_changed() -> None:
    record = {"prompt": "问", "chosen": "好", "rejected": "坏"}
    validate_record(record, "ranking", PLACE)
    assert record == {"prompt": "问", "chosen": "好", "rejected": "坏"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"responses": ["甲"]}, "'responses' must be a list of at least 2 answers; got ['甲'] (list)."),
        ({"responses": "甲乙"}, "'responses' must be a list of at least 2 answers; got '甲乙' (str)."),
        ({"responses": ["甲", ""]}, "'responses[1]' must be text that is not empty; got '' (str)."),
        ({"responses": ["甲", " \n\u3000"]}, "'responses[1]' must be text that is not empty; got ' \\n\\u3000' (str)."),
        ({"responses": ["甲", 3]}, "'responses[1]' must be text that is not empty; got 3 (int)."),
        ({"responses": ["甲", ANSWER]}, "'responses[1]' must be text, as the prompt is; got [{'role': 'assistant'"),
        ({}, "'responses' must be present; the record has prompt. Rename the field in the file, or map it with"),
        ({"chosen": "好"}, "'rejected' must be present; the record has prompt, chosen."),
        ({"chosen": "好", "rejected": ""}, "'rejected' must be text that is not empty; got '' (str)."),
        (
            {"chosen": "好", "rejected": "坏", "responses": ["甲", "乙"]},
            "'responses' must be absent when there is 'chosen' or 'rejected'; got ['甲', '乙'] (list).",
        ),
        (
            {"chosen": "好", "rejected": "好"},
            "'rejected' must differ from 'chosen' or have the same score; got the same answer with the scores 1.0 and "
            "0.0. Remove one of the two.",
        ),
        (
            {"responses": ["甲", "乙", "甲"]},
            "'responses[2]' must differ from 'responses[0]' or have the same score; got the same answer with the "
            "scores 2.0 and 0.0. Remove one of the two.",
        ),
        (
            {"responses": ["甲", "乙"], "ranked": False},
            "'scores' must be present, because 'ranked' is false: these answers are samples that nobody has ranked "
            "yet. Run `pangu-trl score` on the file, or order the answers best first and drop 'ranked'.",
        ),
        (
            {"responses": ["甲", "乙"], "scores": [1.0]},
            "'scores' must hold one number for each of the 2 responses; got 1.",
        ),
        # Not best first in silence: the scores of this one may have been lost.
        ({"responses": ["甲", "乙"], "scores": None}, "'scores' is null: nobody scored these answers"),
        ({"responses": ["甲", "乙"], "scores": 1.0}, "'scores' must be a list of numbers; got 1.0 (float)."),
        ({"responses": ["甲", "乙"], "scores": [1, "2"]}, "'scores[1]' must be a finite number; got '2' (str)."),
        ({"responses": ["甲", "乙"], "scores": [10**400, 0]}, "'scores[0]' must be a finite number; got 1000"),
        ({"responses": ["甲", "乙"], "scores": [True, 0]}, "'scores[0]' must be a finite number; got True (bool)."),
        ({"responses": ["甲", "乙"], "scores": [1, None]}, "'scores[1]' must be a finite number; got None (NoneType)."),
        ({"responses": ["甲", "乙"], "scores": [math.nan, 0]}, "'scores[0]' must be a finite number; got nan (float)."),
        (
            {"responses": ["甲", "乙"], "scores": [0, -math.inf]},
            "'scores[1]' must be a finite number; got -inf (float).",
        ),
    ],
)
def test_unusable_ranking_is_refused(record: dict, message: str) -> None:
    assert refusal({"prompt": "问"} | record, "ranking").startswith(f"{PLACE}: {message}")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "'prompt' must be text that is not empty; got '' (str)."),
        ({"role": "user"}, "'prompt' must be text that is not empty; got {'role': 'user'} (dict)."),
        ([], "'prompt' must be text or at least one message; got [] (list)."),
        (["你好"], "'prompt[0]' must be a message with 'role' and 'content'; got '你好' (str)."),
        ([{"role": "user"}], "'prompt[0]' must be a message with 'role' and 'content'; got {'role': 'user'} (dict)."),
        (
            [{"role": "human", "content": "你好"}],
            "'prompt[0].role' must be one of system, developer, user, assistant, tool; got 'human' (str).",
        ),
        (
            [*QUESTION, {"role": "user", "content": " "}],
            "'prompt[1].content' must be text that is not empty; got ' ' (str).",
        ),
        (
            [{"role": "user", "content": None}],
            "'prompt[0].content' must be text that is not empty; got None (NoneType).",
        ),
        (
            QUESTION + ANSWER,
            "'prompt[1].role' must be user or tool in the last message; got 'assistant' (str).",
        ),
        ("坏\ud800", "'prompt' must be valid Unicode; got 'a lone surrogate at character 1' (str)."),
    ],
)
def test_unusable_prompt_is_refused_in_every_kind_that_has_one(prompt: object, message: str) -> None:
    record = {"prompt": prompt, "completion": "答", "responses": ["甲", "乙"]}
    for kind in ("prompt", "demonstration", "ranking"):
        assert refusal(record, kind) == f"{PLACE}: {message}"


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ("答", "'completion' must be messages, as the prompt is; got '答' (str)."),
        (
            QUESTION + ANSWER,
            "'completion[0].role' must be assistant in the first and the last message of an answer; got 'user' (str).",
        ),
        (
            ANSWER + QUESTION,
            "'completion[1].role' must be assistant in the first and the last message of an answer; got 'user' (str).",
        ),
    ],
)
def test_unusable_completion_of_messages_is_refused(completion: object, message: str) -> None:
    assert refusal({"prompt": QUESTION, "completion": completion}, "demonstration") == f"{PLACE}: {message}"


def test_missing_fields_are_named_with_those_that_are_there() -> None:
    assert refusal({"prompt": "问", "answer": "答"}, "demonstration").startswith(
        f"{PLACE}: 'completion' must be present; the record has prompt, answer."
    )
    assert refusal({}, "text").startswith(f"{PLACE}: 'text' must be present; the record has no field at all.")
    assert refusal({"text": 5}, "text") == f"{PLACE}: 'text' must be text that is not empty; got 5 (int)."


def test_unknown_kind_is_refused() -> None:
    assert refusal({"prompt": "问"}, "rlhf") == (
        f"{PLACE}: the kind of a record must be one of demonstration, ranking, prompt, text; got 'rlhf'."
    )


def test_long_values_are_shortened_in_messages() -> None:
    message = refusal({"prompt": "问", "responses": ["x" * 500]}, "ranking")
    assert message.endswith("got ['" + "x" * 58 + "... (list).")
