"""The tokens of a record depend on the record alone: not on its neighbours, on its file, or on the order."""

import gzip
import json
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from pangu_trl.data import encode_completion, encode_prompt, load_records, tokenize_demonstrations, tokenize_prompts

# Writes every value of a call, so that a null too many, or a digit too few, is another token.
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}[{{ call.function.arguments | tojson }}]{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
arguments = st.dictionaries(
    st.sampled_from(["city", "zone", "at", "a.b", ""]) | texts,
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)),
    max_size=3,
)


@st.composite
def demonstrations(draw: st.DrawFn) -> dict[str, Any]:
    calls = draw(st.lists(arguments, max_size=2))
    answer: dict[str, Any] = {"role": "assistant", "content": draw(texts)}
    if calls:
        answer["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": call}} for call in calls]
    record = {"prompt": [{"role": "user", "content": draw(texts)}], "completion": [answer]}
    return record | ({"meta": draw(arguments)} if draw(st.booleans()) else {})


def byte_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(BPE({letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TOKENIZER = byte_tokenizer()


def write(path: Path, records: list[dict[str, Any]], form: str) -> None:
    lines = "".join(json.dumps(record, ensure_ascii=form == "ascii") + "\n" for record in records).encode()
    if form == "list":
        path.with_suffix(".json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    elif form == "gzip":
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines))
    else:
        path.with_suffix(".jsonl").write_bytes(lines)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    files=st.lists(
        st.tuples(
            st.lists(demonstrations(), min_size=1, max_size=4), st.sampled_from(["ascii", "unicode", "list", "gzip"])
        ),
        min_size=1,
        max_size=3,
    )
)
def test_tokens_of_a_record_depend_on_the_record_alone(files: list[tuple[list[dict[str, Any]], str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, (records, form) in enumerate(files):
            write(Path(folder) / str(number), records, form)
        dataset = load_records(folder, "demonstration")
        encoded = tokenize_demonstrations(dataset, TOKENIZER, max_length=100_000)
        alone = [record for records, _ in files for record in records]
        for row, record in zip(encoded, alone, strict=True):
            prompt = encode_prompt(TOKENIZER, record["prompt"])
            completion = encode_completion(TOKENIZER, record["prompt"], record["completion"])
            assert row["input_ids"] == prompt + completion
            # By hand: the bytes of what the template writes.
            assert TOKENIZER.decode(prompt) == f"<user>{record['prompt'][0]['content']}</s><assistant>"
        for row, record in zip(dataset, alone, strict=True):
            assert row["prompt"] == record["prompt"]
            assert row["completion"] == record["completion"]
            assert row.get("meta") == record.get("meta")


def tool_prompt(**arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"prompt": [*messages, {"role": "tool", "content": "b"}], "meta": {"at": list(arguments)}}


def test_prompts_keep_their_columns_and_tokens_exactly_beside_others_of_another_shape(tmp_path) -> None:
    """`map` writes a column that its function has read with ten digits a number."""
    records = [tool_prompt(city=1.7000000000000002), tool_prompt(zone=None, at=[39.904200123456])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    for num_proc in (None, 2):
        encoded = list(tokenize_prompts(load_records(tmp_path / "rows.jsonl", "prompt"), TOKENIZER, 200, num_proc))
        for row, record in zip(encoded, records, strict=True):
            ids = row.pop("prompt_input_ids")
            assert row == record
            assert ids == encode_prompt(TOKENIZER, record["prompt"])


def test_a_dataset_of_ones_own_gives_no_call_the_arguments_of_another() -> None:
    """A column of Arrow pads every object with nulls for the fields of all."""
    records = [tool_prompt(city="c"), tool_prompt(zone="z")]
    padded = Dataset.from_list(records)
    assert padded[0]["prompt"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "c", "zone": None}
    whole = tokenize_prompts(padded, TOKENIZER, 200)
    streamed = islice(tokenize_prompts(padded.to_iterable_dataset(), TOKENIZER, 200), 2)
    for rows in (whole, streamed):
        for row, record in zip(rows, records, strict=True):
            assert row["prompt_input_ids"] == encode_prompt(TOKENIZER, record["prompt"])
