"""QLoRA: PPO of an adapter on a base of 4 or 8 bits, which the reference shares."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from pangu_trl.models.adapter_selection import merged_policy_adapter

bnb = pytest.importorskip(
    "bitsandbytes", reason="quantised bases need bitsandbytes: pip install 'pangu_trl[quantised]'"
)


@pytest.fixture
def load(reward_adapter):
    """`load(bits, auto_class=..., **options)` of the base that policy and reward adapter share, quantised."""

    def load_base(bits: int, auto_class=AutoModelForCausalLM, **options):
        loading = {"quantization_config": BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, **options)}
        if auto_class is AutoModelForSequenceClassification:
            loading["num_labels"] = 1
        return auto_class.from_pretrained(reward_adapter.parent / "base", **loading)

    return load_base


def _dequantised(model) -> dict[str, torch.Tensor]:
    """Weights of a quantised model as plain numbers."""
    weights = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, bnb.nn.Params4bit):
            weights[f"{name}.weight"] = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif isinstance(weight, bnb.nn.Int8Params):
            # Each row in units of a 127th of its largest number.
            weights[f"{name}.weight"] = weight.data.float() * module.weight.SCB.unsqueeze(1) / 127
    assert len(weights) > 4
    return weights


@pytest.mark.parametrize(("bits", "layout"), [(4, "lora"), (4, "one backbone"), (8, "lora"), (8, "one backbone")])
def test_an_adapter_learns_on_quantised_weights_that_stay(make_trainer, load, policy, tmp_path, bits, layout):
    trainer = make_trainer(layout, models=dict(model=load(bits)), max_steps=3)
    models = trainer.model
    assert trainer.ref_model is None
    before = {name: tensor.detach().clone() for name, tensor in models.named_parameters()}
    trainer.train()
    rollout = trainer.passes.rollout
    changed = {name for name, tensor in models.named_parameters() if not torch.equal(tensor, before[name])}
    learns = {name for name, tensor in models.named_parameters() if tensor.requires_grad}
    assert changed <= learns and any("lora_B" in name for name in changed if name.startswith("policy."))
    assert {tensor.dtype for tensor in models.parameters()} >= {torch.uint8 if bits == 4 else torch.int8}
    # The reference is the same weights of few bits without the adapter, here as numbers in a plain model.
    plain = copy.deepcopy(policy).eval()
    plain.load_state_dict(_dequantised(load(bits)), strict=False)
    batch = rollout.select(torch.arange(2))
    with torch.no_grad():
        found = models(batch.input_ids, batch.attention_mask, batch.completion_mask, part="reference")["logprobs"]
        positions = batch.attention_mask.cumsum(dim=1).sub(1).clamp(min=0)
        logits = plain(batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions).logits
    width = batch.completion_mask.shape[1]
    logprobs = logits[:, -width - 1 : -1, : len(trainer.processing_class)].log_softmax(dim=-1)
    expected = logprobs.gather(2, batch.input_ids[:, -width:].unsqueeze(2)).squeeze(2)
    mask = batch.completion_mask
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-4, rtol=0)
    # What is saved belongs to the base as it was before it was quantised.
    trainer.save_model(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert saved and all("lora_" in name and tensor.is_floating_point() for name, tensor in saved.items())
    loaded = PeftModel.from_pretrained(copy.deepcopy(policy), tmp_path / "saved")
    assert all(
        torch.equal(loaded.state_dict()[name.replace(".weight", ".default.weight")], saved[name]) for name in saved
    )


def test_the_first_ratio_is_one_whatever_was_rounded(make_trainer, load, monkeypatch):
    first = []
    from pangu_trl.ppo import trainer as module

    check = module.check_first_pass
    monkeypatch.setattr(
        module,
        "check_first_pass",
        lambda outputs, batch, *rest: (
            first.append((outputs["logprobs"] - batch.logprobs)[batch.completion_mask].abs().max().item()),
            check(outputs, batch, *rest),
        ),
    )
    for bits in (4, 8):
        make_trainer("lora", models=dict(model=load(bits)), max_steps=1).train()
    assert first == [0.0, 0.0]


@pytest.mark.parametrize("storage", [torch.uint8, torch.float32])
def test_packed_weights_are_not_added_to_whatever_dtype_stores_them(make_trainer, load, storage):
    trainer = make_trainer("lora", models=dict(model=load(4, bnb_4bit_quant_storage=storage)))
    policy = trainer.model.policy
    # As bytes: what codes come to as numbers may be NaN.
    packed = [p.detach() for p in policy.parameters() if getattr(p, "quant_state", None) is not None]
    before = [tensor.view(torch.uint8).clone() for tensor in packed]
    assert before and packed[0].dtype == storage
    with merged_policy_adapter(policy):
        assert not any(getattr(module, "merged", False) for module in policy.modules())
    assert all(torch.equal(tensor.view(torch.uint8), bytes) for tensor, bytes in zip(packed, before, strict=True))


def test_what_cannot_be_quantised_is_refused(make_trainer, load, reward_model, policy, tmp_path):
    with pytest.raises(ValueError, match="model is quantised, and quantised weights cannot be trained.* peft_config"):
        make_trainer("full", models=dict(model=load(4)))
    judge = load(4, AutoModelForSequenceClassification)
    with pytest.raises(ValueError, match="reward_model is quantised, of which no critic can be copied"):
        make_trainer("lora", models=dict(reward_model=judge))
    with pytest.raises(ValueError, match="value_model is quantised"):
        make_trainer("lora", models=dict(value_model=judge))
    base = load(4)
    base.name_or_path = base.config._name_or_path = str(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="cannot be compared.*quantised"):
        make_trainer("one backbone", models=dict(model=base))
