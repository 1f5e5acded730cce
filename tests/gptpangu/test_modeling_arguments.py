"""The two names of the cache, and keywords that no layer would read."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    StaticCache,
)
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import logging

from pangu_trl.gptpangu.arguments_gptpangu import CACHE_ARGUMENT

NAMES = ["cache", "past_key_values"]
HEADS = {
    "base": AutoModel,
    "causal": AutoModelForCausalLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}
IDS = torch.randint(10, 1024, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=HEADS)
def head(request, fixtures):
    torch.manual_seed(0)
    return HEADS[request.param].from_pretrained(fixtures / "tiny_gptpangu").eval()


def last_numbers(output) -> torch.Tensor:
    """Logits, or hidden states, at the last token."""
    numbers = output[0]
    return numbers if numbers.ndim == 2 else numbers[:, -1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make_cache", [DynamicCache, partial(StaticCache, max_cache_len=12)], ids=["dynamic", "static"]
)
@torch.no_grad()
def test_every_head_continues_from_a_cache_under_either_name(head, name, make_cache):
    cache = make_cache(config=head.config)
    head(IDS[:, :6], **{name: cache})
    assert cache.get_seq_length() == 6
    tail = head(IDS[:, 6:], **{name: cache})
    assert cache.get_seq_length() == 9
    if not isinstance(tail, TokenClassifierOutput):  # has no place for a cache
        assert tail[CACHE_ARGUMENT] is tail.past_key_values is cache
    assert_close(last_numbers(tail), last_numbers(head(IDS, use_cache=False)), atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_every_head_takes_the_cache_by_position(head):
    cache = DynamicCache()
    head(IDS[:, :6], None, None, cache)
    tail = head(IDS[:, 6:], None, None, cache)
    assert_close(last_numbers(tail), last_numbers(head(IDS)), atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_two_names_may_name_one_cache_but_not_two(head):
    cache = DynamicCache()
    head(IDS[:, :6], cache=cache, past_key_values=cache)
    tail = head(IDS[:, 6:], cache=cache, past_key_values=cache)
    assert_close(last_numbers(tail), last_numbers(head(IDS)), atol=5e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="two names of one argument"):
        head(IDS, cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("name", NAMES)
def test_a_tuple_of_keys_and_values_is_refused(head, name):
    with pytest.raises(ValueError, match="must be a transformers Cache.*got tuple"):
        head(IDS, **{name: ((torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8)),)})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        # What a later transformers might call the cache, and what earlier ones called it.
        ({"kv_cache": DynamicCache()}, "does not know kv_cache"),
        ({"layer_past": DynamicCache()}, "does not know layer_past"),
        ({"cache_params": DynamicCache()}, "does not know cache_params"),
        (
            {"encoder_hidden_states": torch.zeros(1), "cross_attn_head_mask": torch.zeros(1)},
            "cross_attn_head_mask",
        ),
        ({"sliding_window": 2}, "does not know sliding_window"),
        ({"token_type_ids": IDS}, "does not know token_type_ids"),
        # Belongs to continuous batching, whose cache is missing.
        ({"read_index": []}, "does not know read_index"),
        ({"is_causal": False}, "is_causal=False is not supported"),
        ({"cu_seq_lens_q": torch.tensor([0, 9])}, "cu_seq_lens_q mark packed sequences; give position_ids"),
        ({"seq_idx": torch.zeros(2, 9)}, "seq_idx mark packed sequences; give position_ids"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_keyword_that_would_be_swallowed_is_refused(head, keywords, message):
    with pytest.raises(ValueError, match=message):
        head(IDS, **keywords)


@torch.no_grad()
def test_keywords_that_say_nothing_or_are_obeyed_pass(head):
    expected = head(IDS)[0]
    positions = torch.arange(9).expand(2, -1)
    for keywords in (
        {"kv_cache": None, "token_type_ids": None},
        {"is_causal": True, "output_attentions": False, "output_hidden_states": True},
        {"position_ids": positions, "cu_seq_lens_q": torch.tensor([0, 9, 18]), "max_length_q": 9},
    ):
        assert torch.equal(head(IDS, **keywords)[0], expected), keywords
    assert torch.equal(head(IDS, return_dict=False)[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_in_a_checkpointed_pass_is_refused(head, name):
    """Layers would drop it with a warning and compute the new tokens without their past."""
    head.train().activation_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        head(IDS, **{name: DynamicCache()})


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_in_training_mode_with_checkpointing_is_right_or_refused(model, use_cache):
    """transformers 5.23 drops the cache there, 5.24 keeps it, as no gradient is computed."""
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=use_cache)
    expected = model.generate(IDS[:, :5], **options)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train().activation_checkpointing_enable()
    if use_cache and CACHE_ARGUMENT == "past_key_values":
        with pytest.raises(ValueError, match="Call model.eval"):
            model.generate(IDS[:, :5], **options)
    else:
        assert model.generate(IDS[:, :5], **options).tolist() == expected.tolist()


@pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning")
def test_no_pass_uses_a_name_that_the_installed_transformers_calls_deprecated(head, caplog):
    logging.warning_once.cache_clear()  # what another test has heard is said again
    transformers_logger = logging.get_logger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        head(IDS[:, :6], use_cache=True)
        head(IDS, **{CACHE_ARGUMENT: DynamicCache()})
        head.train()(IDS, attention_mask=torch.ones_like(IDS))[0].sum().backward()
        if hasattr(head, "generate"):
            head.eval().generate(IDS, max_new_tokens=2, do_sample=False)
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert [record for record in caplog.messages if "deprecated" in record] == []


def test_evaluation_in_a_trainer_gathers_no_cache(model):
    """Trainer keeps every output that the configuration does not name, and would pad and gather keys and values."""
    output = model(IDS, labels=IDS, use_cache=True)
    assert [name for name in output if name not in model.config.keys_to_ignore_at_inference] == ["loss", "logits"]
