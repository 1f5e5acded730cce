"""Ranking losses: golden numbers, hand-computed values, stability."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from pangu_trl import GPTPanguConfig, GPTPanguForSequenceClassification
from pangu_trl.reward.losses import centring_loss, ordered_pairs, pairwise_loss, plackett_luce_loss, tokenwise_loss

CASES_WITHOUT_TIES = ["scores_full", "scores_variable_k", "scores_extreme", "scores_equal_values"]
CASES_WITH_TIES = ["scores_ties", "scores_ties_variable_k"]
LOSSES = {"pairwise": pairwise_loss, "plackett_luce": plackett_luce_loss}


@pytest.mark.parametrize(
    ("name", "case"),
    [("pairwise", case) for case in CASES_WITHOUT_TIES + CASES_WITH_TIES]
    + [("plackett_luce", case) for case in CASES_WITHOUT_TIES],
)
def test_losses_and_gradients_equal_the_golden_numbers(fixtures, name, case):
    tensors = load_file(fixtures / "reward_kwise" / "golden.safetensors")
    numbers = json.loads((fixtures / "reward_kwise" / "golden.json").read_text())
    scores = tensors[f"{case}.scores"].requires_grad_(True)
    labels, mask = tensors[f"{case}.labels"], tensors[f"{case}.mask"].bool()
    losses = LOSSES[name](scores, labels, mask)
    has_pair = ordered_pairs(labels, mask).any(dim=2).any(dim=1)
    loss = losses[has_pair].mean()
    loss.backward()
    assert loss.item() == pytest.approx(numbers[case][f"{name}_loss"], abs=1e-9)
    torch.testing.assert_close(scores.grad, tensors[f"{case}.{name}_grad"], atol=1e-9, rtol=0)


def test_scores_and_losses_of_a_deepspeed_chat_model_equal_the_golden_numbers(fixtures):
    config = GPTPanguConfig.from_pretrained(fixtures / "reward", num_labels=1)
    model = GPTPanguForSequenceClassification(config).eval()
    weights = torch.load(fixtures / "reward" / "pytorch_model.bin", weights_only=True)
    renamed = {
        name.replace("rwtransformer.", "transformer.").replace("v_head.", "score."): tensor
        for name, tensor in weights.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    model.load_state_dict(renamed)
    tensors = load_file(fixtures / "reward_kwise" / "golden.safetensors")
    numbers = json.loads((fixtures / "reward_kwise" / "golden.json").read_text())["model.boolmask"]
    with torch.no_grad():
        scores = model(
            input_ids=tensors["model.input_ids"].flatten(0, 1),
            attention_mask=tensors["model.attention_mask"].flatten(0, 1),
        ).logits.view(2, 4)
    torch.testing.assert_close(scores, tensors["model.end_scores_boolmask"], atol=2e-4, rtol=0)
    # Answers are stored best first.
    labels, mask = torch.arange(4, 0, -1).expand(2, 4), torch.ones(2, 4, dtype=torch.bool)
    for name, loss in LOSSES.items():
        assert loss(scores, labels, mask).mean().item() == pytest.approx(numbers[f"{name}_loss"], abs=2e-4)


@pytest.mark.parametrize("variant", ["int64mask", "boolmask", "nomask"])
def test_tokenwise_loss_equals_that_of_deepspeed_chat_pair_by_pair(fixtures, variant):
    tensors = load_file(fixtures / "reward" / "golden.safetensors")
    numbers = json.loads((fixtures / "reward" / "golden.json").read_text())
    losses = tokenwise_losses(tensors["pairs.input_ids"], tensors[f"pairs.values_{variant}"])
    expected = torch.tensor(numbers[f"pairs.loss_per_pair_{variant}"])
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pads_in_front", [0, 1])
def test_tokenwise_loss_equals_that_of_deepspeed_chat_on_given_hidden_states(fixtures, pads_in_front):
    golden = load_file(fixtures / "reward_pair_math" / "golden.safetensors")
    tensors = {name.split(".", 1)[1]: t for name, t in golden.items() if name.startswith(f"pad_front_{pads_in_front}")}
    head = tensors["v_head.weight"].double().requires_grad_(True)
    values = tensors["hidden_states"].double() @ head[0]
    loss = tokenwise_losses(tensors["input_ids"], values, pads_in_front).mean()
    torch.testing.assert_close(loss.float(), tensors["loss"][0], atol=1e-6, rtol=0)

    # d loss / d head: of every compared position (sigmoid(gap) - 1) * (hidden of chosen - hidden of rejected).
    chosen, rejected = tensors["hidden_states"].double().chunk(2)
    differences = [
        (a - b)[place] for a, b, place in zip(chosen, rejected, compared_places(tensors, pads_in_front), strict=True)
    ]
    slopes = [torch.sigmoid(difference @ head[0].detach()) - 1 for difference in differences]
    expected = sum(slope @ difference / len(slope) for slope, difference in zip(slopes, differences, strict=True)) / 5
    loss.backward()
    torch.testing.assert_close(head.grad[0], expected, atol=1e-12, rtol=1e-9)


def compared_places(tensors: dict[str, torch.Tensor], pads_in_front: int) -> list[slice]:
    """From the first token that differs to the first pad of the longer answer, pair by pair; of equal ones the last."""
    places = []
    for pair in zip(*(rows.tolist() for rows in tensors["input_ids"].chunk(2)), strict=True):
        ends = [row.index(6, pads_in_front) if 6 in row[pads_in_front:] else len(row) for row in pair]
        first = next((place for place, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), None)
        places.append(slice(len(pair[0]) - 1, None) if first is None else slice(first, max(ends)))
    return places


def tokenwise_losses(input_ids: torch.Tensor, values: torch.Tensor, pads_in_front: int = 0) -> torch.Tensor:
    """Of pairs as DeepSpeed-Chat has them: all chosen rows, then all rejected ones; 6 pads."""
    is_pad = input_ids == 6
    is_pad[:, :pads_in_front] = False
    lengths = torch.where(is_pad.any(dim=1), is_pad.long().argmax(dim=1), input_ids.shape[1])
    pairs = [torch.stack(tensor.chunk(2), dim=1) for tensor in (values, input_ids, lengths)]
    labels = torch.tensor([[1, 0]]).expand(len(pairs[2]), 2)
    return tokenwise_loss(*pairs, labels, torch.ones_like(labels, dtype=torch.bool))


def test_tokenwise_loss_averages_over_positions_and_then_over_the_ordered_pairs_of_a_prompt():
    # Answers 0 > 1 = 2. Against answer 1 the tokens differ from position 1 on, both end at 3: gaps 1 and 2. Against
    # answer 2 from position 2 on; answer 2 ends at 3, so one position: gap 3. Position 3 is beyond all ends.
    input_ids = torch.tensor([[[9, 1, 2, 0], [9, 3, 2, 0], [9, 1, 4, 0]]])
    token_scores = torch.tensor([[[5.0, 1.0, 2.0, 7.0], [5.0, 0.0, 0.0, -9.0], [5.0, 1.0, -1.0, 3.0]]])
    labels, mask = torch.tensor([[2, 1, 1]]), torch.ones(1, 3, dtype=torch.bool)
    expected = ((math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2 + math.log1p(math.exp(-3))) / 2
    loss = tokenwise_loss(token_scores, input_ids, torch.full((1, 3), 3), labels, mask)
    assert loss.item() == pytest.approx(expected)


def test_tokenwise_and_centring_losses_ignore_ties_single_answers_and_padding():
    # Prompt 0 is a tie, prompt 1 a single answer beside padding.
    input_ids = torch.tensor([[[9, 1], [9, 2]], [[9, 3], [0, 0]]])
    token_scores = torch.full((2, 2, 2), 1e4)
    token_scores[1, 1] = float("nan")
    token_scores.requires_grad_(True)
    labels, mask = torch.tensor([[5, 5], [5, 0]]), torch.tensor([[True, True], [True, False]])
    losses = tokenwise_loss(token_scores, input_ids, torch.full((2, 2), 2), labels, mask)
    losses = losses + centring_loss(token_scores[:, :, -1], labels, mask)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert token_scores.grad.eq(0).all()


def test_plackett_luce_draws_tied_answers_from_the_same_set():
    # Best: out of {3, 1, 0}; then both tied ones out of {1, 0}.
    scores, labels = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[2, 1, 1]])
    first = math.log(math.exp(3) + math.exp(1) + 1) - 3
    tied = 2 * math.log(math.exp(1) + 1) - 1 - 0
    loss = plackett_luce_loss(scores, labels, torch.ones(1, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(first + tied)


def test_plackett_luce_with_two_answers_is_the_pairwise_loss():
    torch.manual_seed(0)
    scores = torch.randn(5, 3, dtype=torch.float64)
    labels, mask = torch.tensor([[1, 2, 9]]).expand(5, 3), torch.tensor([[True, True, False]]).expand(5, 3)
    torch.testing.assert_close(plackett_luce_loss(scores, labels, mask), pairwise_loss(scores, labels, mask))


def test_a_margin_asks_the_better_answer_to_win_by_the_gap_of_the_scores():
    # 1.5 - 0.5 * (3 - 1) = 0.5.
    loss = pairwise_loss(
        torch.tensor([[2.0, 0.5]]), torch.tensor([[3.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool), 0.5
    )
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)))


def test_pairwise_loss_averages_over_the_pairs_of_each_prompt_and_drops_ties():
    # Prompt 0: 2 > 1 = 1: two pairs with differences 1 and 0 -> (log(1+e^-1) + log 2) / 2.
    # Prompt 1: one tie: no pair, loss 0.
    scores = torch.tensor([[2.0, 1.0, 2.0], [0.3, -0.7, 1e4]])
    labels = torch.tensor([[2, 1, 1], [5, 5, 9]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = (math.log1p(math.exp(-1)) + math.log(2)) / 2
    assert pairwise_loss(scores, labels, mask).tolist() == pytest.approx([expected, 0.0])


def test_centring_loss_with_two_answers_is_the_squared_sum():
    # (1.5 - 0.5)^2 = 1 for the only pair.
    scores = torch.tensor([[1.5, -0.5]])
    assert centring_loss(scores, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(1)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_are_finite_for_huge_scores_and_gradients_ignore_padding(loss):
    scores = torch.tensor([[-1e4, 1e4, float("inf")]], requires_grad=True)
    losses = loss(scores, torch.tensor([[2, 1, 0]]), torch.tensor([[True, True, False]]))
    losses.sum().backward()
    assert losses.item() == pytest.approx(2e4)
    assert scores.grad[0].tolist() == pytest.approx([-1.0, 1.0, 0.0])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_ties_and_single_answers_have_no_loss_and_no_gradient(loss):
    scores = torch.tensor([[1.0, 2.0], [3.0, float("nan")]], requires_grad=True)
    losses = loss(scores, torch.tensor([[5, 5], [5, 0]]), torch.tensor([[True, True], [True, False]]))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert scores.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]
