"""What the Trainer takes and PPO would not look at is refused by name; what TRL's PPOTrainer had works."""

import dataclasses

import pytest
import torch
from transformers import TrainingArguments

from pangu_trl import PPOConfig
from pangu_trl.ppo.unused_options import UNUSED, UNUSED_ARGUMENTS

OTHER = {
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "auto_find_batch_size": True,
    "torch_compile": True,
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "optim_target_modules": ["q_proj"],
    "average_tokens_across_devices": False,
    "include_num_input_tokens_seen": "all",
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "dataloader_in_order": False,
    "dataloader_multiprocessing_context": "spawn",
    "ignore_data_skip": True,
    "label_names": ["labels"],
    "prediction_loss_only": True,
    "include_for_metrics": ["inputs"],
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 2,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
}


def test_every_unused_option_has_a_case_and_is_one_of_transformers():
    assert OTHER.keys() == UNUSED.keys()
    assert UNUSED.keys() <= {field.name for field in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize("name", OTHER)
def test_an_option_that_ppo_would_ignore_is_refused_by_name(name, make_trainer):
    # Options that switch one another on name either of the two.
    expected = "torch_compile" if name.startswith("torch_compile") else name
    extra = {"batch_eval_metrics": {}, "use_liger_kernel": {}}.get(name, {})
    with pytest.raises((ValueError, ImportError), match=f"PPOTrainer: {expected}"):
        make_trainer(**{name: OTHER[name]}, **extra)


@pytest.mark.parametrize("name", UNUSED_ARGUMENTS)
def test_a_hook_that_ppo_would_ignore_is_refused_by_name(name, make_trainer):
    with pytest.raises(ValueError, match=f"PPOTrainer: {name} has no effect here"):
        make_trainer(models={name: lambda *args: None})


def test_an_optimiser_class_is_obeyed_but_not_its_learning_rate(make_trainer):
    class OtherSGD(torch.optim.SGD):
        pass

    trainer = make_trainer(models={"optimizer_cls_and_kwargs": (OtherSGD, {"momentum": 0.5})})
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is OtherSGD
    assert {group["momentum"] for group in optimizer.param_groups} == {0.5}
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 3e-3}
    with pytest.raises(ValueError, match="must not hold 'lr'.*set learning_rate and critic_learning_rate. Got 0.1"):
        make_trainer(models={"optimizer_cls_and_kwargs": (OtherSGD, {"lr": 0.1})})


def test_completions_are_printed_as_trl_did_and_nothing_is_predicted(make_trainer, prompts, capsys):
    trainer = make_trainer(max_steps=1)
    trainer.generate_completions(sampling=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if " => " in line]
    assert [line.partition(" | ")[2].partition(" => ")[0] for line in lines] == prompts["prompt"][:4]
    with pytest.raises(ValueError, match=r"predict\(\) has no meaning for answers; evaluate\(prompts\)"):
        trainer.predict(prompts)


def test_the_defaults_use_nothing_of_it(tmp_path):
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    for name, (default, _) in UNUSED.items():
        assert getattr(args, name) in (default, None, False)
