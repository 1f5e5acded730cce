"""Every attention implementation of transformers gives the same numbers, or is called with the right arguments."""

import pytest
import torch
import torch.nn.functional as functional
import transformers.integrations.flash_attention as flash
from transformers import AttentionInterface

ATOL = 5e-5


@pytest.mark.parametrize("name", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
@torch.no_grad()
def test_every_attention_agrees_with_eager(load_golden, batch, name):
    real = batch["attention_mask"] == 1
    expected = load_golden("tiny_gptpangu", "eager")[0](**batch).logits[real]
    logits = load_golden("tiny_gptpangu", name)[0](**batch).logits[real]
    torch.testing.assert_close(logits, expected, atol=ATOL, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_flex_keeps_packed_sequences_apart_and_takes_ready_masks(load_golden):
    eager, flex = (load_golden("tiny_gptpangu", name)[0] for name in ("eager", "flex_attention"))
    ids = torch.arange(20, 30).unsqueeze(0)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    owner = positions.eq(0).cumsum(-1)[0]
    blocks = ((owner[:, None] == owner) & torch.ones(10, 10).tril().bool())[None, None]
    expected = torch.cat([eager(ids[:, :4]).logits, eager(ids[:, 4:]).logits], dim=1)
    for mask in (None, torch.ones_like(ids), blocks):
        logits = flex(ids, position_ids=positions, attention_mask=mask).logits
        torch.testing.assert_close(logits, expected, atol=ATOL, rtol=1e-5)
    with pytest.raises(ValueError, match="'flex_attention' takes a boolean one"):
        flex(ids, attention_mask=blocks.float())


def test_the_implementation_can_be_changed_after_loading(load_golden, batch):
    model, _ = load_golden("tiny_gptpangu", "sdpa")
    real = batch["attention_mask"] == 1
    before = model(**batch).logits
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    output = model(**batch, output_attentions=True)
    torch.testing.assert_close(output.logits[real], before[real], atol=ATOL, rtol=1e-5)
    assert [tuple(layer.shape) for layer in output.attentions] == [(3, 4, 9, 9)] * 4


def test_a_registered_attention_function_is_used(load_golden, batch):
    calls = []

    def recording_attention(module, query, key, value, attention_mask, **kwargs):
        calls.append((module.layer_idx, tuple(query.shape), kwargs["scaling"], kwargs["dropout"]))
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register("recording", recording_attention)
    model, _ = load_golden("tiny_gptpangu")
    model.set_attn_implementation("recording")
    model(**batch)
    assert calls == [(layer, (3, 4, 9, 16), 0.25, 0.0) for layer in range(4)]
    calls.clear()
    model.train()(**batch)
    assert [call[-1] for call in calls] == [0.1] * 4


@pytest.fixture
def flash_model(load_golden, monkeypatch):
    """A model that takes the flash path down to the kernel's entry, where plain attention stands in for the kernel."""
    calls = []

    def instead_of_the_kernel(query, key, value, attention_mask, **kwargs):
        calls.append(dict(kwargs, query=query, attention_mask=attention_mask))
        length = query.shape[1]
        sees = torch.ones(length, key.shape[1]).tril(key.shape[1] - length).bool()
        if attention_mask is not None:
            sees = sees & attention_mask[:, None, None, :]
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        return output.transpose(1, 2)

    monkeypatch.setattr(flash, "_flash_attention_forward", instead_of_the_kernel)
    model, _ = load_golden("tiny_gptpangu")
    # The public setter wants the flash-attn package, which needs a GPU.
    model.config._attn_implementation = "flash_attention_2"
    return model, calls


@torch.no_grad()
def test_flash_attention_is_called_with_the_right_arguments(flash_model, load_golden, batch):
    """The kernel itself does not run without a GPU; what surrounds it does."""
    model, calls = flash_model
    real = batch["attention_mask"] == 1
    expected = load_golden("tiny_gptpangu", "eager")[0](**batch).logits
    torch.testing.assert_close(model(**batch).logits[real], expected[real], atol=ATOL, rtol=1e-5)
    assert [call["layer_idx"] for call in calls] == [0, 1, 2, 3]
    call = calls[0]
    assert call["query"].shape == (3, 9, 4, 16)  # batch, length, heads, head width
    assert call["attention_mask"].dtype == torch.bool and call["attention_mask"].tolist() == real.tolist()
    assert call["is_causal"] is True and call["dropout"] == 0.0 and call["softmax_scale"] == 0.25
    assert call["position_ids"].tolist() == (real.long().cumsum(-1) - 1).clamp(min=0).tolist()


@torch.no_grad()
def test_flash_attention_gets_no_mask_without_padding_and_the_positions_of_a_packed_row(flash_model):
    """The kernel's wrapper splits a row without a mask where the positions restart."""
    model, calls = flash_model
    ids, positions = torch.arange(20, 26).unsqueeze(0), torch.tensor([[0, 1, 2, 0, 1, 2]])
    model(ids, attention_mask=torch.ones_like(ids))
    assert calls[-1]["attention_mask"] is None
    model(ids, position_ids=positions, cu_seq_lens_q=torch.tensor([0, 3, 6]))
    assert calls[-1]["attention_mask"] is None
    assert calls[-1]["position_ids"].tolist() == positions.tolist()
    assert calls[-1]["cu_seq_lens_q"].tolist() == [0, 3, 6]


def test_flash_attention_refuses_what_its_kernel_would_mix(flash_model):
    model, _ = flash_model
    ids, positions = torch.arange(20, 26).unsqueeze(0), torch.tensor([[0, 1, 2, 0, 1, 2]])
    with pytest.raises(ValueError, match="in one row without attention_mask; got 1 rows, attention_mask given"):
        model(ids, position_ids=positions, attention_mask=torch.ones_like(ids))
    with pytest.raises(ValueError, match="in one row without attention_mask; got 2 rows, attention_mask not given"):
        model(ids.repeat(2, 1), position_ids=positions)
    with pytest.raises(ValueError, match="flash_attention_2 takes no 4-D attention_mask of type torch.bool"):
        model(ids, attention_mask=torch.ones(1, 1, 6, 6, dtype=torch.bool))
