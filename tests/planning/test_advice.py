"""What `pangu-trl plan` says to change where a run does not fit."""

from dataclasses import replace
from pathlib import Path

from pangu_trl.planning.advice import changes_to_fit, fits
from pangu_trl.planning.launch import Launch
from pangu_trl.planning.memory import GIB, Plan
from pangu_trl.planning.models import load_config
from pangu_trl.planning.settings import read_settings

ROOT = Path(__file__).parent.parent.parent


def test_advice_ends_with_a_run_that_fits(plan):
    found = plan("sft", Launch(1, "none", bf16=True))
    assert not fits(found, 24 * GIB)
    changes, better = changes_to_fit(found, 24 * GIB)
    assert changes and fits(better, 24 * GIB)
    assert better.settings["gradient_accumulation_steps"] * better.settings["per_device_train_batch_size"] == 8
    assert changes_to_fit(replace(found, launch=Launch(64, "zero3", bf16=True)), 80 * GIB)[0] == []


def test_advice_names_one_configuration_and_each_option_once(plan):
    found = plan("ppo", Launch(8, "ddp", bf16=True), "use_peft: true\nper_device_train_batch_size: 4")
    changes, _ = changes_to_fit(found, 9 * GIB)
    assert len([change for change in changes if "accelerate_configs" in change]) == 1
    names = [change.split(":")[0] for change in changes]
    assert len(set(names)) == len(names)


def test_advice_gives_every_change_that_is_needed_and_no_other():
    settings = read_settings(ROOT / "recipes" / "pangu-13b" / "ppo" / "full.yaml")
    found = Plan(settings, Launch(8, "zero3", bf16=True), load_config("pangu-13b"))
    changes, better = changes_to_fit(found, 80 * GIB)
    assert fits(better, 80 * GIB)
    # LoRA makes room that sampling fewer answers at a time, which is tried first, does not.
    assert changes == [
        "use_peft: true (LoRA, at a learning rate for adapters)",
        "merge_lora_for_generation: false (slower)",
    ]


def test_advice_takes_a_cheaper_way_to_generate_before_another_layout(plan):

    found = plan("ppo", Launch(1, "none", bf16=True), "use_peft: true\ndtype: bfloat16\ngradient_checkpointing: true")
    changes, better = changes_to_fit(found, found.peak() - 1)
    assert changes == ["merge_lora_for_generation: false (slower)"]
    assert better.settings["share_backbone"] == "none"
