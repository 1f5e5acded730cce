"""Every method of PEFT in PPO: the reference is the policy as it was passed in, and what learns is what is kept; or no.

The rows of METHODS stand in docs/models.md.
"""

import copy
import logging
import sys
from dataclasses import dataclass
from types import ModuleType
from unittest import mock

import pytest
import torch
from peft import (
    AdaLoraConfig,
    AdamssConfig,
    AdaptionPromptConfig,
    FourierFTConfig,
    HiraConfig,
    HRAConfig,
    IA3Config,
    LilyConfig,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    MontecloraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PveraConfig,
    RoadConfig,
    ShadowConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)

from pangu_trl.ppo.actor_critic.token_logprobs import completion_logprobs


@dataclass
class Method:
    """A method of PEFT.

    Attributes:
        config: Of the new adapter.
        reference: What the reference is: "off" (the policy with its adapter off) or "copy".
        merges: Whether generation adds the adapter to the weights.
    """

    config: PeftConfig
    reference: str
    merges: bool = False


def lora(**options) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, **options)


def loftq() -> LoraConfig:
    """Whose constructor asks for a package that is not needed for a refusal."""
    config = lora()
    config.init_lora_weights = "loftq"
    return config


def adamss() -> AdamssConfig:
    """Whose constructor asks for scikit-learn, which is not needed for a refusal."""
    with mock.patch.dict(sys.modules, sklearn=ModuleType("sklearn")):
        return AdamssConfig(task_type="CAUSAL_LM", r=8)


METHODS = {
    "LoRA": Method(lora(), "off", merges=True),
    "LoRA, bias lora_only": Method(lora(bias="lora_only"), "copy", merges=True),
    "LoRA, bias all": Method(lora(bias="all"), "copy", merges=True),
    "LoRA, lora_bias": Method(lora(lora_bias=True), "off"),
    "LoRA, Gaussian start": Method(lora(init_lora_weights="gaussian"), "off", merges=True),
    "LoRA, orthogonal start": Method(lora(init_lora_weights="orthogonal"), "off", merges=True),
    "LoRA, PiSSA start": Method(lora(init_lora_weights="pissa"), "copy", merges=True),
    "LoRA, OLoRA start": Method(lora(init_lora_weights="olora"), "copy", merges=True),
    "LoRA, modules_to_save": Method(lora(modules_to_save=["ln_f"]), "off", merges=True),
    "LoRA, trainable tokens": Method(lora(trainable_token_indices=list(range(10, 200))), "off", merges=True),
    "LoRA on embeddings": Method(lora(target_modules=["wpe", "c_fc"]), "off", merges=True),
    "rsLoRA": Method(lora(use_rslora=True), "off", merges=True),
    "DoRA": Method(lora(use_dora=True), "off"),
    "IA3": Method(IA3Config(task_type="CAUSAL_LM"), "off"),
    "LN tuning": Method(LNTuningConfig(task_type="CAUSAL_LM"), "off"),
    "LoHa": Method(LoHaConfig(task_type="CAUSAL_LM", r=4), "off"),
    "LoKr": Method(LoKrConfig(task_type="CAUSAL_LM", r=4), "off"),
    "OFT": Method(OFTConfig(task_type="CAUSAL_LM", r=0, oft_block_size=4), "off"),
    "HRA": Method(HRAConfig(task_type="CAUSAL_LM", r=4), "off"),
    "VeRA": Method(VeraConfig(task_type="CAUSAL_LM", r=4), "off"),
    "HiRA": Method(HiraConfig(task_type="CAUSAL_LM", r=4), "off"),
    "MiSS": Method(MissConfig(task_type="CAUSAL_LM", r=4), "off"),
    "MiSS, Bat": Method(MissConfig(task_type="CAUSAL_LM", r=4, init_weights="bat"), "off"),
    "MiSS, mini": Method(MissConfig(task_type="CAUSAL_LM", r=4, init_weights="mini", mini_r=2), "off"),
    "RoAd": Method(RoadConfig(task_type="CAUSAL_LM", group_size=4), "off"),
    "RoAd 2": Method(RoadConfig(task_type="CAUSAL_LM", group_size=4, variant="road_2"), "off"),
    "RoAd 4": Method(RoadConfig(task_type="CAUSAL_LM", group_size=4, variant="road_4"), "off"),
}

REFUSED = {
    "prompt tuning": (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "virtual tokens"),
    "P-tuning": (
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8),
        "virtual tokens",
    ),
    "prefix tuning": (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "virtual tokens"),
    "AdaLoRA": (AdaLoraConfig(task_type="CAUSAL_LM", total_step=10), "schedule of ranks"),
    "AdaMSS": (adamss(), "clusters of the base weights"),
    "LLaMA-Adapter": (
        AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=1),
        "more than a forward pass",
    ),
    "Lily": (LilyConfig(task_type="CAUSAL_LM", r=4), "mean over all tokens of a batch"),
    "PVeRA": (PveraConfig(task_type="CAUSAL_LM", r=4), "drawn by chance while it learns"),
    "MonteCLoRA": (lora(monteclora_config=MontecloraConfig()), "drawn by chance while it learns"),
    "aLoRA": (lora(alora_invocation_tokens=[20]), "on only behind its alora_invocation_tokens"),
    "LoRA with copied layers": (lora(layer_replication=[(0, 2)]), "share one place in the cache"),
    "Shadow": (ShadowConfig(task_type="CAUSAL_LM", r=4), "more than a forward pass"),
    "VB-LoRA, random start": (
        VBLoRAConfig(task_type="CAUSAL_LM", num_vectors=8, vector_length=8),
        "at random before anything is learnt. Use LoRA",
    ),
    "LoRA, PiSSA start by iteration": (lora(init_lora_weights="pissa_niter_4"), "cannot repeat"),
    "LoRA, CorDA start": (lora(init_lora_weights="corda", corda_config={}), "cannot repeat"),
    "LoRA, LoftQ start": (loftq(), "cannot repeat"),
    "LoRA, random start": (lora(init_lora_weights=False), "init_lora_weights to true"),
    "MiSS, random start": (MissConfig(task_type="CAUSAL_LM", r=4, init_weights=False), "init_weights to true"),
    "FourierFT, random start": (FourierFTConfig(task_type="CAUSAL_LM", n_frequency=8), "init_weights to true"),
}


@pytest.fixture
def start_policy(policy):
    """Weights large enough that every method changes what the policy says."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1).add_(0.02)
    return policy.eval()


@pytest.fixture
def make_adapted(make_trainer, start_policy):
    """Trainers that take a new rollout at every step; a value head and a function keep them small."""

    def make(**arguments):
        models = dict(
            model=copy.deepcopy(start_policy),
            reward_model=lambda prompts, completions, **_: [float(len(text)) for text in completions],
            peft_config=None,
        )
        options = dict(num_rollout_batches=1, num_ppo_epochs=1, max_steps=2, learning_rate=0.03)
        given = {name: arguments.pop(name) for name in list(arguments) if name in (*models, "ref_model")}
        return make_trainer("value head", models=models | given, **options | arguments)

    return make


def logprobs_under(model, rollout):
    arguments = (rollout.input_ids, rollout.attention_mask, rollout.completion_mask, 1.0)
    with torch.no_grad():
        return completion_logprobs(model.eval(), *arguments)[0][rollout.completion_mask]


def kl_logged(trainer) -> list[float]:
    return [entry["kl/mean"] for entry in trainer.state.log_history if "kl/mean" in entry]


# They differ from their neighbours in PEFT's code alone.
SLOW = {
    "LoRA, Gaussian start",
    "LoRA, orthogonal start",
    "LoRA on embeddings",
    "LoHa",
    "LoKr",
    "OFT",
    "HRA",
    "VeRA",
    "HiRA",
    "MiSS",
    "MiSS, Bat",
    "MiSS, mini",
    "RoAd",
    "RoAd 2",
    "RoAd 4",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in METHODS]
)
def test_a_method_has_the_start_as_its_reference_and_its_folder_is_what_it_learnt(
    name, make_adapted, start_policy, tmp_path
):
    method = METHODS[name]
    trainer = make_adapted(peft_config=copy.deepcopy(method.config), save_strategy="steps", save_steps=1)
    assert (trainer.ref_model is None) == (method.reference == "off")
    trainer.train()
    trainer.save_model()
    learnt, rollout = trainer.model.policy, trainer.passes.rollout
    # 1. The reference, on the last rollout, is the model that was passed in; the policy is not any more.
    expected = logprobs_under(start_policy, rollout)
    found = rollout.ref_logprobs[rollout.completion_mask]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert (rollout.logprobs[rollout.completion_mask] - expected).abs().max() > 1e-3
    assert kl_logged(trainer)[0] == pytest.approx(0, abs=1e-5)
    # 2. What answered, merged or not, is what was scored.
    assert all(entry.get("policy/sampling_gap", 0) < 1e-4 for entry in trainer.state.log_history)
    # 3. The folder, loaded by PEFT onto the model that was passed in, is the policy.
    loaded = PeftModel.from_pretrained(copy.deepcopy(start_policy), tmp_path / "run")
    torch.testing.assert_close(logprobs_under(loaded, rollout), logprobs_under(learnt, rollout), atol=2e-5, rtol=1e-5)
    # 4. So is that model with the adapter merged into it, as `pangu-trl merge` does it.
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logprobs_under(merged, rollout), logprobs_under(learnt, rollout), atol=2e-5, rtol=1e-5)
    # 5. A resumed run ends where the whole one did, against the same reference.
    resumed = make_adapted(peft_config=copy.deepcopy(method.config), save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for (key, tensor), other in zip(trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(tensor, other), key
    assert torch.equal(resumed.passes.rollout.ref_logprobs, rollout.ref_logprobs)


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_would_go_wrong_is_refused_before_anything_is_sampled(name, make_adapted, start_policy):
    config, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as failure:
        make_adapted(peft_config=copy.deepcopy(config))
    assert "peft_config" in str(failure.value)


def trained_adapter(start_policy, adapter_name="default", **options) -> PeftModel:
    torch.manual_seed(7)
    model = get_peft_model(copy.deepcopy(start_policy), lora(**options), adapter_name=adapter_name)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("options", [{}, {"bias": "all"}, {"init_lora_weights": "pissa"}], ids=str)
def test_a_trained_adapter_is_its_own_reference_and_the_log_says_so(options, make_adapted, start_policy, caplog):
    passed = trained_adapter(start_policy, **options)
    before = copy.deepcopy(passed)
    with caplog.at_level(logging.WARNING):
        trainer = make_adapted(model=passed)
    assert "frozen copy of the policy as it was passed in" in caplog.text
    trainer.train()
    rollout = trainer.passes.rollout
    expected = logprobs_under(before, rollout)
    torch.testing.assert_close(rollout.ref_logprobs[rollout.completion_mask], expected, atol=1e-5, rtol=1e-5)
    assert kl_logged(trainer)[0] == 0 and kl_logged(trainer)[-1] != 0
    # What does not learn is there once.
    ours, theirs = trainer.model.policy.get_base_model(), trainer.ref_model.get_base_model()
    assert ours.transformer.wte.weight is theirs.transformer.wte.weight


def test_a_reference_that_was_passed_wins_over_the_adapter(make_adapted, start_policy):
    trainer = make_adapted(model=trained_adapter(start_policy), ref_model=copy.deepcopy(start_policy))
    trainer.train()
    rollout = trainer.passes.rollout
    expected = logprobs_under(start_policy, rollout)
    torch.testing.assert_close(rollout.ref_logprobs[rollout.completion_mask], expected, atol=1e-5, rtol=1e-5)


def test_a_policy_that_is_not_its_reference_at_the_start_stops_before_it_learns(make_adapted):
    trainer = make_adapted(peft_config=lora())
    before = {}
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        before[name] = parameter.detach().clone()
    with pytest.raises(ValueError, match=r"differ by \d\.\d+ nats a token .* Pass ref_model"):
        trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())
    # By the second training a policy has learnt.
    again = make_adapted(peft_config=lora())
    again.train()
    again.train()


@pytest.mark.parametrize("adapter_name", ["sft", "value"])
def test_an_adapter_of_any_name_is_saved_where_peft_and_a_resume_find_it(
    adapter_name, make_adapted, start_policy, tmp_path
):
    def trainer(**options):
        passed = trained_adapter(start_policy, adapter_name)
        return make_adapted(model=passed, ema_decay=0.5, **options)

    whole = trainer(save_strategy="steps", save_steps=1)
    whole.train()
    whole.save_model()
    rollout = whole.passes.rollout
    expected = logprobs_under(whole.model.policy, rollout)
    loaded = PeftModel.from_pretrained(copy.deepcopy(start_policy), tmp_path / "run")
    torch.testing.assert_close(logprobs_under(loaded, rollout), expected)
    averaged = PeftModel.from_pretrained(copy.deepcopy(start_policy), tmp_path / "run" / "ema")
    by_name = dict(averaged.named_parameters())
    for name, tensor in whole.average.whole_weights().items():
        assert torch.equal(by_name[name.replace(f".{adapter_name}.", ".default.")], tensor), name
    assert not {group["lr"] for group in whole.optimizer.param_groups if not group["is_critic"]} - {0.03}
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for (name, tensor), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(tensor, other), name


def test_of_two_adapters_the_active_one_learns_and_is_saved(make_adapted, start_policy, tmp_path):
    passed = trained_adapter(start_policy)
    passed.add_adapter("new", lora())
    passed.set_adapter("new")
    before = {name: parameter.detach().clone() for name, parameter in passed.named_parameters()}
    trainer = make_adapted(model=passed)
    assert trainer.ref_model is None
    trainer.train()
    trainer.save_model()
    moved = {name for name, parameter in passed.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all(".new." in name for name in moved)
    rollout = trainer.passes.rollout
    torch.testing.assert_close(
        rollout.ref_logprobs[rollout.completion_mask], logprobs_under(start_policy, rollout), atol=1e-5, rtol=1e-5
    )
    loaded = PeftModel.from_pretrained(copy.deepcopy(start_policy), tmp_path / "run")
    torch.testing.assert_close(logprobs_under(loaded, rollout), logprobs_under(passed, rollout))
    assert all(entry.get("policy/sampling_gap", 0) < 1e-4 for entry in trainer.state.log_history)


def two_active(model: PeftModel) -> None:
    model.base_model.set_adapter(["default", "new"])


def idle_but_trainable(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (two_active, "one adapter must be active.*active are default, new"),
        (idle_but_trainable, "adapter new has trainable weights but is not active"),
        (lambda model: model.disable_adapter_layers(), "enable_adapter_layers"),
        (lambda model: model.merge_adapter(), "unmerge_adapter"),
    ],
    ids=["two active", "two trainable", "switched off", "merged"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_policy_whose_adapter_cannot_learn_alone_is_refused(spoil, message, make_adapted, start_policy):
    passed = trained_adapter(start_policy)
    passed.add_adapter("new", lora())
    spoil(passed)
    with pytest.raises(ValueError, match=message):
        make_adapted(model=passed)
