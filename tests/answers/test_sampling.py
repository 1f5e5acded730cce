"""Sampling: the right distribution, answers that depend on nothing but seed and place, and no silent losses."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from pangu_trl.answers.records import Answers, without_empty_answers
from pangu_trl.answers.sampling import SamplingConfig, sample_answers
from pangu_trl.data.records import RecordError

TOKENS = ["<pad>", "</s>", "<unk>", *"abcdefgh?你好吗很"]
PROMPTS = ["a", "你好吗?", "abcdefgh", "hh", "你"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )


@pytest.fixture
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(TOKENS), n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5, eos_token_id=1
    )
    return GPT2LMHeadModel(config).eval()


def constant_model(probabilities: dict[str, float]) -> GPT2LMHeadModel:
    """A model that predicts the same distribution after any text."""
    config = GPT2Config(
        vocab_size=len(TOKENS), n_positions=32, n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # The last layer norm then gives the first unit vector whatever comes in, and the head reads its first column.
        model.transformer.ln_f.bias[0] = 1.0
        for index, token in enumerate(TOKENS):
            probability = probabilities.get(token, 0.0)
            model.lm_head.weight[index, 0] = math.log(probability) if probability else -100.0
    return model


def shares(answers: list) -> dict[str, float]:
    texts = [answer.text for answer in answers]
    return {text: texts.count(text) / len(texts) for text in set(texts)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"a": 0.5, "b": 0.3, "": 0.2}),
        # Squares 0.25, 0.09, 0.04 over their sum 0.38.
        ({"temperature": 0.5}, {"a": 0.25 / 0.38, "b": 0.09 / 0.38, "": 0.04 / 0.38}),
        # a alone holds 0.5 < 0.7, a and b hold 0.8: the two stay.
        ({"top_p": 0.7}, {"a": 0.625, "b": 0.375}),
        ({"top_k": 2}, {"a": 0.625, "b": 0.375}),
        ({"top_k": 1}, {"a": 1.0}),
    ],
)
def test_tokens_are_drawn_with_the_models_probabilities(tokenizer, settings, expected):
    model = constant_model({"a": 0.5, "b": 0.3, "</s>": 0.2})
    config = SamplingConfig(max_new_tokens=1, **settings)
    drawn = shares(sample_answers(model, tokenizer, ["h"], 2000, config, batch_size=500, seed=0)[0])
    assert drawn.keys() == expected.keys()
    for token, probability in expected.items():
        # Four standard deviations of a share of 2000 draws.
        tolerance = 4 * math.sqrt(probability * (1 - probability) / 2000)
        assert drawn[token] == pytest.approx(probability, abs=tolerance + 1e-9)


def test_tokens_of_one_answer_are_drawn_independently(tokenizer):
    model = constant_model({"a": 0.5, "b": 0.5})
    answers = sample_answers(model, tokenizer, ["h"], 2000, SamplingConfig(max_new_tokens=2), batch_size=500, seed=1)
    for share in shares(answers[0]).values():
        assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 2000))


def test_greedy_answers_of_a_padded_batch_equal_a_search_without_padding(model, tokenizer):
    expected = []
    for prompt in PROMPTS:
        token_ids = [TOKENS.index(character) for character in prompt]
        for _ in range(6):
            token_ids.append(model(torch.tensor([token_ids])).logits[0, -1].argmax().item())
            if token_ids[-1] == 1:
                break
        answer_ids = token_ids[len(prompt) :]
        expected.append(("".join(TOKENS[i] for i in answer_ids if i > 2), answer_ids[-1] == 1))
    config = SamplingConfig(max_new_tokens=6, temperature=0)
    answers = sample_answers(model, tokenizer, PROMPTS, 1, config, batch_size=5, seed=0)
    assert [(row[0].text, row[0].finished) for row in answers] == expected
    assert len({text for text, _ in expected}) > 1


def test_answers_do_not_depend_on_batch_size_number_of_answers_or_later_prompts(model, tokenizer):
    config = SamplingConfig(max_new_tokens=8)
    answers = sample_answers(model, tokenizer, PROMPTS, 4, config, batch_size=7, seed=3)
    assert sample_answers(model, tokenizer, PROMPTS, 4, config, batch_size=1, seed=3) == answers
    fewer = sample_answers(model, tokenizer, PROMPTS[:2], 3, config, batch_size=64, seed=3)
    assert fewer == [row[:3] for row in answers[:2]]


def test_answers_depend_on_seed_answer_number_and_place(model, tokenizer):
    config = SamplingConfig(max_new_tokens=8)
    (first, second), (third, _) = sample_answers(model, tokenizer, ["ab", "ab"], 2, config, batch_size=4, seed=0)
    ((other_seed,),) = sample_answers(model, tokenizer, ["ab"], 1, config, batch_size=4, seed=1)
    assert len({first.text, second.text, third.text, other_seed.text}) == 4


def test_an_answer_is_finished_only_by_eos_and_may_be_empty(tokenizer):
    config = SamplingConfig(max_new_tokens=3)
    ((ended,),) = sample_answers(constant_model({"</s>": 1.0}), tokenizer, ["a"], 1, config, batch_size=1, seed=0)
    ((cut_off,),) = sample_answers(constant_model({"b": 1.0}), tokenizer, ["a"], 1, config, batch_size=1, seed=0)
    assert (ended.text, ended.finished) == ("", True)
    assert (cut_off.text, cut_off.finished) == ("bbb", False)


def test_the_models_generation_config_is_neither_used_nor_changed(tokenizer):
    model = constant_model({"b": 0.9, "c": 0.1})
    model.generation_config.suppress_tokens = [TOKENS.index("b")]
    config = SamplingConfig(max_new_tokens=1, temperature=0)
    ((answer,),) = sample_answers(model, tokenizer, ["a"], 1, config, batch_size=1, seed=0)
    assert answer.text == "b"
    assert model.generation_config.suppress_tokens == [TOKENS.index("b")]


def test_an_adapter_takes_part_and_the_base_keeps_its_generation_config(tokenizer):
    base = constant_model({"b": 0.9, "c": 0.1})
    generation_config = base.generation_config
    model = get_peft_model(base, LoraConfig(target_modules=["lm_head"], r=1, lora_alpha=1, task_type="CAUSAL_LM"))
    with torch.no_grad():
        lora = base.lm_head
        lora.lora_A["default"].weight[0, 0] = 1.0
        lora.lora_B["default"].weight[TOKENS.index("c"), 0] = 50.0
    config = SamplingConfig(max_new_tokens=1, temperature=0)
    ((answer,),) = sample_answers(model, tokenizer, ["a"], 1, config, batch_size=1, seed=0)
    assert answer.text == "c"
    assert base.generation_config is generation_config


def test_dropout_is_off_while_sampling_and_every_module_gets_its_mode_back(model, tokenizer):
    config = SamplingConfig(max_new_tokens=8)
    expected = sample_answers(model, tokenizer, PROMPTS, 1, config, batch_size=8, seed=0)
    model.train()
    model.transformer.drop.eval()
    assert sample_answers(model, tokenizer, PROMPTS, 1, config, batch_size=8, seed=0) == expected
    assert model.training
    assert not model.transformer.drop.training


def test_a_prompt_without_room_for_the_answer_is_refused_by_name_before_anything_is_generated(
    model, tokenizer, monkeypatch
):
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("generated"))
    prompts, places = ["a", "a" * 25], ["prompts.jsonl:1", "prompts.jsonl:3"]
    with pytest.raises(ValueError, match=r"prompts\.jsonl:3: .*25 tokens.*max_new_tokens is 8.*32 positions"):
        sample_answers(model, tokenizer, prompts, 1, SamplingConfig(8), batch_size=1, seed=0, where=places)


def test_a_prompt_that_just_leaves_room_is_taken(model, tokenizer):
    ((answer,),) = sample_answers(model, tokenizer, ["a" * 24], 1, SamplingConfig(8), batch_size=1, seed=0)
    assert len(answer.text) <= 8


@pytest.mark.parametrize(
    ("prompts", "num_answers", "temperature", "seed", "message"),
    [
        ([], 1, 1.0, 0, "at least one prompt"),
        (["a"], 2, 0.0, 0, "temperature 0 gives the same answer"),
        (["a"], 1, 1.0, -1, "seed must be 0 or greater; got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, tokenizer, prompts, num_answers, temperature, seed, message):
    with pytest.raises(ValueError, match=message):
        sample_answers(model, tokenizer, prompts, num_answers, SamplingConfig(4, temperature), batch_size=1, seed=seed)


def test_a_tokenizer_without_eos_is_refused(model, tokenizer):
    without_eos = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="no eos token"):
        sample_answers(model, without_eos, ["a"], 1, SamplingConfig(4), batch_size=1, seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_sampling_settings_out_of_range_are_refused_by_name(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name} must be .*got {value}"):
        SamplingConfig(**{"max_new_tokens": 4, **settings})


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a"}, "'responses' must be present; the record has prompt. Answers to prompts are read here"),
        ({"prompt": "a", "responses": []}, "'responses' must be a list of one or more answers"),
        ({"prompt": "a", "responses": ["b", 3]}, "'responses' must be a list of one or more answers"),
        (
            {"prompt": "a", "responses": [[{"role": "assistant", "content": "b"}]]},
            "'responses' must be .* text or messages as the prompt",
        ),
        ({"prompt": [{"role": "user", "content": "a"}], "responses": [["b"]]}, r"'responses\[0\]' must hold messages"),
        (
            {"prompt": "a", "responses": ["b", "c"], "finished": [True]},
            "'finished' must hold one true or false an answer",
        ),
        ({"responses": ["b"]}, "'prompt' must be present"),
        # Other records get no advice that the readers of answers cannot follow.
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "'prompt' must be present; .* reads records like these with `--format messages`",
        ),
        (
            {"prompt": "a", "answers": [{"answer": "b", "rank": 1}]},
            "'responses' must be present; .* with `--format nectar`",
        ),
    ],
)
def test_a_malformed_record_is_refused_with_file_and_line(tmp_path, record, message):
    path = write_lines(tmp_path / "answers.jsonl", {"prompt": "a", "responses": ["b"]}, record)
    with pytest.raises(RecordError, match=rf"answers\.jsonl:2: {message}"):
        Answers.load(path)


def test_scores_are_read_from_a_column_that_all_records_must_have(tmp_path):
    first = {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2.5]}
    second = {"prompt": "a", "responses": ["b"]}
    answers = Answers.load(write_lines(tmp_path / "whole.jsonl", first))
    assert answers.scores("scores") == [[1, 2.5]]
    assert answers.scores("reward_scores") is None
    with pytest.raises(RecordError, match=r"part\.jsonl:2: 'scores' must be a list of 1 finite numbers.*None"):
        Answers.load(write_lines(tmp_path / "part.jsonl", first, second)).scores("scores")


def test_empty_answers_go_with_their_entries_and_records_that_keep_fewer_than_two_go_whole():
    answers = Answers(
        [
            {"prompt": "p", "responses": ["x", " \n", "y"], "finished": [True, False, False], "tags": ["1", "2", "3"]},
            {"prompt": "q", "responses": ["x", ""]},
            {"prompt": "r", "responses": ["x", "x"]},
        ],
        ["f:1", "f:2", "f:4"],
    )
    kept = without_empty_answers(answers)
    assert kept.records == [
        {"prompt": "p", "responses": ["x", "y"], "finished": [True, False], "tags": ["1", "2", "3"]},
        {"prompt": "r", "responses": ["x", "x"]},
    ]
    assert kept.places == ["f:1", "f:4"]
    assert (answers.num_empty, answers.num_duplicates) == (2, 1)
