"""Scoring without gradients: what neighbouring texts begin with is computed once, and the scores are the same."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from pangu_trl import GPTPanguConfig, GPTPanguForSequenceClassification
from pangu_trl.cli import main
from pangu_trl.data.jsonl import read_jsonl, write_jsonl
from pangu_trl.models.padding_free import LEAST_SHARED, PackedBatch, shared_beginnings
from pangu_trl.models.reward_model import score_responses, share_prompts
from pangu_trl.models.sequence_scores import score_without_padding, sequence_scores

COMMON = dict(vocab_size=60, num_labels=1, pad_token_id=0, max_position_embeddings=64, initializer_range=0.3)
MODELS = {
    "gptpangu": (
        GPTPanguForSequenceClassification,
        GPTPanguConfig(**COMMON, hidden_size=16, num_layers=2, num_heads=2),
    ),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config(**COMMON, n_embd=16, n_layer=2, n_head=2)),
    "llama": (
        LlamaForSequenceClassification,
        LlamaConfig(
            **COMMON,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
    ),
}


def make(name: str) -> PreTrainedModel:
    model_class, config = MODELS[name]
    torch.manual_seed(0)
    model = model_class(copy.deepcopy(config)).eval()
    torch.nn.init.normal_(model.score.weight)
    return model


def texts() -> list[list[int]]:
    """Prompts of 9, 12 and 3 tokens with 3, 2 and 2 answers, one of a single token, one the beginning of another."""
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(1, 60, (length,), generator=generator).tolist()

    long, longer, short = draw(9), draw(12), draw(3)
    answer = draw(5)
    return [
        *(long + [first, *draw(size)] for first, size in ((1, 4), (2, 0), (3, 6))),
        *(longer + end for end in (answer, [*answer, 7, 8])),
        *(short + [first, *draw(4)] for first in (4, 5)),
    ]


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + 2
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
        ids[row, place], mask[row, place] = torch.tensor(tokens), 1
    return ids, mask


def count_tokens(model: PreTrainedModel) -> list[int]:
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    return seen


def test_rows_join_where_that_saves_tokens():
    # Three rows share 20 of their tokens; the fourth shares 10 with the third, and 3 x 10 is less than 2 x 20.
    assert shared_beginnings([30, 25, 40, 30], [20, 22, 10]) == [(20, 3), (29, 1)]
    # With 15 it is more. Of a row that is a beginning of the next the last token stays its own.
    assert shared_beginnings([30, 25, 40, 30], [20, 22, 15]) == [(15, 4)]
    assert shared_beginnings([12, 20], [12]) == [(11, 2)]
    assert shared_beginnings([12, 20], [LEAST_SHARED - 1]) == [(11, 1), (19, 1)]
    assert shared_beginnings([1], []) == [(0, 1)]


def test_a_batch_holds_each_beginning_once():
    rows = [[*range(1, 10), 20, 21], [*range(1, 10), 30], [5, 6, 7]]
    packed = PackedBatch.sharing(*padded(rows, "right"))
    assert packed.layout.rows == (((9, 2, 1), (3,)),) and packed.layout.width == 15
    assert packed.input_ids.tolist() == [[*range(1, 10), 20, 21, 30, 5, 6, 7]]
    assert packed.positions.tolist() == [[*range(11), 9, 0, 1, 2]]
    assert packed.places[1, :10].tolist() == [*range(9), 11] and packed.places[2, :3].tolist() == [12, 13, 14]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_whole_texts(name, side):
    model = make(name)
    batch = padded(texts(), side)
    with torch.no_grad():
        expected = sequence_scores(model, *batch)
        score_without_padding(model, 64)
        seen = count_tokens(model)
        found = sequence_scores(model, *batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1
    # Two copies of 9 tokens are saved, and one of 12 + 5 but the last token, which stays.
    assert seen == [sum(map(len, texts())) - 2 * 9 - (12 + 5 - 1)]
    # With gradients every text is computed as a whole.
    torch.testing.assert_close(sequence_scores(model, *batch), expected, atol=1e-5, rtol=1e-5)
    assert seen[1] == sum(map(len, texts()))


def test_responses_to_one_prompt_stay_together_and_score_the_same(reward_model, tokenizer):
    # Equally long prompts, and answers whose lengths alternate: by length alone no two of a prompt would meet.
    prompts = ["总体来说，这家酒店的位置很好，" * 2] * 3 + ["总体来说，那家酒店的位置很好，" * 2] * 3
    responses = ["好。" * times for times in (9, 5, 1, 7, 3, 2)]
    expected = score_responses(reward_model, tokenizer, prompts, responses, 3)
    seen = count_tokens(reward_model)
    score_responses(reward_model, tokenizer, prompts, responses, 3)
    plain = sum(seen)
    share_prompts(reward_model)
    seen.clear()
    found = score_responses(reward_model, tokenizer, prompts, responses, 3)
    assert found == pytest.approx(expected, abs=1e-5)
    assert sum(seen) < 0.6 * plain


@pytest.mark.parametrize("shares", [False, True])
def test_what_is_the_same_to_the_model_scores_the_same_to_the_last_bit(reward_model, tokenizer, shares):
    model = copy.deepcopy(reward_model)
    if shares:
        share_prompts(model)
    prompts = ["总体来说，这家酒店的位置很好，" * 2] * 5 + ["服务员"]
    responses = ["早餐好吃。", "位置不错，早餐好吃，还会再来。", "早餐好吃。", "差。", "早餐好吃。", "早餐好吃。"]
    for batch_size in range(1, 7):
        scores = score_responses(model, tokenizer, prompts, responses, batch_size)
        assert scores[0] == scores[2] == scores[4]
        # The same answer to another prompt is another text.
        assert len(set(scores)) == 4


def test_the_command_shares_prompts_and_gives_the_same_scores(reward_model, tokenizer, tmp_path, monkeypatch):
    reward_model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    prompts = ["总体来说，这家酒店的位置很好，", "服务员的态度一直很热情，早餐也不错，"]
    responses = [["还不错。", "非常差！", "干净，安静，离车站近。"], ["喜欢。", "不会再来。"]]
    write_jsonl(
        tmp_path / "answers.jsonl", [{"prompt": p, "responses": r} for p, r in zip(prompts, responses, strict=True)]
    )
    shared = PackedBatch.sharing
    groups = []

    def noting(*batch: torch.Tensor) -> PackedBatch:
        packed = shared(*batch)
        groups.extend(group for row in packed.layout.rows for group in row)
        return packed

    monkeypatch.setattr(PackedBatch, "sharing", noting)
    command = ["score", str(tmp_path / "answers.jsonl"), "--judge", str(tmp_path / "judge")]
    main([*command, "--output", str(tmp_path / "ranked.jsonl")])
    found = [record["scores"] for record in read_jsonl(Path(tmp_path / "ranked.jsonl"))]
    for prompt, of_prompt, scores in zip(prompts, responses, found, strict=True):
        expected = score_responses(reward_model, tokenizer, [prompt] * len(of_prompt), of_prompt, 1)
        assert scores == pytest.approx(expected, abs=1e-5)
    assert sorted(len(group) for group in groups)[-2:] == [3, 4]
