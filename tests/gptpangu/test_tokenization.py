"""GPTPanguTokenizer: the official ids, special tokens, the transformers contract; and training a vocabulary for it."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import jinja2
import pytest
import torch
from datasets.fingerprint import Hasher
from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, AutoTokenizer

from pangu_trl import GPTPanguTokenizer
from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

UNK, BOS, SEP, PAD, EOT = 0, 1, 5, 6, 9
# Line numbers, from 0, of ▁你好 ▁再见 ▁, ▁明天 in the official vocab.vocab.
HELLO, GOODBYE, COMMA, TOMORROW = 5772, 9040, 10, 3180

SPECIAL_IDS = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "<sep>": 5, "<pad>": 6, "<mask>": 7, "<eod>": 8, "<eot>": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def official_vocabulary() -> Path:
    spec = importlib.util.find_spec("pcl_pangu")
    if spec is None:
        pytest.fail("these tests need the official vocabulary: pip install --no-deps pcl-pangu==1.2.6.2")
    return Path(spec.origin).parent / "tokenizer" / "bpe_4w_pcl" / "vocab.model"


@pytest.fixture(scope="module")
def piece_ids(official_vocabulary: Path) -> dict[str, int]:
    """The ids by the text file beside the model, which the tokenizer does not read."""
    lines = official_vocabulary.with_suffix(".vocab").read_text("utf-8").split("\n")
    return {line.split("\t")[0]: index for index, line in enumerate(lines)}


@pytest.fixture
def tokenizer(official_vocabulary: Path) -> GPTPanguTokenizer:
    return GPTPanguTokenizer(official_vocabulary)


def records(fixtures: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (fixtures / "tokenizer" / name).read_text("utf-8").splitlines()]


def test_ids_equal_the_official_ids(tokenizer: GPTPanguTokenizer, fixtures: Path) -> None:
    golden = records(fixtures, "golden.jsonl")
    texts = [record["text"] for record in golden]
    assert tokenizer(texts, split_special_tokens=True).input_ids == [record["ids"] for record in golden]
    for record in golden:
        assert tokenizer.encode(record["text"], split_special_tokens=True) == record["ids"]
        if not any(token in record["text"] for token in SPECIAL_IDS):
            assert tokenizer(record["text"]).input_ids == record["ids"]
            assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(record["text"])) == record["ids"]


def test_legacy_format_is_reached_with_bos_and_append_eot(official_vocabulary: Path, fixtures: Path) -> None:
    tokenizer = GPTPanguTokenizer(official_vocabulary, append_eot=True)
    for record in records(fixtures, "hf_format.jsonl"):
        pair = tokenizer(record["text"], record["pair"], split_special_tokens=True).input_ids
        assert [BOS, *pair] == record["pair_ids"]
        assert [BOS, *tokenizer(record["text"], split_special_tokens=True).input_ids] == record["ids"]
        assert (
            tokenizer(record["text"], split_special_tokens=True, add_special_tokens=False).input_ids
            == (record["ids_no_special"])
        )
        assert tokenizer.decode(record["ids"]) == "<s>" + record["decoded"]
        assert tokenizer.decode(record["ids"], skip_special_tokens=True) == record["decoded_skip_special"]


def test_decoding_equals_the_official_decoding_but_for_unknown_pieces(
    tokenizer: GPTPanguTokenizer, fixtures: Path
) -> None:
    golden = records(fixtures, "golden.jsonl")
    for record, text in zip(golden, tokenizer.batch_decode([record["ids"] for record in golden]), strict=True):
        expected = record["decoded"].replace("⁇", "<unk>") if UNK in record["ids"] else record["decoded"]
        assert text == expected


def test_every_id_decodes_and_others_are_refused(tokenizer: GPTPanguTokenizer, official_vocabulary: Path) -> None:
    official = SentencePieceProcessor(model_file=str(official_vocabulary))
    for index in range(10, 40_000):
        expected = official.id_to_piece(index).replace("▁", "")
        assert tokenizer.decode(index) == expected
    assert tokenizer.decode([3, 4, *SPECIAL_IDS.values()]) == "\n " + "".join(SPECIAL_IDS)
    for index in (-100, 40_000):
        with pytest.raises(ValueError, match=f"id {index} is outside the vocabulary of 40000"):
            tokenizer.decode([HELLO, index])


def test_special_tokens_in_text_are_one_id_each(tokenizer: GPTPanguTokenizer) -> None:
    for token, index in SPECIAL_IDS.items():
        assert tokenizer(f"你好{token}再见").input_ids == [HELLO, index, GOODBYE]
        assert index not in tokenizer(f"你好{token}再见", split_special_tokens=True).input_ids
    assert set(tokenizer.all_special_ids) == set(SPECIAL_IDS.values())
    names = ("unk", "bos", "eos", "sep", "pad", "mask")
    assert [getattr(tokenizer, f"{name}_token_id") for name in names] == [0, 1, 9, 5, 6, 7]


def test_split_special_tokens_may_be_set_on_the_tokenizer(official_vocabulary: Path) -> None:
    tokenizer = GPTPanguTokenizer(official_vocabulary, split_special_tokens=True)
    assert EOT not in tokenizer.encode("你好<eot>")
    assert EOT in tokenizer.encode("你好<eot>", split_special_tokens=False)


def test_vocabulary_has_the_official_size_and_ids(tokenizer: GPTPanguTokenizer, piece_ids: dict[str, int]) -> None:
    assert tokenizer.vocab_size == len(tokenizer) == 40_000
    assert tokenizer.vocab == tokenizer.get_vocab()
    assert all(piece_ids[piece] == index for piece, index in tokenizer.vocab.items())


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[HELLO, PAD, PAD, PAD], [GOODBYE, COMMA, TOMORROW, PAD]], [[1, 0, 0, 0], [1, 1, 1, 0]]),
        ("left", [[PAD, PAD, PAD, HELLO], [PAD, GOODBYE, COMMA, TOMORROW]], [[0, 0, 0, 1], [0, 1, 1, 1]]),
    ],
)
def test_padding_to_a_multiple_on_either_side(
    tokenizer: GPTPanguTokenizer, side: str, ids: list[list[int]], mask: list[list[int]]
) -> None:
    batch = tokenizer(
        ["你好", "再见，明天"], padding=True, pad_to_multiple_of=4, padding_side=side, return_tensors="pt"
    )
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch.input_ids, torch.tensor(ids))
    assert torch.equal(batch.attention_mask, torch.tensor(mask))


def test_padding_to_max_length_truncates_only_if_asked(tokenizer: GPTPanguTokenizer) -> None:
    options = {"padding": "max_length", "max_length": 2}
    assert tokenizer("你好", **options).input_ids == [HELLO, PAD]
    assert tokenizer("再见，明天", truncation=False, **options).input_ids == [GOODBYE, COMMA, TOMORROW]
    assert tokenizer("再见，明天", truncation=True, **options).input_ids == [GOODBYE, COMMA]
    tokenizer.truncation_side = "left"
    assert tokenizer("再见，明天", truncation=True, **options).input_ids == [COMMA, TOMORROW]


def test_truncation_keeps_room_for_eot(official_vocabulary: Path) -> None:
    tokenizer = GPTPanguTokenizer(official_vocabulary, append_eot=True)
    assert tokenizer("再见，明天", truncation=True, max_length=3).input_ids == [GOODBYE, COMMA, EOT]
    assert tokenizer("再见，明天", truncation=True, max_length=1).input_ids == [EOT]
    tokenizer.truncation_side = "left"
    assert tokenizer("再见，明天", truncation=True, max_length=3).input_ids == [COMMA, TOMORROW, EOT]
    assert tokenizer("再见，明天", truncation=True, max_length=1).input_ids == [EOT]


def test_empty_batch_and_empty_text(tokenizer: GPTPanguTokenizer) -> None:
    assert dict(tokenizer([], padding=True)) == {"input_ids": [], "attention_mask": []}
    assert dict(tokenizer("")) == {"input_ids": [], "attention_mask": []}
    assert tokenizer.decode([]) == ""


def test_fast_path_equals_the_stock_path(tokenizer: GPTPanguTokenizer, fixtures: Path) -> None:
    texts = [record["text"] for record in records(fixtures, "golden.jsonl")]
    for append_eot, side in product([False, True], ["left", "right"]):
        tokenizer.append_eot, tokenizer.truncation_side = append_eot, side
        options = {"padding": True, "truncation": True, "max_length": 9, "padding_side": side}
        fast = tokenizer(texts, **options)
        stock = tokenizer(texts, return_length=True, **options)
        assert fast.input_ids == stock.input_ids
        assert fast.attention_mask == stock.attention_mask


def test_pairs_and_pretokenized_words(tokenizer: GPTPanguTokenizer) -> None:
    encoding = tokenizer(["你好"], ["再见"], return_token_type_ids=True, return_special_tokens_mask=True)
    assert encoding.input_ids == [[HELLO, SEP, GOODBYE]]
    assert encoding.special_tokens_mask == [[0, 1, 0]]
    assert encoding.token_type_ids == [[0, 1, 1]]
    assert tokenizer(["你好", "再见"], is_split_into_words=True).input_ids == [HELLO, GOODBYE]


def test_lone_surrogate_is_a_clear_error(tokenizer: GPTPanguTokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate U\+D83D near '你好.*surrogatepass"):
        tokenizer(["再见", "你好\ud83d再见"])


def test_offsets_name_the_characters_of_each_token(tokenizer: GPTPanguTokenizer) -> None:
    text = "你好 再见<eot>…A\t明天"
    encoding = tokenizer(text, return_offsets_mapping=True)
    assert encoding.input_ids == tokenizer(text).input_ids
    surfaces = [text[start:end] for start, end in encoding.offset_mapping]
    # The space is two pieces, the first a mere word border that stands for nothing; the tab has no piece of its own.
    assert surfaces == ["你好", "", " ", "再见", "<eot>", "…", "A", "\t明天"]
    padded = tokenizer([text], return_offsets_mapping=True, padding="max_length", max_length=9, truncation=True)
    assert padded.offset_mapping[0] == [*encoding.offset_mapping, (0, 0)]
    with pytest.raises(NotImplementedError, match="not pairs, words or ids"):
        tokenizer("你好", "再见", return_offsets_mapping=True)


CHAT = [
    {"role": "system", "content": "你好"},
    {"role": "user", "content": "再见"},
    {"role": "assistant", "content": "\u3000\u3000明天"},
    {"role": "user", "content": "你好<eot>"},
    {"role": "assistant", "content": "再见"},
]


def test_chat_template_ids_and_assistant_mask(tokenizer: GPTPanguTokenizer, piece_ids: dict[str, int]) -> None:
    newline = [piece_ids["▁"], piece_ids["▃"]]
    first = [HELLO, *newline, GOODBYE, SEP]
    prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_dict=False)
    assert prompt == first
    encoding = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    assert set(encoding) == {"input_ids", "attention_mask", "assistant_masks"}
    assert encoding["input_ids"] == [*first, TOMORROW, EOT, HELLO, EOT, SEP, GOODBYE, EOT]
    assert encoding["assistant_masks"] == [0] * 5 + [1, 1] + [0] * 3 + [1, 1]


def test_assistant_mask_follows_padding(tokenizer: GPTPanguTokenizer) -> None:
    tokenizer.padding_side = "left"
    encoding = tokenizer.apply_chat_template(
        [CHAT[1:3], [*CHAT[3:4], {"role": "assistant", "content": "再见，明天"}]],
        return_assistant_tokens_mask=True, return_dict=True, padding=True, return_tensors="pt",
    )  # fmt: skip
    assert encoding["input_ids"].tolist() == [
        [PAD, PAD, PAD, GOODBYE, SEP, TOMORROW, EOT],
        [HELLO, EOT, SEP, GOODBYE, COMMA, TOMORROW, EOT],
    ]
    assert encoding["assistant_masks"].tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]


def test_sanitized_chat_lets_no_user_token_through(tokenizer: GPTPanguTokenizer) -> None:
    ids = tokenizer.apply_chat_template(CHAT, sanitize_control_tokens=True, return_dict=False)
    assert ids.count(EOT) == 2


def test_chat_template_refuses_unknown_roles_and_yields_to_a_given_one(
    tokenizer: GPTPanguTokenizer, official_vocabulary: Path
) -> None:
    with pytest.raises(jinja2.TemplateError, match="must be system, user or assistant, got 'tool'"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "你好"}])
    assert GPTPanguTokenizer(official_vocabulary, chat_template="x").chat_template == "x"


def test_saved_tokenizer_is_the_same(tokenizer: GPTPanguTokenizer, tmp_path: Path) -> None:
    tokenizer.append_eot = True
    assert tokenizer.add_tokens(["新词儿"]) == 1
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"]}) == 1
    tokenizer.save_pretrained(tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    for loaded in (GPTPanguTokenizer.from_pretrained(tmp_path / "moved"), pickle.loads(pickle.dumps(tokenizer))):
        assert loaded.append_eot
        assert loaded("你好新词儿<tool>再见").input_ids == [HELLO, 40_000, 40_001, GOODBYE, EOT]
        assert loaded.decode([HELLO, 40_000, 40_001]) == "你好新词儿<tool>"
        assert loaded.decode([HELLO, 40_000, 40_001], skip_special_tokens=True) == "你好新词儿"
        assert (loaded.vocab_size, len(loaded), loaded.chat_template) == (40_000, 40_002, tokenizer.chat_template)


def test_pickle_holds_little_more_than_the_vocabulary_file(
    tokenizer: GPTPanguTokenizer, official_vocabulary: Path
) -> None:
    assert len(pickle.dumps(tokenizer)) < official_vocabulary.stat().st_size + 10_000


def test_published_folder_loads_with_our_class_and_forgets_its_remote_code(
    official_vocabulary: Path, tmp_path: Path
) -> None:
    shutil.copy(official_vocabulary, tmp_path)
    legacy = {
        "eos_token": "<eot>", "pad_token": "<pad>", "unk_token": "<unk>", "sep_token": "<sep>", "bos_token": "<s>",
        "add_prefix_space": False, "tokenizer_class": "GPTPanguTokenizer", "use_fast": False,
        "auto_map": {"AutoTokenizer": ["tokenization_gptpangu.GPTPanguTokenizer", None]},
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(legacy), "utf-8")
    for trust_remote_code in (False, True):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
        assert type(tokenizer) is GPTPanguTokenizer
        assert tokenizer("你好<eot>").input_ids == [HELLO, EOT]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text("utf-8"))


def test_published_argument_name_works(official_vocabulary: Path) -> None:
    assert GPTPanguTokenizer(model_file=str(official_vocabulary))("你好").input_ids == [HELLO]


def test_added_tokens_that_strip_are_honoured(tokenizer: GPTPanguTokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<br>", lstrip=True, rstrip=True)])
    assert tokenizer("你好  <br> 再见").input_ids == [HELLO, 40_000, GOODBYE]


def test_missing_or_foreign_vocabulary_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPTPanguTokenizer"}', "utf-8")
    with pytest.raises(ValueError, match=r"expected a file vocab\.model, found none"):
        GPTPanguTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.model").write_text("version https://git-lfs.github.com/spec/v1", "utf-8")
    with pytest.raises(ValueError, match=r"vocab\.model: expected a SentencePiece model, .*Git LFS"):
        GPTPanguTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no vocabulary"):
        GPTPanguTokenizer()("你好")


def test_fingerprint_is_stable_after_use_and_between_processes(official_vocabulary: Path) -> None:
    tokenizer = GPTPanguTokenizer(official_vocabulary)
    fingerprint = Hasher.hash(tokenizer)
    tokenizer(["你好，世界<eot>"] * 3, padding=True)
    tokenizer.decode([HELLO])
    assert Hasher.hash(tokenizer) == fingerprint
    script = (
        "import sys; from datasets.fingerprint import Hasher; from pangu_trl import GPTPanguTokenizer; "
        "print(Hasher.hash(GPTPanguTokenizer(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, str(official_vocabulary)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip() == (
        fingerprint
    )
    tokenizer.add_tokens(["新词儿"])
    assert Hasher.hash(tokenizer) != fingerprint


SUBJECTS = ["房间", "服务", "酒店", "早餐", "位置", "价格", "电脑", "屏幕", "这本书", "包装"]
REMARKS = ["很好", "不错", "太差了", "一般", "让人满意", "有点贵", "非常糟糕", "物有所值"]
REVIEWS = [
    f"{subject}{remark}，{other}也{remark}{'。！'[index % 3 : index % 3 + 1]}"
    for index, (subject, other, remark) in enumerate(product(SUBJECTS, SUBJECTS, REMARKS))
] + [*SUBJECTS, *REMARKS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPTPanguTokenizer]:
    folder = tmp_path_factory.mktemp("vocabulary") / "trained"
    return folder, train_vocabulary(iter(REVIEWS), folder, vocab_size=70, num_threads=1)


def test_trained_vocabulary_has_the_official_first_ids(trained: tuple[Path, GPTPanguTokenizer]) -> None:
    folder, tokenizer = trained
    model = SentencePieceProcessor(model_file=str(folder / "vocab.model"))
    pieces = ["<unk>", "<s>", "</s>", "▃", "▂", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
    assert [model.id_to_piece(index) for index in range(10)] == pieces
    assert [model.is_control(index) for index in range(10)] == [index in (1, 2) for index in range(10)]
    assert model.get_piece_size() == len(tokenizer) == 70
    assert model.encode("１Ａ…", out_type=str) == model.encode("1A...", out_type=str)


def test_trained_tokenizer_loads_and_round_trips(trained: tuple[Path, GPTPanguTokenizer]) -> None:
    folder, tokenizer = trained
    loaded = AutoTokenizer.from_pretrained(folder)
    text = "房间很好, 早餐\n让人满意<sep>酒店不错!<eot>"
    ids = loaded(text).input_ids
    assert ids == tokenizer(text).input_ids
    assert loaded.decode(ids) == text
    assert UNK not in ids
    # Whole words, after the border that segmentation puts before each, became pieces.
    assert {"▁不错", "▁满意", "▁物有所值"} <= set(loaded.vocab)


def test_training_is_deterministic(trained: tuple[Path, GPTPanguTokenizer], tmp_path: Path) -> None:
    train_vocabulary(REVIEWS, tmp_path / "again", vocab_size=70, num_threads=1)
    assert (tmp_path / "again" / "vocab.model").read_bytes() == (trained[0] / "vocab.model").read_bytes()


def test_training_drops_neither_long_lines_nor_lines_with_the_trainers_own_mark(tmp_path: Path) -> None:
    rare = ["孔雀" * 2_000, "熊猫\u2585" * 20]
    vocabulary = train_vocabulary(REVIEWS + rare, tmp_path, vocab_size=72, num_threads=1).vocab
    assert any("孔" in piece for piece in vocabulary)
    assert any("熊" in piece for piece in vocabulary)


def test_small_vocabulary_keeps_room_for_words(tmp_path: Path) -> None:
    # 48 common characters and 60 that stand once: at the official coverage they would take more than all 75 pieces.
    rare = {chr(0x5000 + index) for index in range(60)}
    vocabulary = train_vocabulary([*REVIEWS, *sorted(rare)], tmp_path, vocab_size=75, num_threads=1).vocab
    characters = {piece.replace("▁", "") for piece in vocabulary} & rare
    assert len(characters) <= 0.75 * 75 - 48 + 1
    assert "▁物有所值" in vocabulary


@pytest.mark.parametrize(
    ("texts", "vocab_size", "error", "message"),
    [
        ([], 100, ValueError, "expected text to train a vocabulary on, got 0 texts"),
        ([" \n", ""], 100, ValueError, "got 2 texts without a visible character"),
        ("房间很好", 100, TypeError, r"pass \[text\]"),
        (["房间", None], 100, TypeError, r"texts\[1\] must be a string, got NoneType"),
        (["房间", "很\ud83d好"], 100, ValueError, r"texts\[1\]: lone surrogate U\+D83D"),
        (REVIEWS, 4000, ValueError, r"4000 pieces on 818 texts .* vocab_size of at most \d+"),
        (REVIEWS, 20, ValueError, r"20 pieces on 818 texts .* vocab_size of at least \d+"),
    ],
)
def test_training_errors_say_what_to_do(
    texts: object, vocab_size: int, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train_vocabulary(texts, tmp_path / "new", vocab_size, num_threads=1)
    assert not (tmp_path / "new").exists()


def test_training_overwrites_no_tokenizer(trained: tuple[Path, GPTPanguTokenizer]) -> None:
    with pytest.raises(FileExistsError, match=r"vocab\.model exists"):
        train_vocabulary(REVIEWS, trained[0], vocab_size=70)
