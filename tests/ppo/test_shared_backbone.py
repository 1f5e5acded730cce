"""ONE backbone under several adapters gives the numbers of separate models, and never another adapter's gradients."""

import copy
import json

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from pangu_trl.models.adapter_selection import (
    VALUE_ADAPTER,
    merged_policy_adapter,
    pin_adapter_for_recompute,
    selected_adapter,
)

CHECKPOINTING = pytest.mark.parametrize(
    "checkpointing",
    [
        dict(),
        dict(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}),
        dict(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}),
    ],
    ids=["no checkpoints", "re-entrant", "non-reentrant"],
)
LOSSES = ("policy/loss", "value/loss", "reward/mean", "kl/mean", "value/mean", "grad_norm")


def logged(trainer) -> list[dict[str, float]]:
    trainer.train()
    return [{name: entry[name] for name in LOSSES if name in entry} for entry in trainer.state.log_history[:-1]]


@CHECKPOINTING
def test_one_backbone_learns_as_four_separate_models_of_the_same_weights(make_trainer, separate_models, checkpointing):
    # Plain SGD, whose step is the gradient: Adam would make whole steps of the rounding of gradients that are almost 0.
    plain = dict(optim="sgd", max_grad_norm=0.0, learning_rate=0.02, critic_learning_rate=0.002)
    options = dict(gradient_accumulation_steps=2, reward_clip=None) | plain | checkpointing
    separate = make_trainer("lora", models=separate_models(), **options)
    start = {name: parameter.detach().clone() for name, parameter in separate.model.named_parameters()}
    expected = logged(separate)
    assert max((parameter - start[name]).abs().max() for name, parameter in separate.model.named_parameters()) > 1e-3
    # Built only now: a new trainer starts the random numbers anew.
    shared = make_trainer("one backbone", **options)
    found = logged(shared)
    assert len(expected) == 8 and expected[4]["kl/mean"] != 0
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5, rel=1e-5), (step, name)
    weights = dict(separate.model.named_parameters())
    for name, parameter in shared.model.policy.named_parameters():
        if ".default." in name:
            torch.testing.assert_close(parameter, weights[f"policy.{name}"], atol=1e-5, rtol=1e-5, msg=name)
        if f".{VALUE_ADAPTER}." in name:
            theirs = weights[f"value_model.{name.replace(f'.{VALUE_ADAPTER}.', '.default.')}"]
            torch.testing.assert_close(parameter, theirs, atol=1e-5, rtol=1e-5, msg=name)


def test_only_policy_and_critic_learn_and_the_reward_stays(make_trainer):
    trainer = make_trainer("one backbone", max_steps=4)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert moved and all(
        ".default." in name or f".{VALUE_ADAPTER}." in name or name == "value_head.weight" for name in moved
    )
    assert any(f".{VALUE_ADAPTER}." in name for name in moved) and any(".default." in name for name in moved)


def test_a_layer_that_only_the_reward_adapter_changes_is_plain_for_the_policy(make_trainer, policy):
    # The reward adapter changes attention and MLP, this policy adapter the MLP alone.
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["c_fc"])
    model = make_trainer("one backbone", models=dict(peft_config=lora)).model.eval()
    ids = torch.randint(10, 200, (2, 9))
    with torch.no_grad():
        # The new adapter starts at zero, so the policy still is its base model.
        torch.testing.assert_close(model.policy(ids).logits, policy.eval()(ids).logits)
        with selected_adapter(model.policy, VALUE_ADAPTER):
            assert not torch.allclose(model.policy(ids).logits, policy(ids).logits, atol=1e-3)


def test_a_peft_model_may_be_passed_as_the_reward_adapter(make_trainer, separate_models):
    from_folder = make_trainer("one backbone").model
    from_model = make_trainer("one backbone", models=dict(reward_model=separate_models()["reward_model"])).model
    for (name, parameter), other in zip(from_folder.named_parameters(), from_model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_a_reward_adapter_of_another_base_is_refused(make_trainer, policy, reward_adapter):
    policy.transformer.wte.weight.data[7] += 1
    # The names agree, so the folder is believed; a model whose base name differs is compared weight by weight.
    policy.name_or_path = policy.config._name_or_path = "elsewhere"
    with pytest.raises(ValueError, match=r"not an adapter of the policy's base model: 1 of \d+ base weights differ"):
        make_trainer("one backbone")


def test_adapters_that_cannot_be_shared_are_refused(make_trainer, policy, reward_adapter, reward_model, tmp_path):
    with pytest.raises(ValueError, match="needs a policy with LoRA"):
        make_trainer("one backbone", models=dict(peft_config=None))
    with pytest.raises(ValueError, match="needs a reward model that is a LoRA adapter"):
        make_trainer("one backbone", models=dict(reward_model=reward_model))
    with pytest.raises(ValueError, match="is not the folder of a LoRA adapter"):
        make_trainer("one backbone", models=dict(reward_model=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match=r"is a path. Load the model, or set share_backbone='all'"):
        make_trainer("lora", models=dict(reward_model=str(reward_adapter)))
    with pytest.raises(ValueError, match="makes the critic from the policy's backbone; leave value_model out"):
        make_trainer("one backbone", models=dict(value_model=reward_model))
    for options, message in (
        (dict(bias="all"), r"stay as they are.*leaves weights of the base model trainable \(\d+, the first is"),
        (dict(init_lora_weights="pissa"), r"stay as they are.*moves the base weights where it starts \(pissa\)"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer("one backbone", models=dict(peft_config=LoraConfig(task_type="CAUSAL_LM", **options)))
    with pytest.raises(ValueError, match="must be LoRA too; got IA3"):
        make_trainer("one backbone", models=dict(peft_config=IA3Config(task_type="CAUSAL_LM")))
    message = "keeps one backbone for policy, critic, reward and reference.*Leave ref_model out, or set share_backbone="
    with pytest.raises(ValueError, match=message):
        make_trainer("one backbone", models=dict(ref_model=copy.deepcopy(policy)))
    config = json.loads((reward_adapter / "adapter_config.json").read_text())
    (reward_adapter / "adapter_config.json").write_text(json.dumps(config | {"bias": "lora_only"}))
    with pytest.raises(ValueError, match="must be LoRA with bias='none'.*bias='lora_only'"):
        make_trainer("one backbone")


def two_adapters(policy, use_reentrant: bool):
    """A policy with two adapters that differ, gradient checkpoints on."""
    model = get_peft_model(copy.deepcopy(policy), LoraConfig(r=4, task_type="CAUSAL_LM"))
    model.add_adapter("value", LoraConfig(r=4, task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
            parameter.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    return model.train()


def gradients(model) -> dict[str, torch.Tensor]:
    ids = torch.arange(10, 22).unsqueeze(0)
    with selected_adapter(model, "default"):
        first = model(ids, use_cache=False).logits.square().mean()
    with selected_adapter(model, "value"):
        second = model(ids, use_cache=False).logits.square().mean()
    (first + 2 * second).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_runs_under_the_adapter_of_its_forward_pass(policy, assert_same_gradients, use_reentrant):
    plain = two_adapters(policy, use_reentrant)
    plain.activation_checkpointing_disable()
    expected = gradients(plain)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in expected.values())
    pinned = two_adapters(policy, use_reentrant)
    pin_adapter_for_recompute(pinned)
    assert_same_gradients(gradients(pinned), expected)


def test_a_merged_adapter_gives_the_same_logits_and_the_weights_come_back_bit_for_bit(policy):
    model = two_adapters(policy, use_reentrant=False).eval()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = torch.arange(10, 22).unsqueeze(0)
    with torch.no_grad():
        expected = model(ids).logits
        with merged_policy_adapter(model):
            assert any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
            torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(model(ids).logits, expected)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_without_pinning_the_gradients_would_be_wrong(policy, assert_same_gradients):
    # Guards the test above: the trap that it watches is there.
    plain = two_adapters(policy, use_reentrant=True)
    plain.activation_checkpointing_disable()
    expected, wrong = gradients(plain), gradients(two_adapters(policy, use_reentrant=True))
    wrong = {
        name: torch.zeros_like(expected[name]) if gradient is None else gradient for name, gradient in wrong.items()
    }
    with pytest.raises(AssertionError):
        assert_same_gradients(wrong, expected)


def test_a_failing_pass_leaves_the_selection_as_it_was(policy):
    model = two_adapters(policy, use_reentrant=False)
    layers = [module for module in model.modules() if hasattr(module, "_active_adapter")]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    with pytest.raises(RuntimeError, match="stop"), selected_adapter(model, None):
        raise RuntimeError("stop")
    assert [(layer._active_adapter, layer._disable_adapters) for layer in layers] == before
