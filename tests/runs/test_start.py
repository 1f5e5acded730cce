"""Recipes in this process: what a run starts from, adapters handed from stage to stage, wrong input."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)
from trl import ModelConfig

from pangu_trl import GPTPanguConfig, GPTPanguForCausalLM
from pangu_trl.data import read_jsonl, write_jsonl
from pangu_trl.models import loading as adapters
from pangu_trl.models.loading import load_merged, load_with_adapter
from pangu_trl.models.modes import evaluation_mode
from pangu_trl.models.reward_model import load_reward_model, score_responses
from pangu_trl.reward.card import RewardCard
from pangu_trl.runs import start as recipe
from pangu_trl.runs.start import load_start

IDS = torch.tensor([[20, 31, 42, 53, 64, 75]])


@pytest.fixture
def adapter(tmp_path, base, tokenizer) -> str:
    """Folder of a LoRA adapter on `base` that changes its logits, as supervised fine-tuning saves it."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, task_type="CAUSAL_LM"))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with evaluation_mode(model):
        return model(IDS).logits


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_an_adapter_is_handed_on_through_all_stages(run_recipe, tmp_path, base, tokenizer):
    run = run_recipe("sft", model_name_or_path=base, use_peft=True, output_dir=tmp_path / "sft")
    sft = logits(run.model)
    assert not torch.allclose(sft, logits(AutoModelForCausalLM.from_pretrained(base)), atol=1e-3)
    sft_backbone = run.model.merge_and_unload().transformer

    def starts_from_sft(trainer):
        backbone = trainer.model.get_base_model() if hasattr(trainer.model, "peft_config") else trainer.model
        with evaluation_mode(trainer.model), evaluation_mode(sft_backbone):
            ours, expected = backbone.transformer(IDS).last_hidden_state, sft_backbone(IDS).last_hidden_state
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)

    options = dict(model_name_or_path=tmp_path / "sft")
    full = run_recipe("reward", starts_from_sft, **options, output_dir=tmp_path / "reward-full")
    assert trainable(full.model) == {name for name, _ in full.model.named_parameters()}
    reward = run_recipe("reward", starts_from_sft, **options, use_peft=True, output_dir=tmp_path / "reward")
    assert all("lora_" in name or "score" in name for name in trainable(reward.model))
    assert any("score" in name for name in trainable(reward.model))

    prompts, answers = ["总体来说，"] * 2, ["还不错。", "非常差！"]
    for trainer, name in ((full, "reward-full"), (reward, "reward")):
        expected = score_responses(trainer.model, tokenizer, prompts, answers, 2)
        loaded, loaded_tokenizer = load_reward_model(str(tmp_path / name))
        assert score_responses(loaded, loaded_tokenizer, prompts, answers, 2) == pytest.approx(expected, abs=1e-5)
    assert PeftConfig.from_pretrained(tmp_path / "reward").base_model_name_or_path == str(tmp_path / "reward" / "base")
    with pytest.raises(ValueError, match=r"hold no weights for score\.weight"):
        load_reward_model(str(tmp_path / "reward" / "base"))

    def policy_and_critic_are_theirs(trainer):
        torch.testing.assert_close(logits(trainer.model.policy), sft, atol=1e-5, rtol=1e-4)
        critic = score_responses(trainer.model.value_model, tokenizer, prompts, answers, 2)
        assert critic == pytest.approx(expected, abs=1e-5)

    ppo = run_recipe(
        "ppo",
        policy_and_critic_are_theirs,
        model_name_or_path=tmp_path / "sft",
        reward_model=tmp_path / "reward",
        use_peft=True,
        output_dir=tmp_path / "ppo",
    )
    assert all("lora_" in name for name in trainable(ppo.model.policy))
    assert trainable(ppo.model.value_model) == {name for name, _ in ppo.model.value_model.named_parameters()}
    after = logits(ppo.model.policy)
    assert not torch.allclose(after, sft, atol=1e-3)
    loaded, _, missing = load_with_adapter(AutoModelForCausalLM, str(tmp_path / "ppo"))
    assert missing == []
    torch.testing.assert_close(logits(loaded), after, atol=1e-5, rtol=1e-4)


def test_an_adapter_is_merged_and_every_weight_can_learn(base, adapter):
    merged, _, missing = load_merged(AutoModelForCausalLM, adapter)
    expected = logits(load_with_adapter(AutoModelForCausalLM, adapter)[0])
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(base)), atol=0.1)
    assert trainable(merged) == {name for name, _ in merged.named_parameters()}
    assert set(merged.state_dict()) == set(AutoModelForCausalLM.from_pretrained(base).state_dict())
    assert missing == []


def test_an_adapter_is_not_merged_under_zero_3(monkeypatch, base, adapter):
    monkeypatch.setattr(adapters, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"cannot be merged here: ZeRO-3.*Merge it first.*load_merged"):
        load_merged(AutoModelForCausalLM, adapter)
    load_merged(AutoModelForCausalLM, base)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (dict(task_type="SEQ_CLS"), "an adapter of type SEQ_CLS"),
        (dict(modules_to_save=["score"]), "an adapter with a score head"),
    ],
    ids=["SEQ_CLS", "no task"],
)
def test_the_adapter_of_a_reward_model_is_refused_as_a_language_model(tmp_path, base, options, kind):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    get_peft_model(model, LoraConfig(r=2, **options)).save_pretrained(tmp_path / "reward")
    reward = str(tmp_path / "reward")
    refused = re.escape(f"{reward}: a reward model or critic ({kind}), not a language model")
    for load, names in ((load_merged, (reward,)), (load_with_adapter, (reward,)), (load_with_adapter, (base, reward))):
        with pytest.raises(ValueError, match=f"^{refused}.*Give the folder of a language model"):
            load(AutoModelForCausalLM, *names)


def test_adapter_weights_that_have_no_place_are_refused_by_name(tmp_path, base):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS")).save_pretrained(tmp_path / "reward")
    config = PeftConfig.from_pretrained(tmp_path / "reward")
    # Nothing in its description says what it is.
    config.task_type, config.modules_to_save = None, None
    config.save_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match=r"GPTPanguForCausalLM has no place for: .*score"):
        load_merged(AutoModelForCausalLM, str(tmp_path / "reward"))


def other_base(kind: str, vocab_size: int) -> PreTrainedModel:
    """A model that is not `base`, whose blocks are two and 32 wide."""
    if kind == "another type":
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=2))
    sizes = {"wider": (64, 2), "deeper": (32, 3), "shallower": (32, 1)}[kind]
    return GPTPanguForCausalLM(
        GPTPanguConfig(vocab_size=vocab_size, hidden_size=sizes[0], num_layers=sizes[1], num_heads=2)
    )


@pytest.mark.parametrize(
    ("kind", "model_type", "named", "given"),
    [
        ("wider", "gpt_pangu", "size mismatch for .*lora_A", "size mismatch for .*lora_A"),
        ("deeper", "gpt_pangu", r"holds no weights for .*h\.2\..*untrained", r"holds no weights for .*h\.2\."),
        ("shallower", "gpt_pangu", r"no place for: .*h\.1\.", r"no place for: .*h\.1\."),
        (
            "another type",
            "gpt2",
            "GPT2LMHeadModel has no place for: .*k_proj.lora_A.weight and 11 more",
            "was trained on .*, a model of type gpt_pangu",
        ),
    ],
)
def test_an_adapter_of_another_base_is_refused_with_both_names(
    tmp_path, adapter, tokenizer, kind, model_type, named, given
):
    other = str(tmp_path / "other")
    other_base(kind, len(tokenizer)).save_pretrained(other)
    tokenizer.save_pretrained(other)
    both = rf"{adapter}: an adapter that cannot be put on {other} \(model_type {model_type}\); "
    with pytest.raises(ValueError, match=both + f".*{given}"):
        load_with_adapter(AutoModelForCausalLM, other, adapter)
    config = PeftConfig.from_pretrained(adapter)
    config.base_model_name_or_path = other
    config.save_pretrained(adapter)
    for load in (load_merged, load_with_adapter):
        # One line: `.` matches no line break.
        with pytest.raises(ValueError, match=rf"\A{both}.*{named}.*\Z"):
            load(AutoModelForCausalLM, adapter)


def test_an_adapter_on_an_adapter_is_refused(adapter, tmp_path):
    config = PeftConfig.from_pretrained(adapter)
    config.base_model_name_or_path = adapter
    config.save_pretrained(tmp_path / "second")
    with pytest.raises(ValueError, match="its base model .* is itself an adapter"):
        load_merged(AutoModelForCausalLM, str(tmp_path / "second"))


def test_the_seed_decides_the_new_score_head(base, tmp_path):
    heads = []
    for seed in (1, 1, 2):
        start = load_start(
            AutoModelForSequenceClassification,
            ModelConfig(model_name_or_path=base),
            SimpleNamespace(seed=seed, output_dir=str(tmp_path / "run")),
            new_head="score.",
            num_labels=1,
        )
        heads.append(start.model.score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_start_without_its_weights_is_refused_by_name(tmp_path, reward_model, tokenizer):
    # Untied, so that the folder of a model without that head lacks its weights.
    reward_model.config.tie_word_embeddings = False
    reward_model.transformer.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    args = SimpleNamespace(seed=1, output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"hold no weights for lm_head\.weight"):
        load_start(AutoModelForCausalLM, ModelConfig(model_name_or_path=str(tmp_path / "bare")), args)
    # Tied or not, a reward model is none to start from.
    reward_model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match=r"reward: a reward model or critic \(GPTPangu\w+\), not a"):
        load_start(AutoModelForCausalLM, ModelConfig(model_name_or_path=str(tmp_path / "reward")), args)


def test_ppo_refuses_a_language_model_as_reward_model(run_recipe, tmp_path, base):
    with pytest.raises(ValueError, match=r"a language model \(GPTPanguForCausalLM\), not a reward model"):
        run_recipe("ppo", model_name_or_path=base, reward_model=base, output_dir=tmp_path / "run")


def test_ppo_reads_the_card_that_reward_training_left(run_recipe, tmp_path, base, reward_model, tokenizer):
    folder = tmp_path / "reward"
    reward_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = RewardCard.describe(tokenizer, loss_type="pairwise", max_answers=4, score_mean=1.5, score_std=0.25)
    card.save(folder)
    trainer = run_recipe("ppo", model_name_or_path=base, reward_model=folder, output_dir=tmp_path / "out")
    config = trainer.collector.rewards[0].model.config
    assert (config.reward_mean, config.reward_std) == (1.5, 0.25)

    dataclasses.replace(card, vocab_digest="another", pad_token_id=5).save(folder)
    with pytest.raises(ValueError, match=r"it differs in the vocabulary .*, the pad id \(5 there, 6 here\)"):
        run_recipe("ppo", model_name_or_path=base, reward_model=folder, output_dir=tmp_path / "other")


def test_a_broken_line_is_named(run_recipe, tmp_path, base, data):
    lines = data.sft.read_text("utf-8").splitlines()
    lines[2] = lines[2][:-5]
    data.sft.write_text("\n".join(lines), "utf-8")
    with pytest.raises(ValueError, match=r"sft\.jsonl:3"):
        run_recipe("sft", model_name_or_path=base, output_dir=tmp_path / "run")


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_prompt_longer_than_the_positions_of_the_model_is_refused_with_its_row(
    run_recipe, tmp_path, base, data, stage
):
    records = read_jsonl(getattr(data, stage))
    records[2]["prompt"] = "总体来说，还不错。" * 40
    write_jsonl(getattr(data, stage), records, overwrite=True)
    # The default max_length of 1024 is more than the 128 positions.
    with pytest.raises(ValueError, match=r"row 2.*max_length = 128 tokens"):
        run_recipe(stage, model_name_or_path=base, output_dir=tmp_path / "run")


def test_another_run_is_kept_untouched(run_recipe, tmp_path, base):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_text("precious")
    with pytest.raises(FileExistsError, match="run is not empty"):
        run_recipe("sft", model_name_or_path=base, output_dir=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model.safetensors"]
    assert (tmp_path / "run" / "model.safetensors").read_text() == "precious"


def test_an_unknown_key_of_the_yaml_is_refused(run_recipe, tmp_path, base):
    (tmp_path / "sft.yaml").write_text("max_lenght: 64\n")
    with pytest.raises(ValueError, match="max_lenght"):
        run_recipe("sft", config=tmp_path / "sft.yaml", model_name_or_path=base, output_dir=tmp_path / "run")


def test_fine_tuning_without_max_length_follows_end_token_and_template(run_recipe, tmp_path, base):
    (tmp_path / "sft.yaml").write_text("max_length: null\n")
    (tmp_path / "template.jinja").write_text("{{ messages[0].content }}")
    trainer = run_recipe(
        "sft",
        config=tmp_path / "sft.yaml",
        model_name_or_path=base,
        output_dir=tmp_path / "run",
        eos_token="<sep>",
        chat_template_path=tmp_path / "template.jinja",
        max_steps=1,
    )
    sep = trainer.processing_class.convert_tokens_to_ids("<sep>")
    assert len(trainer.train_dataset) == 12
    assert all(row["input_ids"][-1] == sep for row in trainer.train_dataset)
    assert trainer.processing_class.chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("sft", {"model_name_or_path": ""}, "model_name_or_path is required"),
        ("sft", {"model_init_kwargs": '{"dtype": "float16"}'}, "model_init_kwargs has no effect"),
        ("sft", {"chat_template_path": "some/tokenizer"}, r"must be a \.jinja or \.j2 file"),
        ("sft", {"eos_token": "<none>"}, "eos_token '<none>' is not in the tokenizer's vocabulary"),
        ("sft", {"load_in_4bit": True}, "load_in_4bit needs use_peft"),
        ("reward", {"load_in_8bit": True, "use_peft": True}, "load_in_8bit needs bitsandbytes"),
        ("ppo", {"load_in_8bit": True, "reward_model": "x"}, "load_in_8bit needs use_peft"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(
    run_recipe, monkeypatch, tmp_path, base, stage, options, message
):
    monkeypatch.setattr(recipe, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        run_recipe(stage, **{"model_name_or_path": base} | options, output_dir=tmp_path / "run")
