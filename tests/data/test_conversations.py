"""Which tokens of a conversation are learnt, and what reaches the chat template; ids and masks worked out by hand."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from pangu_trl import GPTPanguTokenizer
from pangu_trl.data import (
    EncodingColumns,
    encode_completion,
    encode_prompt,
    encode_turns,
    tokenize_demonstrations,
    tokenize_prompts,
    tokenize_rankings,
)

RECIPE = Path(__file__).parents[2] / "recipes" / "sft.py"

WORDS = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|tool|>", "hello", "day", "good", "bad", "call", "city"]
ID = {word: index for index, word in enumerate(WORDS)}
END, USER, ASSISTANT, TOOL = ID["</s>"], ID["<|user|>"], ID["<|assistant|>"], ID["<|tool|>"]
HELLO, DAY, GOOD, BAD, CALL, CITY = (ID[word] for word in ("hello", "day", "good", "bad", "call", "city"))

PLAIN = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}</s>{% endgeneration %}"
    "{% else %}{{ message.content }}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED_WITHOUT_END = MARKED.replace("</s>{% endgeneration %}", "{% endgeneration %}</s>")
WITH_TOOLS = (
    "{% if tools %}{{ tools[0].name }} {% endif %}{% if mood %}{{ mood }}{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% for item in message.tool_calls or [] %}call {{ item.function.arguments.city }}{% endfor %}"
    "{{ message.content or '' }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def build(template: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel(ID, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|tool|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


TURNS = [assistant("good day"), user("hello"), assistant("bad")]


@pytest.mark.parametrize(
    "template", [PLAIN, MARKED, MARKED_WITHOUT_END], ids=["prefixes", "marks", "marks without end"]
)
def test_only_the_assistants_turns_of_a_completion_are_learnt(template: str) -> None:
    ids, mask = encode_turns(build(template), [user("hello day")], TURNS)
    assert ids == [GOOD, DAY, END, USER, HELLO, END, ASSISTANT, BAD, END]
    assert mask == [1, 1, 1, 0, 0, 0, 0, 1, 1]


def test_calls_of_tools_are_learnt_and_their_results_are_not() -> None:
    calls = [{"function": {"name": "weather", "arguments": {"city": "city"}}}]
    turns = [assistant(None, tool_calls=calls), {"role": "tool", "content": "good"}, assistant("good day")]
    ids, mask = encode_turns(build(WITH_TOOLS), [user("hello")], turns)
    assert ids == [CALL, CITY, END, TOOL, GOOD, END, ASSISTANT, GOOD, DAY, END]
    assert mask == [1, 1, 1, 0, 0, 0, 0, 1, 1, 1]


def test_a_mark_inside_a_turn_leaves_the_rest_of_it_out() -> None:
    template = (
        "{% for message in messages %}<|{{ message.role }}|>{% if message.role == 'assistant' %}good "
        "{% generation %}{{ message.content }}</s>{% endgeneration %}{% else %}{{ message.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert encode_turns(build(template), [user("hello")], [assistant("day")]) == ([GOOD, DAY, END], [0, 1, 1])


def test_demonstrations_learn_the_completions_turns_and_those_of_the_prompt_on_request() -> None:
    prompt = [user("hello"), assistant("bad"), user("day")]
    dataset = Dataset.from_list([{"prompt": prompt, "completion": TURNS}])
    ids = [USER, HELLO, END, ASSISTANT, BAD, END, USER, DAY, END, ASSISTANT]
    ids += [GOOD, DAY, END, USER, HELLO, END, ASSISTANT, BAD, END]
    for template in (PLAIN, MARKED):
        rows = [
            tokenize_demonstrations(dataset, build(template), 32, learns_prompt_turns=learns)[0]
            for learns in (False, True)
        ]
        assert [row["input_ids"] for row in rows] == [ids, ids]
        assert rows[0]["completion_mask"] == [0] * 10 + [1, 1, 1, 0, 0, 0, 0, 1, 1]
        assert rows[1]["completion_mask"] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0] + [1, 1, 1, 0, 0, 0, 0, 1, 1]


def test_turns_of_a_text_prompt_cannot_be_learnt() -> None:
    dataset = Dataset.from_list([{"prompt": "hello", "completion": "day"}])
    with pytest.raises(ValueError, match="row 0: the turns of the assistant are known in messages only"):
        tokenize_demonstrations(dataset, build(PLAIN), 32, learns_prompt_turns=True)


def test_a_template_that_rewrites_earlier_turns_is_refused_by_row() -> None:
    # The last answer is written in another way than the ones before it, as templates do that drop reasoning.
    template = PLAIN.replace(
        "{{ message.content }}", "{{ 'good ' if loop.last and loop.index > 1 }}{{ message.content }}"
    )
    dataset = Dataset.from_list([{"prompt": [user("hello")], "completion": TURNS}])
    with pytest.raises(ValueError) as caught:
        tokenize_demonstrations(dataset, build(template), 32)
    assert str(caught.value).startswith("row 0: the chat template must write a conversation turn by turn")
    assert "for the first 2 messages and" in str(caught.value)


TOOLS = [{"name": "city"}]


@pytest.mark.parametrize("tools", [TOOLS, '[{"name": "city"}]'], ids=["list", "JSON text"])
def test_tools_and_arguments_of_a_record_reach_the_template_in_every_stage(tools: Any) -> None:
    tokenizer = build(WITH_TOOLS)
    row = {"prompt": [user("hello")], "tools": tools, "chat_template_kwargs": {"mood": "bad"}}
    prompt_ids = [CITY, BAD, USER, HELLO, END, ASSISTANT]
    assert encode_prompt(tokenizer, row["prompt"], EncodingColumns.of(row)) == prompt_ids
    demonstration = row | {"completion": [assistant("day")]}
    assert tokenize_demonstrations(Dataset.from_list([demonstration]), tokenizer, 32)[0]["input_ids"] == [
        *prompt_ids, DAY, END,
    ]  # fmt: skip
    ranking = row | {"responses": [[assistant("day")], [assistant("bad")]], "scores": [1.0, 0.0]}
    encoded = tokenize_rankings(Dataset.from_list([ranking]), tokenizer, 32)[0]
    assert encoded["prompt_input_ids"] == prompt_ids and encoded["response_input_ids"] == [[DAY, END], [BAD, END]]
    assert tokenize_prompts(Dataset.from_list([row]), tokenizer, 32)[0]["prompt_input_ids"] == prompt_ids


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": TOOLS}, "does not read tools, so that would be lost"),
        ({"chat_template_kwargs": {"mood": "bad"}}, r"does not read chat_template_kwargs\.mood"),
        ({"tools": "{"}, "'tools' must be a list of objects, or such a list as JSON text"),
        ({"tools": [3]}, "'tools' must be a list of objects that describe functions"),
        ({"chat_template_kwargs": "x"}, "'chat_template_kwargs' must be an object"),
        ({"chat_template_kwargs": {"tokenize": True}}, "must hold variables of the chat template; got tokenize"),
        ({"special_tokens_in_text": "drop"}, "'special_tokens_in_text' must be one of split, refuse, keep; got 'drop'"),
    ],
)
def test_columns_that_a_template_cannot_use_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_prompt(build(PLAIN), [user("hello")], EncodingColumns.of(row))


@pytest.mark.parametrize("field", ["tool_calls", "reasoning_content"])
def test_what_a_message_says_beside_its_content_is_not_lost(field: str) -> None:
    with pytest.raises(ValueError, match=f"does not read {field} of a message"):
        encode_completion(build(PLAIN), [user("hello")], [assistant("day", **{field: ["x"]})])


@pytest.mark.parametrize(
    ("template", "messages", "place"),
    [
        ("{{ raise_exception('no ' + messages[-1].role) if messages | length > 1 }}", [user("a"), user("b")], "[1]"),
        ("{{ messages[-1].content + messages[-1].name }}", [user("a")], "[0]"),
        ("{% for message in messages %}{{ message['content'] + 1 }}{% endfor %}", [user("a")], "[0]"),
    ],
    ids=["raises", "undefined", "type"],
)
def test_a_template_that_fails_is_named_with_message_and_role(
    template: str, messages: list[dict[str, Any]], place: str
) -> None:
    with pytest.raises(ValueError) as caught:
        tokenize_prompts(Dataset.from_list([{"prompt": messages}]), build(template), 32)
    assert f"row 0: the chat template refuses 'prompt{place}', a message of the role 'user': " in str(caught.value)
    assert "Give the tokenizer a template that can write it" in str(caught.value)


def test_a_template_that_is_no_jinja_is_refused() -> None:
    with pytest.raises(ValueError, match="the chat template (is no valid Jinja|refuses)"):
        encode_prompt(build("{% for %}"), [user("hello")])


def test_text_after_messages_counts_as_the_assistants_message() -> None:
    tokenizer = build(PLAIN)
    assert encode_completion(tokenizer, [user("hello")], "good day") == [GOOD, DAY, END]
    tokenizer.chat_template = PLAIN.replace("{{ message.content }}", "{{ 'good ' }}{{ message.content }}")
    assert encode_completion(tokenizer, [user("hello")], "day") == [GOOD, DAY, END]


@pytest.mark.parametrize(
    ("messages", "columns", "message"),
    [
        ([user("你好")], {"tools": TOOLS}, "no place for tools"),
        ([assistant("好", tool_calls=[{}]), user("你好")], {}, "no place for tool calls"),
        ([user("你好"), {"role": "system", "content": "好"}], {}, "a place for a system message only before"),
        ([user("你好"), {"role": "tool", "content": "好"}], {}, "must be system, user or assistant, got 'tool'"),
        ([assistant(None), user("你好")], {}, "the content of a message must be text"),
        ([user("你好")], {"chat_template_kwargs": {"enable_thinking": True}}, "does not read chat_template_kwargs"),
    ],
)
def test_the_template_of_gptpangu_says_what_it_cannot_hold(
    tokenizer: GPTPanguTokenizer, messages: list[dict[str, Any]], columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_prompt(tokenizer, messages, EncodingColumns.of(columns))


def test_gptpangu_learns_the_answers_of_a_conversation_only(tokenizer: GPTPanguTokenizer) -> None:
    words = {text: tokenizer.encode(text) for text in ("很好", "房间呢", "不好")}
    ids, mask = encode_turns(tokenizer, [user("酒店好吗")], [assistant("很好"), user("房间呢"), assistant("不好")])
    eot, sep = tokenizer.eos_token_id, tokenizer.sep_token_id
    assert ids == [*words["很好"], eot, *words["房间呢"], sep, *words["不好"], eot]
    learnt = [token for token, is_learnt in zip(ids, mask, strict=True) if is_learnt]
    assert learnt == [*words["很好"], eot, *words["不好"], eot]


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, [None] * 10 + [GOOD, DAY, END] + [None] * 4 + [BAD, END]),
        ({"assistant_only_loss": True}, [None] * 10 + [GOOD, DAY, END] + [None] * 4 + [BAD, END]),
        (
            {"assistant_only_loss": True, "completion_only_loss": False},
            [None] * 4 + [BAD, END] + [None] * 4 + [GOOD, DAY, END] + [None] * 4 + [BAD, END],
        ),
        (
            {"completion_only_loss": False},
            [USER, HELLO, END, ASSISTANT, BAD, END, USER, DAY, END, ASSISTANT]
            + [GOOD, DAY, END, USER, HELLO, END, ASSISTANT, BAD, END],
        ),
    ],
    ids=["default", "assistant", "assistant in the prompt too", "everything"],
)
def test_the_recipe_learns_what_its_options_say(
    options: dict[str, bool], labels: list[int | None], policy: Any, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("sft_recipe", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    tokenizer = build(PLAIN)
    tokenizer.pad_token = "</s>"
    args = SFTConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", **options)
    learns_prompt_turns = recipe.choose_loss(args)
    prompt = [user("hello"), assistant("bad"), user("day")]
    dataset = tokenize_demonstrations(
        Dataset.from_list([{"prompt": prompt, "completion": TURNS}]), tokenizer, 32, None, learns_prompt_turns
    )
    trainer = SFTTrainer(policy, args=args, train_dataset=dataset, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["labels"].tolist() == [[-100 if label is None else label for label in labels]]
