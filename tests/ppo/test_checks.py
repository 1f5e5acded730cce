"""What PPOTrainer refuses, and what it sets before it starts."""

import copy
import signal
from types import SimpleNamespace

import pytest
import torch
from datasets import DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    RobertaConfig,
    RwkvConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from pangu_trl import PPOConfig
from pangu_trl.ppo.checks import check_texts
from pangu_trl.ppo.data_checks import check_best_metric
from pangu_trl.ppo.evaluation import FIGURES
from pangu_trl.ppo.resolve import resolve_checkpointing


@pytest.fixture
def adapter_dir(policy, tmp_path):
    """A saved adapter whose base is on disk, so that from_pretrained on it loads both."""
    policy.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_policy_that_from_pretrained_loaded_from_an_adapter_is_refused(make_trainer, adapter_dir):
    injected = AutoModelForCausalLM.from_pretrained(adapter_dir)
    for layout in ("full", "lora"):
        with pytest.raises(ValueError, match=r"model has an adapter .* Merge it, or load it with PeftModel"):
            make_trainer(layout, models=dict(model=injected))


def test_a_critic_that_holds_an_injected_adapter_is_refused(make_trainer, reward_model, monkeypatch):
    # transformers 5.24 wants a PEFT for it that is not out yet; users may have it.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21")
    injected = copy.deepcopy(reward_model)
    injected.add_adapter(LoraConfig(r=4))
    with pytest.raises(ValueError, match="value_model has an adapter that from_pretrained added"):
        make_trainer(models=dict(value_model=injected))
    with pytest.raises(ValueError, match="reward_model, which the critic is copied from, has an adapter"):
        make_trainer(models=dict(reward_model=injected))
    with pytest.raises(ValueError, match="reward_model is a PeftModel, of which no critic is copied"):
        make_trainer(models=dict(reward_model=get_peft_model(reward_model, LoraConfig(r=4, task_type="SEQ_CLS"))))


def test_a_peft_model_together_with_peft_config_is_refused(make_trainer, policy):
    adapted = get_peft_model(policy, LoraConfig(r=4, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="model is a PeftModel already; pass it without peft_config"):
        make_trainer("lora", models=dict(model=adapted))


def test_models_without_a_trainable_tensor_are_refused(make_trainer, policy, reward_model, adapter_dir):
    frozen_adapter = PeftModel.from_pretrained(copy.deepcopy(policy), adapter_dir)
    with pytest.raises(ValueError, match="model has no trainable tensor.*is_trainable=True"):
        make_trainer(models=dict(model=frozen_adapter))
    frozen_critic = copy.deepcopy(reward_model).requires_grad_(False)
    with pytest.raises(ValueError, match="value_model has no trainable tensor"):
        make_trainer(models=dict(value_model=frozen_critic))


def test_a_critic_that_is_passed_keeps_its_frozen_tensors(make_trainer, reward_model):
    critic = copy.deepcopy(reward_model)
    critic.transformer.requires_grad_(False)
    trainer = make_trainer(models=dict(value_model=critic))
    trainable = [name for name, tensor in trainer.model.value_model.named_parameters() if tensor.requires_grad]
    assert trainable == ["score.weight"]


def test_one_model_in_two_roles_is_refused(make_trainer, policy, reward_model):
    with pytest.raises(ValueError, match="value_model is reward_model"):
        make_trainer(models=dict(reward_model=reward_model, value_model=reward_model))
    with pytest.raises(ValueError, match="ref_model is model"):
        make_trainer(models=dict(model=policy, ref_model=policy))


@pytest.mark.parametrize("role", ["reward_model", "value_model"])
def test_a_pad_token_that_is_not_the_tokenizers_is_refused_and_a_missing_one_is_set(
    make_trainer, reward_model, tokenizer, role
):
    model = copy.deepcopy(reward_model)
    model.config.pad_token_id = None
    trainer = make_trainer(models={"value_model": copy.deepcopy(reward_model), role: model})
    assert trainer.collector.rewards[0].model.config.pad_token_id == tokenizer.pad_token_id
    assert trainer.model.value_model.config.pad_token_id == tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id + 1
    message = rf"{role}.config.pad_token_id is {tokenizer.pad_token_id + 1}, the tokenizer pads with "
    with pytest.raises(ValueError, match=message + str(tokenizer.pad_token_id)):
        make_trainer(models={"value_model": copy.deepcopy(reward_model), role: model})


def test_a_tokenizer_without_eos_is_refused(make_trainer, tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer must have an eos_token"):
        make_trainer()


def test_checkpoints_in_the_middle_of_a_step_are_refused_before_they_take_over_the_signal(make_trainer):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="enable_jit_checkpoint saves in the middle of an optimiser step"):
        make_trainer(enable_jit_checkpoint=True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_several_gpus_in_one_process_are_refused(make_trainer, monkeypatch):
    make_trainer()
    monkeypatch.setattr(PPOConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="several GPUs are visible to one process"):
        make_trainer()


def test_evaluation_without_prompts_is_refused(make_trainer):
    trainer = make_trainer(models=dict(eval_dataset=None))
    with pytest.raises(ValueError, match=r"evaluate\(\) needs prompts; pass eval_dataset"):
        trainer.evaluate()


def test_peft_under_zero3_gets_reentrant_checkpoints_and_nothing_else_changes(policy, tmp_path, caplog):
    adapted = SimpleNamespace(policy=get_peft_model(policy, LoraConfig(r=4, task_type="CAUSAL_LM")))

    def checkpointing(models=adapted, stage=3, **options) -> dict | None:
        args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)
        args.deepspeed_plugin = SimpleNamespace(zero_stage=stage)
        resolve_checkpointing(args, models)
        return args.activation_checkpointing_kwargs

    assert checkpointing(activation_checkpointing=True) == {"use_reentrant": True}
    assert not caplog.records
    asked = {"use_reentrant": False, "every_n_layers": 2}
    forced = checkpointing(activation_checkpointing=True, activation_checkpointing_kwargs=asked)
    assert forced == {"use_reentrant": True, "every_n_layers": 2}
    assert "needs re-entrant gradient checkpoints" in caplog.text
    assert checkpointing() is None
    assert checkpointing(stage=2, activation_checkpointing=True) is None
    full = SimpleNamespace(policy=policy, value_model=policy)
    assert checkpointing(full, activation_checkpointing=True) is None


def test_ddp_does_not_look_for_unused_parameters_unless_told(tmp_path):
    assert PPOConfig(output_dir=str(tmp_path), use_cpu=True).ddp_find_unused_parameters is False
    asked = PPOConfig(output_dir=str(tmp_path), use_cpu=True, ddp_find_unused_parameters=True)
    assert asked.ddp_find_unused_parameters is True


def test_texts_with_reentrant_checkpoints_on_several_ranks_are_refused(tmp_path, monkeypatch):
    reentrant = PPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": True},
    )
    check_texts(reentrant)
    monkeypatch.setattr(PPOConfig, "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match="ptx_dataset cannot be learnt with re-entrant gradient checkpoints"):
        check_texts(reentrant)
    check_texts(PPOConfig(output_dir=str(tmp_path), use_cpu=True, activation_checkpointing=True))


def test_generation_settings_that_cannot_be_saved_are_found_before_the_training(make_trainer, policy):
    policy.generation_config.do_sample = False
    policy.generation_config.temperature = 0.9
    with pytest.raises(ValueError, match="(?s)generation settings of .* contradict each other.*temperature"):
        make_trainer(models=dict(model=policy))
    # An adapter is saved without them.
    make_trainer("lora", models=dict(model=policy))


def test_a_policy_with_an_encoder_is_refused(make_trainer, tokenizer):
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration, an encoder with a decoder"):
        make_trainer("value head", models=dict(model=T5ForConditionalGeneration(config)))


@pytest.mark.parametrize("role", ["model", "value_model", "ref_model", "reward_model"])
def test_what_is_no_model_is_refused(role, make_trainer):
    others = [torch.nn.Linear(4, 1)] if role == "reward_model" else [torch.nn.Linear(4, 1), "some/folder"]
    for other in others:
        with pytest.raises(ValueError, match=f"PPOTrainer: {role} must be a model of transformers or PEFT; got "):
            make_trainer(models={role: other})


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_prompts_that_are_no_dataset_or_empty_are_refused(name, make_trainer, prompts):
    for other in (list(prompts), prompts.to_iterable_dataset(), "prompts.jsonl"):
        with pytest.raises(ValueError, match=rf"PPOTrainer: {name} must be a datasets.Dataset; got \w+\. Make one"):
            make_trainer(models={name: other})
    with pytest.raises(ValueError, match=f"PPOTrainer: {name} is empty"):
        make_trainer(models={name: prompts.select([])})
    with pytest.raises(ValueError, match=r"eval_dataset\['hard'\] is empty"):
        make_trainer(models=dict(eval_dataset={"easy": prompts, "hard": prompts.select([])}))
    with pytest.raises(ValueError, match="train_dataset must be a datasets.Dataset; got DatasetDict"):
        make_trainer(models=dict(train_dataset=DatasetDict(train=prompts)))


def test_columns_that_a_function_needs_are_asked_for_before_anything_is_sampled(make_trainer, prompts, reward_model):
    def by_topic(prompts, completions, topic, *, level=1, **columns):
        return [float(len(name)) for name in topic]

    models = dict(reward_model=by_topic, value_model=reward_model)
    with pytest.raises(ValueError, match="the reward function 'by_topic' needs the columns topic; the records have "):
        make_trainer(models=models)
    with_topic = prompts.add_column("topic", ["sky"] * len(prompts))
    make_trainer(models=models | dict(train_dataset=with_topic, eval_dataset=with_topic))
    with pytest.raises(ValueError, match="the reward function 'by_topic' needs the columns topic"):
        make_trainer(models=models | dict(train_dataset=with_topic))
    with pytest.raises(ValueError, match="the judge needs the columns topic"):
        make_trainer(models=dict(judge=by_topic))


def test_an_optimiser_that_leaves_out_what_learns_is_refused(make_trainer, policy, reward_model):
    sgd = torch.optim.SGD(policy.parameters(), lr=0.1)
    message = r"the optimiser in `optimizers` does not hold \d+ of the \d+ tensors that are to learn, the first is "
    for layout, first in (("full", "value_model."), ("value head", "value_head.weight"), ("lora", "policy.*lora_A")):
        with pytest.raises(ValueError, match=message + first):
            make_trainer(layout, models=dict(model=policy, optimizers=(sgd, None)))
    schedule = torch.optim.lr_scheduler.ConstantLR(sgd)
    with pytest.raises(ValueError, match="the schedule in `optimizers` belongs to another optimiser"):
        make_trainer(models=dict(model=policy, optimizers=(None, schedule)))


def test_an_optimiser_of_all_that_learns_makes_the_steps(make_trainer, policy, reward_model):
    critic = copy.deepcopy(reward_model)
    sgd = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=0.01)
    models = dict(model=policy, value_model=critic, optimizers=(sgd, None))
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    make_trainer(models=models, max_steps=1, num_ppo_epochs=1).train()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in critic.state_dict().items())
    with pytest.raises(ValueError, match="critic_warmup_steps needs the trainer's own optimiser"):
        make_trainer(models=models, critic_warmup_steps=1).train()


def test_the_best_model_is_told_by_a_figure_that_evaluations_have(make_trainer, prompts, tmp_path):
    def check(eval_dataset=prompts, **options):
        steps = dict(eval_strategy="steps", save_strategy="steps", eval_steps=1, save_steps=1)
        check_best_metric(PPOConfig(output_dir=str(tmp_path), use_cpu=True, **steps | options), eval_dataset)

    best = dict(load_best_model_at_end=True)
    for metric in ({}, {"metric_for_best_model": "reward"}, {"metric_for_best_model": "hard_reward/mean"}):
        with pytest.raises(ValueError, match="must be a figure of the evaluation.*reward/mean, kl"):
            check(**best, **metric)
    with pytest.raises(ValueError, match="must be a figure of the evaluation.*got 'loss'"):
        check(lr_scheduler_type="reduce_lr_on_plateau")
    for metric in ("eval_reward/mean", "win_rate"):
        check(**best, metric_for_best_model=metric)
    check({"hard": prompts}, **best, metric_for_best_model="hard_reward/mean")
    found = make_trainer(models=dict(eval_dataset=prompts.select(range(2)))).evaluate()
    assert set(FIGURES) == {name.removeprefix("eval_") for name in found if name.startswith("eval_")}


TINY = dict(hidden_size=16, num_hidden_layers=2)
UNFIT = {
    "the tokens behind it": lambda size: BertConfig(vocab_size=size, num_attention_heads=2, **TINY),
    "padding before it": lambda size: RwkvConfig(vocab_size=size, attention_hidden_size=16, **TINY),
}


@pytest.mark.parametrize("seen", UNFIT)
def test_a_policy_that_reads_more_than_the_text_before_is_refused(seen, make_trainer, tokenizer):
    policy = AutoModelForCausalLM.from_config(UNFIT[seen](len(tokenizer)))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(std=0.3)
    with pytest.raises(ValueError, match=f"log-probabilities of a text hang on {seen}"):
        make_trainer("value head", models=dict(model=policy))


def test_a_policy_that_would_sample_at_other_positions_is_refused(make_trainer, tokenizer):
    config = RobertaConfig(vocab_size=len(tokenizer), num_attention_heads=2, is_decoder=True, pad_token_id=1, **TINY)
    with pytest.raises(ValueError, match="RobertaForCausalLM, which counts positions from 2, and `generate` of transf"):
        make_trainer("value head", models=dict(model=AutoModelForCausalLM.from_config(config)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["value head", "one backbone"])
def test_heads_beside_an_adapter_learn_in_float32_on_a_base_in_16_bits(
    layout, dtype, make_trainer, policy, reward_adapter, caplog
):
    lora = LoraConfig(r=4, task_type="CAUSAL_LM")
    models = dict(model=policy.to(dtype), peft_config=lora)
    trainer = make_trainer(layout, models=models, max_steps=1, learning_rate=1e-6, critic_learning_rate=1e-6)
    learning = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert learning == {torch.float32}
    before = trainer.model.value_head.weight.detach().clone()
    trainer.train()
    assert (trainer.model.value_head.weight != before).float().mean() > 0.9
    assert "rounded away" not in caplog.text


class Noisy(torch.nn.Module):
    """Chance in training mode that no name tells of."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states, **kwargs):
        states = self.layer(states, **kwargs)
        return states * (1 + 0.5 * torch.rand_like(states)) if self.training else states


@pytest.mark.parametrize(("role", "what"), [("model", "policy gives other log-prob"), ("value_model", "critic gives")])
def test_models_that_compute_otherwise_while_they_learn_stop_before_the_first_step(
    role, what, make_trainer, policy, reward_model
):
    model = copy.deepcopy({"model": policy, "value_model": reward_model}[role])
    model.transformer.h[0].mlp = Noisy(model.transformer.h[0].mlp)
    trainer = make_trainer(models={role: model})
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match=rf"the {what}.* while it learns .* Nothing was learnt"):
        trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())
