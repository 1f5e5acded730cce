"""Where the answer begins in pairs without a prompt."""

import pytest

from pangu_trl.reward.implicit_prompts import with_prompt

HH = "\n\nHuman: why?\n\nAssistant:"


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (HH + " good answer", HH + " great answer", HH),
        (HH + " the answer is good and fine", HH + " the answer is good", HH),
        (HH + " a" + HH + " so", HH + " a" + HH + " no", HH + " a" + HH),
        ("好吗？好", "好吗？差", "好吗？"),
        ("好吗？很好", "好吗？很差", "好吗？"),
        ("What is 3.14? It is pi.", "What is 3.14? It is e.", "What is 3.14?"),
        ("Question\nan apple", "Question\nan orange", "Question\n"),
        (turns("q", "good"), turns("q", "bad"), turns("q")),
        (turns("q", "a", "r", "good"), turns("q", "a", "r", "bad"), turns("q", "a", "r")),
        (turns("q", "good"), turns("q", "good", "more", "bad"), turns("q")),
        (turns("q", "a", "r", "x"), turns("q", "b", "r", "x"), turns("q")),
    ],
)  # fmt: skip
def test_the_prompt_ends_where_the_answer_begins(chosen, rejected, prompt):
    record = with_prompt({"chosen": chosen, "rejected": rejected, "id": 1}, "here")
    assert record == {
        "chosen": chosen[len(prompt) :],
        "rejected": rejected[len(prompt) :],
        "prompt": prompt,
        "id": 1,
    }


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("good answer", "great answer"), ("好", "差"), (turns("a", "b"), turns("c", "b")), ("text", turns("a", "b"))],
)
def test_what_shares_no_prompt_is_refused(chosen, rejected):
    with pytest.raises(ValueError, match="here: 'prompt' must be present, or 'chosen' and 'rejected' must begin alike"):
        with_prompt({"chosen": chosen, "rejected": rejected}, "here")
