"""Rows of public formats become the records that are written here by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pangu_trl.data import CardError, DataCard, RecordError, load_records, write_jsonl
from pangu_trl.data.cards import FILE_FORMATS
from pangu_trl.data.formats import FORMATS
from pangu_trl.data.sources import reader_of_card

CARDS = Path(__file__).parents[2] / "data_cards"
HUB_CARDS = [
    path
    for path in sorted(CARDS.glob("*.md"))
    if path.name != "README.md" and DataCard.load(path).path not in FILE_FORMATS
]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


EGG = [user("How do I boil an egg?"), says("Soft or hard?"), user("Soft.")]
RIVER = [user("Hello"), says("Hi, what is it?"), user("Name a river.")]

# The records of the sample of each card whose set is on the Hub.
RECORDS: dict[str, list[dict[str, Any]]] = {
    "hh-rlhf": [
        {
            "prompt": EGG,
            "responses": [[says("Six minutes in boiling water.")], [says("Eggs come from hens.")]],
            "scores": [1.0, 0.0],
        }
    ],
    "ultrafeedback": [
        {
            "prompt": [user("Name a prime number.")],
            "responses": [[says("7")], [says("8")], [says("11")]],
            "scores": [9.0, 1.5, 9.0],
            "source": "made up",
            "models": ["a", "b", "c"],
        }
    ],
    "ultrafeedback-binarized": [
        {
            "prompt": [user("Name a metal.")],
            "responses": [[says("Iron.")], [says("Wood.")]],
            "scores": [1.0, 0.0],
            "prompt_id": "b",
            "score_chosen": 8.5,
            "score_rejected": 2.0,
        }
    ],
    "ultrachat-200k": [
        {"prompt": [user("Hi")], "completion": [says("Hello!"), user("Bye"), says("Goodbye.")], "prompt_id": "a"}
    ],
    "helpsteer2": [
        {
            "prompt": [user("What is tea?")],
            "responses": [[says("A drink made of leaves.")], [says("A word.")]],
            "scores": [4.0, 1.0],
            "helpfulness": [4.0, 1.0],
            "correctness": [4, 2],
            "coherence": [4, 4],
            "complexity": [1, 0],
            "verbosity": [1, 0],
        },
        {
            "prompt": RIVER,
            "responses": [[says("The Yangtze.")], [says("Everest.")]],
            "scores": [3.0, 0.0],
            "helpfulness": [3.0, 0.0],
            "correctness": [4, 0],
            "coherence": [4, 3],
            "complexity": [1, 1],
            "verbosity": [0, 0],
        },
    ],
    "nectar": [
        {
            "prompt": [user("Name a colour.")],
            "responses": [[says("Red.")], [says("A colour.")], [says("Blue, I think.")]],
            "scores": [-1.0, -3.0, -2.0],
            "turns": 1,
            "num_responses": 3,
        }
    ],
    "cheems-bench": [
        {
            "prompt": [user("哪个季节白天最长？")],
            "responses": [[says("夏季。")], [says("冬季。")], [says("夏季，夏至那天白天最长。")]],
            "scores": [-2.0, -3.0, -1.0],
            "category": ["常识问答"],
        },
        {
            "prompt": [user("写一句祝福。")],
            "responses": [[says("祝你平安。")], [says("愿你顺利。")], [says("哦。")]],
            "scores": [-1.0, -1.0, -2.0],
            "category": ["写作"],
        },
    ],
    "reward-bench-2": [
        {
            "prompt": [user("Name a prime number.")],
            "responses": [[says("Seven.")], [says("Eight.")], [says("Nine.")], [says("Ten.")]],
            "scores": [1.0, 0.0, 0.0, 0.0],
            "id": "1",
            "num_correct": 1,
            "num_incorrect": 3,
            "total_completions": 4,
            "models": ["a", "b", "c", "d"],
            "subset": "Math",
        },
        {
            "prompt": [user("Name a colour.")],
            "responses": [[says("Red.")], [says("Blue.")], [says("Loud.")]],
            "scores": [1.0, 1.0, 0.0],
            "id": "tied:1",
            "num_correct": 2,
            "num_incorrect": 1,
            "total_completions": 3,
            "models": ["a", "b", "c"],
            "subset": "Ties",
        },
    ],
    "oasst1": [
        {
            "prompt": [user("怎样泡茶？")],
            "responses": [[says("绿茶用八十度的水，泡两分钟。")], [says("用开水。")]],
            "scores": [0.0, -1.0],
        }
    ],
    "alpaca-zh": [
        {"prompt": [user("把下面的句子改成问句。\n今天下雨。")], "completion": [says("今天下雨吗？")]},
        {"prompt": [user("说出一种水果。")], "completion": [says("苹果。")]},
    ],
    "belle-1m": [{"prompt": [user("写一句问候。")], "completion": [says("早上好！")]}],
    "zhihu-rlhf-3k": [
        {"prompt": "怎样早起？", "responses": ["早睡，把闹钟放远一些。", "不知道。"], "scores": [1.0, 0.0]}
    ],
    "glaive-tool-calls": [
        {
            "prompt": [user("Weather in Xi'an?")],
            "completion": [
                call("get_weather", city="Xi'an", at=1.7),
                {"role": "tool", "content": '{"sky": "clear"}'},
                says("Clear."),
            ],
            "tools": '[{"name": "get_weather", "parameters": {}}]',
        },
        {
            "prompt": [user("Time?")],
            "completion": [call("now", zone="UTC"), {"role": "tool", "content": ""}, says("Noon.")],
            "tools": "[]",
        },
    ],
}


def sample_card(path: Path, folder: Path) -> Path:
    """The card with the sample in the place of the set on the Hub."""
    card = DataCard.load(path)
    block = {"kind": card.kind, "path": "json", "data_files": str(CARDS / "samples" / "public" / f"{path.stem}.jsonl")}
    block |= {"columns": card.columns} | ({"format": card.format} if card.format else {})
    (folder / path.name).write_text(f"---\npangu_trl: {json.dumps(block)}\n---\n", encoding="utf-8")
    return folder / path.name


@pytest.mark.parametrize("path", HUB_CARDS, ids=lambda path: path.stem)
def test_sample_of_a_public_set_gives_its_records(path: Path, tmp_path: Path) -> None:
    card = DataCard.load(path)
    assert "Not loaded here" in path.read_text("utf-8")
    assert list(load_records(sample_card(path, tmp_path), card.kind)) == RECORDS[path.stem]


def test_there_are_cards_of_chinese_and_english_sets() -> None:
    languages = [path.read_text("utf-8").split("language: ")[1].split("\n")[0] for path in HUB_CARDS]
    assert len(HUB_CARDS) >= 8
    assert sum("zh" in language for language in languages) >= 3
    assert sum("en" in language for language in languages) >= 3


OASST = {
    "message_tree_id": "1",
    "prompt": {
        "text": "问",
        "role": "prompter",
        "replies": [
            {"text": "差", "role": "assistant", "rank": 1, "replies": []},
            {
                "text": "好",
                "role": "assistant",
                "rank": 0,
                "replies": [{"text": "再问", "role": "prompter", "replies": []}],
            },
            {"text": "删", "role": "assistant", "rank": 2, "deleted": True, "replies": []},
        ],
    },
}
OPENAI_CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city": "北京"}'}}],
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
SHAREGPT = {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}

# Format, kind, row, and the records that come out.
ROWS = [
    (
        "messages",
        "demonstration",
        {"messages": [user("问"), says("答")]},
        [{"prompt": [user("问")], "completion": [says("答")]}],
    ),
    (
        "messages",
        "prompt",
        {"messages": [user("一"), says("二"), user("三"), says("四")], "id": 7},
        [{"prompt": [user("一"), says("二"), user("三")], "id": 7}],
    ),
    (
        "sharegpt",
        "demonstration",
        SHAREGPT | {"system": "你是助手。"},
        [{"prompt": [{"role": "system", "content": "你是助手。"}, user("问")], "completion": [says("答")]}],
    ),
    (
        "sharegpt",
        "ranking",
        {
            "conversations": [{"from": "human", "value": "问"}],
            "chosen": {"from": "gpt", "value": "好"},
            "rejected": {"from": "gpt", "value": "差"},
        },
        [{"prompt": [user("问")], "responses": [[says("好")], [says("差")]], "scores": [1.0, 0.0]}],
    ),
    (
        "alpaca",
        "demonstration",
        {"instruction": "三", "input": "", "output": "四", "history": [["一", "二"]], "system": "零"},
        [
            {
                "prompt": [{"role": "system", "content": "零"}, user("一"), says("二"), user("三")],
                "completion": [says("四")],
            }
        ],
    ),
    ("alpaca", "prompt", {"instruction": "译", "input": "hi", "output": ""}, [{"prompt": [user("译\nhi")]}]),
    (
        "alpaca",
        "ranking",
        {"instruction": "问", "chosen": "好", "rejected": "差"},
        [{"prompt": [user("问")], "responses": [[says("好")], [says("差")]], "scores": [1.0, 0.0]}],
    ),
    (
        "openai",
        "demonstration",
        {
            "messages": [user("问"), OPENAI_CALL, {"role": "tool", "tool_call_id": "c1", "content": "晴"}, says("晴")],
            "tools": TOOLS,
        },
        [
            {
                "tools": TOOLS,
                "prompt": [user("问")],
                "completion": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"city": "北京"}}}
                        ],
                        "content": "",
                    },
                    {"role": "tool", "tool_call_id": "c1", "content": "晴"},
                    says("晴"),
                ],
            }
        ],
    ),
    (
        "openai",
        "demonstration",
        {"messages": [user("问"), {"role": "assistant", "content": [{"type": "text", "text": "答"}], "weight": 1}]},
        [{"prompt": [user("问")], "completion": [says("答")]}],
    ),
    (
        "openai",
        "ranking",
        {
            "input": {"messages": [user("问")], "tools": TOOLS},
            "preferred_output": [says("好")],
            "non_preferred_output": [says("差")],
        },
        [{"tools": TOOLS, "prompt": [user("问")], "responses": [[says("好")], [says("差")]], "scores": [1.0, 0.0]}],
    ),
    (
        "hh",
        "demonstration",
        {"chosen": "\n\nHuman: 问\n\nAssistant: 答\n两行", "rejected": "\n\nHuman: 问\n\nAssistant: 错"},
        [{"prompt": [user("问")], "completion": [says("答\n两行")]}],
    ),
    ("hh", "prompt", {"chosen": "\n\nHuman: 问\n\nAssistant: 答"}, [{"prompt": [user("问")]}]),
    ("ultrafeedback", "prompt", {"instruction": "问", "completions": []}, [{"prompt": [user("问")]}]),
    (
        "helpsteer",
        "demonstration",
        {"prompt": "问", "response": "答", "helpfulness": 3},
        [{"prompt": [user("问")], "completion": [says("答")]}],
    ),
    ("rewardbench", "prompt", {"prompt": "问", "chosen": ["a"], "rejected": ["b"]}, [{"prompt": [user("问")]}]),
    ("nectar", "prompt", {"prompt": "\n\nHuman: 问\n\nAssistant: ", "answers": [{}]}, [{"prompt": [user("问")]}]),
    ("oasst", "demonstration", OASST, [{"prompt": [user("问")], "completion": [says("好")]}]),
    (
        "oasst",
        "ranking",
        OASST,
        [{"prompt": [user("问")], "responses": [[says("好")], [says("差")]], "scores": [0.0, -1.0]}],
    ),
    ("oasst", "prompt", OASST, [{"prompt": [user("问")]}, {"prompt": [user("问"), says("好"), user("再问")]}]),
]


@pytest.mark.parametrize(("name", "kind", "row", "records"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_row_of_a_format_becomes_records(name: str, kind: str, row: dict, records: list[dict], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert list(load_records(tmp_path / "rows.jsonl", kind, data_format=name)) == records


REFUSED = [
    (
        "messages",
        "demonstration",
        {"messages": [says("答"), user("问")]},
        "must have a message of the assistant behind one of the user",
    ),
    (
        "messages",
        "demonstration",
        {"messages": [user("问"), says("答"), user("问")]},
        "must end with the assistant; it ends with user",
    ),
    (
        "messages",
        "demonstration",
        {"messages": [{"role": "bot", "content": "x"}, says("y")]},
        "'prompt[0].role' must be one of",
    ),
    (
        "messages",
        "demonstration",
        {"messages": "text"},
        "'messages' must be a list that is not empty; got 'text' (str)",
    ),
    (
        "messages",
        "demonstration",
        SHAREGPT,
        "the row must have some of messages, chosen, rejected, prompt; it has conversations",
    ),
    (
        "messages",
        "ranking",
        {"chosen": [user("a"), says("b")], "rejected": [user("c"), says("d")]},
        "must begin with the same prompt",
    ),
    (
        "sharegpt",
        "demonstration",
        {"conversations": [{"from": "robot", "value": "x"}]},
        "'from' must be one of system, human",
    ),
    (
        "sharegpt",
        "demonstration",
        {"conversations": [{"from": "human", "value": ""}]},
        "'value' must be text that is not empty",
    ),
    (
        "sharegpt",
        "demonstration",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(x)"}]},
        "conversations[1]: 'value': must be one JSON object",
    ),
    ("alpaca", "demonstration", {"instruction": "问", "output": ""}, "'output' must be text that is not empty"),
    ("alpaca", "demonstration", {"instruction": "问", "output": "答", "input": 3}, "'input' must be text; got 3 (int)"),
    (
        "alpaca",
        "demonstration",
        {"instruction": "问", "output": "答", "history": ["一"]},
        "'history[0]' must be a question and its",
    ),
    (
        "openai",
        "demonstration",
        {"messages": [user("问"), says("答") | {"weight": 0}]},
        "messages[1]: 'weight' must be 1 or absent",
    ),
    (
        "openai",
        "demonstration",
        {"messages": [user("问"), {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[1]: 'text' must be text that is not empty",
    ),
    (
        "openai",
        "demonstration",
        {
            "messages": [
                user("问"),
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            ]
        },
        "'arguments' must be an object; got [1] (list)",
    ),
    ("hh", "ranking", {"chosen": "Human: 问", "rejected": "Human: 问"}, "'chosen' must begin with"),
    (
        "hh",
        "ranking",
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
        "must differ in their last message alone",
    ),
    (
        "hh",
        "ranking",
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
        "must be text that is not empty",
    ),
    (
        "ultrafeedback",
        "ranking",
        {"instruction": "问", "completions": []},
        "'completions' must be a list that is not empty",
    ),
    (
        "ultrafeedback",
        "ranking",
        {
            "instruction": "问",
            "completions": [{"response": "a", "overall_score": "9"}, {"response": "b", "overall_score": 1}],
        },
        "completions: 'overall_score' must be a number; got '9' (str)",
    ),
    (
        "nectar",
        "ranking",
        {"prompt": "\n\nHuman: 问", "answers": [{"answer": "a"}]},
        "answers: 'rank' must be a number; got None",
    ),
    (
        "cheems",
        "ranking",
        {"input": "问", "responses": [{"id": 1, "content": "a"}, {"id": 2, "content": "b"}], "rank": {"1": 1}},
        "'rank' must give each of the answers 1, 2 one rank",
    ),
    ("rewardbench", "ranking", {"prompt": "问", "chosen": ["a"], "rejected": []}, "'rejected' must be"),
    ("rewardbench", "ranking", {"prompt": "问", "chosen": [3], "rejected": ["b"]}, "'chosen' must be text"),
    (
        "oasst",
        "demonstration",
        {"prompt": {"text": "问", "role": "user"}},
        "'role' must be one of prompter, assistant; got 'user'",
    ),
    (
        "oasst",
        "demonstration",
        {"prompt": {"text": "问", "role": "prompter"}},
        "the tree must have an answer to its question",
    ),
    ("oasst", "ranking", {"message_id": "2", "parent_id": "1", "message_tree_id": "1"}, "there is no '1'"),
    ("oasst", "ranking", {"text": "a"}, "the row must have 'prompt', the root of a tree, or 'message_tree_id'"),
]


@pytest.mark.parametrize(("name", "kind", "row", "message"), REFUSED)
def test_row_that_is_not_of_the_format_is_refused_by_its_line(
    name: str, kind: str, row: dict, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n" + json.dumps(row, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(RecordError) as caught:
        load_records(file, kind, data_format=name)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert message in str(caught.value)


def test_single_answers_of_helpsteer_rank_nothing_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": prompt, "response": answer, "helpfulness": 1} for prompt, answer in ["ax", "bx", "by"]]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert len(load_records(tmp_path / "rows.jsonl", "ranking", data_format="helpsteer")) == 1
    assert "left out 1 prompts with a single answer" in caplog.text


def test_format_without_such_records_and_unknown_format_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "问"}])
    with pytest.raises(RecordError, match="the format ultrafeedback has records of the kind ranking or prompt"):
        load_records(tmp_path / "rows.jsonl", "demonstration", data_format="ultrafeedback")
    with pytest.raises(RecordError, match=f"the format must be one of {', '.join(FORMATS)}; got 'alpacas'"):
        load_records(tmp_path / "rows.jsonl", "demonstration", data_format="alpacas")


def test_card_maps_the_columns_of_a_format(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"对话": SHAREGPT["conversations"], "id": 1}])
    block = {"kind": "demonstration", "path": "json", "format": "sharegpt", "data_files": "rows.jsonl"}
    card = tmp_path / "card.md"
    card.write_text(
        f"---\npangu_trl: {json.dumps(block | {'columns': {'conversations': '对话'}})}\n---\n", encoding="utf-8"
    )
    assert list(load_records(card, "demonstration")) == [{"prompt": [user("问")], "completion": [says("答")], "id": 1}]
    assert list(load_records(card, "prompt")) == [{"prompt": [user("问")], "id": 1}]
    mapped = json.dumps(block | {"columns": {"prompt": "对话"}})
    card.write_text(f"---\npangu_trl: {mapped}\n---\n", encoding="utf-8")
    with pytest.raises(CardError, match="'pangu_trl.columns.prompt' is not a field of the format sharegpt"):
        load_records(card, "demonstration")


def test_format_beside_a_card_is_refused() -> None:
    with pytest.raises(CardError, match="a card names its format itself, with the key 'format'; got 'hh' beside it"):
        load_records(CARDS / "ranked-answers-sample.md", "ranking", data_format="hh")


def test_reading_a_card_again_gives_the_same_rows() -> None:
    path = next(path for path in HUB_CARDS if path.stem == "hh-rlhf")
    card = DataCard.load(path)
    sample = str(CARDS / "samples" / "public" / "hh-rlhf.jsonl")
    read = reader_of_card(replace(card, path="json", data_files={"train": [sample]}), "train", "ranking")
    assert list(read()) == list(read())
