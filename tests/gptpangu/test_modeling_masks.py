"""Padding, packing and ready-made masks: a token is computed as if its own sequence were all there is."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from pangu_trl.gptpangu.masking_gptpangu import number_packed_sequences

ATTENTIONS = ["eager", "sdpa"]
MASK_DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32]
SEQUENCES = [[11, 12, 13, 14, 15], [21, 22, 23], [31, 32, 33, 34, 35, 36, 37]]


@pytest.fixture(params=ATTENTIONS)
def model(request, load_golden):
    return load_golden("tiny_gptpangu", request.param)[0]


def alone(model, sequence: list[int]) -> torch.Tensor:
    return model(torch.tensor([sequence]), use_cache=False).logits[0]


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The three sequences with their tokens on one side of pads (id 6), (3, 9), and where they are real."""
    rows = [[6] * (9 - len(row)) + row if side == "left" else row + [6] * (9 - len(row)) for row in SEQUENCES]
    ids = torch.tensor(rows)
    return ids, ids != 6


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    """The three sequences in one row, (1, 15), and their positions."""
    ids = torch.tensor([sum(SEQUENCES, [])])
    return ids, torch.tensor([[position for row in SEQUENCES for position in range(len(row))]])


@pytest.mark.parametrize("mask_dtype", MASK_DTYPES, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side_equals_no_padding(model, side, mask_dtype):
    ids, real = padded(side)
    logits = model(ids, attention_mask=real.to(mask_dtype)).logits
    assert torch.isfinite(logits).all()
    for row, sequence in enumerate(SEQUENCES):
        torch.testing.assert_close(logits[row][real[row]], alone(model, sequence), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("ones_mask", [None, torch.bool, torch.int64])
@torch.no_grad()
def test_packed_sequences_equal_separate_ones_with_any_mask_and_cache_setting(model, ones_mask, use_cache):
    ids, positions = packed()
    mask = None if ones_mask is None else torch.ones_like(ids, dtype=ones_mask)
    logits = model(ids, position_ids=positions, attention_mask=mask, use_cache=use_cache).logits[0]
    torch.testing.assert_close(logits, torch.cat([alone(model, row) for row in SEQUENCES]), atol=5e-5, rtol=1e-5)
    mixed = model(ids, use_cache=False).logits[0]
    assert (mixed - logits)[5:].abs().max() > 1


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_packed_rows_of_different_lengths_may_be_padded(model, side):
    """Row 0 packs all three sequences, row 1 only the first and 10 pads, with positions as in `generate`."""
    ids, positions = packed()
    short = torch.tensor([SEQUENCES[0]])
    pads = torch.full((1, 10), 6)
    parts = [pads, short] if side == "left" else [short, pads]
    ids = torch.cat([ids, torch.cat(parts, dim=1)])
    mask = (ids != 6).long()
    row_positions = (mask[1:].cumsum(-1) - 1).masked_fill(mask[1:] == 0, 1)
    logits = model(ids, attention_mask=mask, position_ids=torch.cat([positions, row_positions])).logits
    expected = torch.cat([alone(model, row) for row in SEQUENCES])
    torch.testing.assert_close(logits[0], expected, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1][mask[1] == 1], expected[:5], atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_packed_sequences_may_have_pads_between_them(model):
    ids = torch.tensor([[*SEQUENCES[0], 6, 6, *SEQUENCES[1], 6]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 0, 0, 1, 2, 0]])
    logits = model(ids, attention_mask=ids != 6, position_ids=positions).logits[0]
    torch.testing.assert_close(logits[:5], alone(model, SEQUENCES[0]), atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(logits[7:10], alone(model, SEQUENCES[1]), atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_packed_sequences_that_would_continue_a_cache_are_refused(model):
    ids, positions = packed()
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=32)):
        with pytest.raises(ValueError, match="position_ids restart, which means packed sequences"):
            model(ids, position_ids=positions, past_key_values=cache)


def test_a_new_sequence_starts_where_the_position_of_a_real_token_does_not_rise():
    cases = [  # positions, 1 for real tokens, number of the sequence
        ([0, 1, 2, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 2]),
        ([1, 1, 0, 1, 2, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]),  # pads in front start nothing
        ([0, 1, 0, 0, 1, 2], [1, 1, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]),  # a pad between two sequences
        ([0, 1, 9, 2, 3, 4], [1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]),  # a hole in one sequence
        ([0, 1, 2, 7, 8, 9], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]),  # a jump forward
    ]
    positions, real, expected = (torch.tensor(column) for column in zip(*cases, strict=True))
    assert number_packed_sequences(positions, real.bool()).tolist() == expected.tolist()


def block_mask_of_packed() -> torch.Tensor:
    """True where a query sees a key: earlier tokens of its own sequence, (1, 1, 15, 15)."""
    owner = torch.tensor([number for number, row in enumerate(SEQUENCES) for _ in row])
    return ((owner[:, None] == owner[None, :]) & torch.ones(15, 15).tril().bool())[None, None]


def additive(mask: torch.Tensor, lowest: float) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, lowest)


@pytest.mark.parametrize("kind", ["bool", "int64", "minus infinity", "float32 minimum"])
@torch.no_grad()
def test_a_custom_4d_mask_of_any_type_separates_packed_sequences(model, kind):
    ids, positions = packed()
    mask = block_mask_of_packed()
    mask = {
        "bool": mask,
        "int64": mask.long(),
        "minus infinity": additive(mask, float("-inf")),
        "float32 minimum": additive(mask, torch.finfo(torch.float32).min),
    }[kind]
    logits = model(ids, attention_mask=mask, position_ids=positions).logits[0]
    torch.testing.assert_close(logits, torch.cat([alone(model, row) for row in SEQUENCES]), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_two_answers_that_share_one_prompt_equal_two_rows_with_gradients(model, assert_same_gradients, kind):
    """Row: prompt (3), answer A (4), answer B (2); both answers see the prompt and not each other."""
    prompt, answers = [11, 12, 13], [[21, 22, 23, 24], [31, 32]]
    ids = torch.tensor([prompt + answers[0] + answers[1]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 3, 4]])
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    sees = (owner[None, :] == 0) | (owner[:, None] == owner[None, :])
    mask = (sees & torch.ones(9, 9).tril().bool())[None, None]
    mask = mask if kind == "bool" else additive(mask, torch.finfo(torch.float32).min)
    weight = torch.randn(6, 1024, generator=torch.Generator().manual_seed(0))

    def gradients(answer_logits: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (answer_logits * weight).mean().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    rows = [model(torch.tensor([prompt + answer]), use_cache=False).logits[0, 3:] for answer in answers]
    separate = torch.cat(rows)
    shared = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[0, 3:]
    torch.testing.assert_close(shared, separate, atol=5e-5, rtol=1e-5)
    expected = gradients(separate)
    assert_same_gradients(gradients(shared), expected)


@torch.no_grad()
def test_two_answers_may_continue_a_cached_prompt(model):
    """The mask is (1, 1, new tokens, cached + new tokens)."""
    prompt, answers = [11, 12, 13], [[21, 22, 23, 24], [31, 32]]
    cache = model(torch.tensor([prompt]), use_cache=True).past_key_values
    owner = torch.tensor([1, 1, 1, 1, 2, 2])
    among_answers = (owner[:, None] == owner[None, :]) & torch.ones(6, 6).tril().bool()
    mask = torch.cat([torch.ones(6, 3, dtype=torch.bool), among_answers], dim=1)[None, None]
    logits = model(
        torch.tensor([sum(answers, [])]),
        attention_mask=mask,
        position_ids=torch.tensor([[3, 4, 5, 6, 3, 4]]),
        past_key_values=cache,
    ).logits[0]
    separate = torch.cat([alone(model, prompt + answer)[3:] for answer in answers])
    torch.testing.assert_close(logits, separate, atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_a_row_that_sees_nothing_gives_finite_numbers(model):
    """As rows of padding do in a ready-made mask."""
    mask = torch.ones(5, 5).tril().bool()[None, None].clone()
    mask[..., :2, :] = False
    mask[..., :2] = False
    ids = torch.tensor([[6, 6, *SEQUENCES[1]]])
    positions = torch.tensor([[0, 0, 0, 1, 2]])
    for kind in (mask, additive(mask, float("-inf"))):
        logits = model(ids, attention_mask=kind, position_ids=positions).logits[0]
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(logits[2:], alone(model, SEQUENCES[1]), atol=5e-5, rtol=1e-5)


def test_masks_of_a_wrong_shape_are_refused(model):
    ids = torch.tensor([SEQUENCES[0]])
    with pytest.raises(ValueError, match=r"2-D .* or 4-D .*; got shape \(1, 5, 5\)"):
        model(ids, attention_mask=torch.ones(1, 5, 5))
    cache = model(ids, use_cache=True).past_key_values
    for position_ids in (None, torch.tensor([[5]])):
        with pytest.raises(ValueError, match=r"must cover the 5 cached and the 1 new tokens; got shape \(1, 1\)"):
            model(ids[:, :1], attention_mask=torch.ones(1, 1), position_ids=position_ids, past_key_values=cache)
        # As if the cache had got lost on the way.
        with pytest.raises(ValueError, match=r"must cover the 0 cached and the 1 new tokens; got shape \(1, 6\)"):
            model(ids[:, :1], attention_mask=torch.ones(1, 6), position_ids=position_ids)


def test_sequences_of_one_token_are_told_apart():
    """Each begins at position 0, which is not above the one before."""
    positions = torch.tensor([[0, 0, 1, 0, 0]])
    assert number_packed_sequences(positions, None).tolist() == [[0, 1, 1, 2, 3]]
