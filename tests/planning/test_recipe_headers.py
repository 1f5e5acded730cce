"""What the headers of the recipes say: the memory is the plan's, and the command is one that starts."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pangu_trl.planning.launch import read_launch
from pangu_trl.planning.memory import GIB, Plan
from pangu_trl.planning.models import load_config
from pangu_trl.planning.settings import read_settings

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*/*/*.yaml"))
# Those of no size in particular say no memory.
OF_PUBLISHED_SIZES = [path for path in RECIPES if path.parent.parent.name not in ("tiny", "generic")]
MEMORY = re.compile(r"^# On (\d+) GPUs? of (\d+) GiB with (accelerate_configs/\w+\.yaml): ([\d.]+) GiB", flags=re.M)
# What the plan does not count takes a part of the memory too; docs/scaling.md says so.
USABLE = 0.9


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes"))


def header_command(path: Path) -> list[str]:
    """The words of the command in a recipe's header."""
    header = path.read_text("utf-8").partition("\n#     ")[2]
    lines = ["#     " + header.splitlines()[0]]
    for line in header.splitlines()[1:]:
        if not lines[-1].endswith("\\"):
            break
        lines.append(line)
    return shlex.split(" ".join(line.lstrip("# ").rstrip("\\") for line in lines))


def test_every_size_has_every_stage_in_full_and_with_lora():
    found = {name_of(path) for path in RECIPES}
    sizes, methods = ("tiny", "generic", "pangu-350m", "pangu-2.6b", "pangu-13b"), ("full", "lora")
    stages = ("sft", "reward", "ppo", "dpo", "grpo")
    assert found >= {f"{size}/{stage}/{method}.yaml" for size in sizes for stage in stages for method in methods}


@pytest.mark.parametrize("path", OF_PUBLISHED_SIZES, ids=name_of)
def test_the_memory_in_a_header_is_the_plans(path):
    text = path.read_text("utf-8")
    num_gpus, memory, config, peak = MEMORY.search(text).groups()
    settings = read_settings(path)
    found = Plan(settings, read_launch(ROOT / config, int(num_gpus)), load_config(settings.model)).peak() / GIB
    assert f"{found:.1f}" == peak and found <= USABLE * int(memory)
    assert "Not yet run on GPUs." in text.splitlines()[0]


@pytest.mark.parametrize("path", OF_PUBLISHED_SIZES, ids=name_of)
def test_recipe_and_launcher_name_the_same_precision(path):
    """With DeepSpeed the Trainer refuses a launcher's bfloat16 that the options do not ask for."""
    # TRL's own configurations leave it open, which means bfloat16 on a GPU; ours are those of transformers.
    assert read_settings(path)["bf16"] in (None, True)
    assert read_launch(ROOT / MEMORY.search(path.read_text("utf-8"))[3]).bf16


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_command_in_a_header_starts_the_recipe(path):
    words = header_command(path)
    assert words[:2] == ["accelerate", "launch"]
    stage, settings = path.parent.name, yaml.safe_load(path.read_text("utf-8"))
    script = words.index(f"recipes/{stage}.py")
    launcher, options = (
        dict(zip(part[::2], part[1::2], strict=True)) for part in (words[2:script], words[script + 1 :])
    )
    config = ROOT / launcher["--config_file"]
    on_several_machines = {"--main_process_ip", "--main_process_port", "--machine_rank"}
    is_multinode = yaml.safe_load(config.read_text("utf-8"))["num_machines"] > 1
    assert launcher.keys() == {"--config_file"} | (on_several_machines if is_multinode else set())
    expected = {"--config", "--model_name_or_path", "--train_data", "--output_dir"}
    expected |= {"--eval_data"} if settings.get("eval_strategy", "no") != "no" else set()
    expected |= {"--reward_model"} if stage in ("ppo", "grpo") else set()
    assert options.keys() == expected
    assert options["--config"] == f"recipes/{name_of(path)}"
    memory = MEMORY.search(path.read_text("utf-8"))
    if memory is not None:
        assert (f"{memory[3]}", int(memory[1])) == (launcher["--config_file"], read_launch(config).num_devices)
    else:
        assert config.name == "cpu.yaml"
