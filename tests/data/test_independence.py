"""The tokens of a record depend on the record alone: not on its neighbours, on its file, or on the order."""

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from pangu_trl.data import encode_completion, encode_prompt, load_records, tokenize_demonstrations

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
