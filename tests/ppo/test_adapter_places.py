"""Where adapters are found, what they call their base model, and which layers they are put on."""

import copy
import logging
import shutil

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen3MoeConfig
from trl import ModelConfig

from pangu_trl.models.loading import find_base_model, lasting_name, load_merged, load_with_adapter
from pangu_trl.models.lora_targets import check_lora_targets, resolve_lora_targets

IDS = torch.tensor([[20, 31, 42, 53]])


@pytest.fixture
def base(tmp_path, policy, tokenizer):
    """A language model's folder, with a tokenizer."""
    policy.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base, name: str) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(4)
    return get_peft_model(
        model, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False), adapter_name=name
    ).eval()


def test_an_adapter_one_folder_deeper_is_found_as_peft_saved_it(base, tokenizer, tmp_path):
    trained = adapted(base, "sft")
    trained.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    assert (tmp_path / "run" / "sft" / "adapter_config.json").exists()
    for place in (tmp_path / "run", tmp_path / "run" / "sft"):
        assert find_base_model(str(place)) == str(base)
        loaded, _, _ = load_with_adapter(AutoModelForCausalLM, str(place))
        with torch.no_grad():
            torch.testing.assert_close(loaded.eval()(IDS).logits, trained(IDS).logits)
            merged, its_tokenizer, _ = load_merged(AutoModelForCausalLM, str(place))
            torch.testing.assert_close(merged.eval()(IDS).logits, trained(IDS).logits, atol=1e-5, rtol=1e-5)
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    shutil.copytree(tmp_path / "run" / "sft", tmp_path / "run" / "other")
    with pytest.raises(ValueError, match="holds several adapters, other, sft; give the folder of one"):
        load_with_adapter(AutoModelForCausalLM, str(tmp_path / "run"))


def test_a_base_model_is_named_so_that_it_is_found_from_anywhere(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lasting_name("base") == str(tmp_path / "base")
    assert lasting_name("some-org/some-model") == "some-org/some-model"
    assert lasting_name(None) is None
    model, _, _ = load_merged(AutoModelForCausalLM, "base")
    get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained("adapter")
    monkeypatch.chdir("/")
    assert find_base_model(str(tmp_path / "adapter")) == str(tmp_path / "base")


def test_ppo_writes_adapters_that_name_their_base_by_an_absolute_path(base, make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained("base")
    trainer = make_trainer("lora", models=dict(model=policy))
    trainer.save_model()
    assert PeftConfig.from_pretrained(tmp_path / "run").base_model_name_or_path == str(tmp_path / "base")


def test_an_adapter_of_virtual_tokens_is_refused_where_it_is_loaded(base, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ValueError, match="prompt.*PROMPT_TUNING.*depends on how much a batch is padded"):
        load_with_adapter(AutoModelForCausalLM, str(tmp_path / "prompt"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LoraConfig(), {"q_proj", "k_proj", "v_proj", "attn.c_proj", "c_fc", "mlp.c_proj"}),
        (LoHaConfig(), {"q_proj", "k_proj", "v_proj", "attn.c_proj", "c_fc", "mlp.c_proj"}),
        (IA3Config(), {"k_proj", "v_proj", "mlp.c_proj"}),
        (LNTuningConfig(), {"ln_1", "ln_2", "ln_f"}),
    ],
    ids=lambda value: getattr(value, "peft_type", None),
)
def test_peft_knows_where_its_methods_go_in_gptpangu(config, expected, policy):
    model = get_peft_model(policy, config)
    reached = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert reached and all(any(f".{place}." in name for place in expected) for name in reached)
    assert all(any(f".{place}." in name for name in reached) for place in expected)


SIZES = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def reached_by_default(config) -> set[str]:
    model = AutoModelForCausalLM.from_config(config)
    lora = LoraConfig(r=2, task_type="CAUSAL_LM")
    resolve_lora_targets(lora, model)
    check_lora_targets(lora, model)
    names = {name for name, _ in get_peft_model(model, lora).named_parameters() if "lora_A" in name}
    return {name.partition(".lora_A")[0].rpartition(".")[2] for name in names}


def test_lora_without_targets_reaches_every_linear_layer_but_the_head():
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert reached_by_default(LlamaConfig(**SIZES)) == attention | {"gate_proj", "up_proj", "down_proj"}


def test_experts_in_one_tensor_are_named(caplog):
    experts = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, head_dim=8)
    with caplog.at_level(logging.WARNING):
        reached_by_default(Qwen3MoeConfig(**SIZES, **experts))
    assert "model.layers.*.mlp.experts.gate_up_proj" in caplog.text and "lora_target_parameters" in caplog.text
    caplog.clear()
    lora = LoraConfig(target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    assert check_lora_targets(lora, AutoModelForCausalLM.from_config(MixtralConfig(**SIZES, num_local_experts=2))) == []


def test_targets_that_match_nothing_are_named_with_what_there_is():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    with pytest.raises(
        ValueError, match=r"lora_target_modules: c_fc, c_proj match no layer of LlamaForCausalLM.*gate_proj"
    ):
        check_lora_targets(LoraConfig(target_modules=["q_proj", "c_proj", "c_fc"]), model)
    with pytest.raises(ValueError, match="lora_target_parameters: experts.up match no weight of LlamaForCausalLM"):
        check_lora_targets(LoraConfig(target_modules=["q_proj"], target_parameters=["experts.up"]), model)
    check_lora_targets(LoraConfig(target_modules=["q_proj", "mlp.up_proj"]), copy.deepcopy(model))


def test_a_list_of_one_name_is_that_name(policy):
    # TRL hands on the word alone, which PEFT would hold against whole paths, and find nothing.
    lora = LoraConfig(target_modules=ModelConfig(lora_target_modules=["q_proj"]).lora_target_modules)
    resolve_lora_targets(lora, policy)
    assert lora.target_modules == {"q_proj"}
    assert get_peft_model(policy, lora).targeted_module_names == [f"transformer.h.{n}.attn.q_proj" for n in range(2)]
