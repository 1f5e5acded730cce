"""Wrong values are told without the dataclasses, and only those that the dataclasses refuse as well."""

from pathlib import Path

import pytest
from trl import ModelConfig

from pangu_trl import PPOConfig
from pangu_trl.cli import main
from pangu_trl.data.arguments import DataArguments
from pangu_trl.runs.arguments import PPOModelArguments, RunArguments
from pangu_trl.runs.early_values import refuse_wrong_values
from pangu_trl.runs.option_sources import options_of_recipe
from pangu_trl.runs.ranges import check_numbers
from pangu_trl.runs.shipped import shipped
from pangu_trl.runs.start import parse_options

OPTIONS = options_of_recipe(shipped("recipes") / "ppo.py")

# On the command line, and in a file.
WRONG = [
    ("kl_estimator", "k9", "kl_estimator must be one of k1, k2, k3; got 'k9'."),
    ("loss_aggregation", "mean", "loss_aggregation must be one of token, sequence, constant; got 'mean'."),
    ("ptx_kind", "words", "ptx_kind must be one of text, demonstration; got 'words'."),
    ("num_ppo_epochs", "many", "num_ppo_epochs must be a whole number; got 'many'."),
    ("num_ppo_epochs", 2.5, "num_ppo_epochs must be a whole number; got 2.5."),
    ("num_ppo_epochs", "2.5", "num_ppo_epochs must be a whole number; got '2.5'."),
    ("learning_rate", "fast", "learning_rate must be a number; got 'fast'."),
    ("learning_rate", "-1e-5", "learning_rate must be 0 or more; got '-1e-5'."),
    ("critic_learning_rate", -1, "critic_learning_rate must be 0 or more; got -1."),
    ("max_completion_length", 0, "max_completion_length must be 1 or more; got 0."),
    ("temperature", 0.0, "temperature must be greater than 0; got 0.0."),
    ("lam", 1.5, "lam must be between 0 and 1; got 1.5."),
    ("ds3_gather_for_generation", "perhaps", "ds3_gather_for_generation must be true or false; got 'perhaps'."),
    ("log_completions", 7, "log_completions must be true or false; got 7."),
    ("target_kl", "-0.1", "target_kl must be greater than 0; got '-0.1'."),
]
RIGHT = [
    *[("kl_estimator", "k3"), ("num_ppo_epochs", 2), ("num_ppo_epochs", "2"), ("learning_rate", "1e-5")],
    *[
        ("learning_rate", 1),
        ("lam", 1.0),
        ("merge_lora_for_generation", "no"),
        ("log_completions", True),
        ("target_kl", None),
    ],
    *[("reward_weights", [0.5, 0.5]), ("ema_decay", 0.9), ("seed", 0), ("save_steps", 0.5), ("top_k", 0)],
]


def recipe_reads(name, value, folder, in_file):
    """What the recipe makes of the option, with its dataclasses."""
    argv = ["--train_data", "x", "--reward_model", "a", "b", "--output_dir", str(folder / "o"), "--use_cpu", "true"]
    if in_file:
        path = folder / "o.yaml"
        path.write_text(f"{name}: {value if value is not None else 'null'}\n")
        argv += ["--config", str(path)]
    else:
        argv += [f"--{name}", str(value)]
    found = parse_options(DataArguments, PPOModelArguments, RunArguments, PPOConfig, ModelConfig, argv=argv)
    for part in found:
        check_numbers(part)


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_value_is_told_and_the_recipe_would_refuse_it_too(name, value, message, tmp_path):
    with pytest.raises(ValueError) as told:
        refuse_wrong_values([], {name: value}, OPTIONS)
    assert str(told.value) == message
    if isinstance(value, str):
        with pytest.raises(ValueError):
            refuse_wrong_values([f"--{name}", value], {}, OPTIONS)
        with pytest.raises(ValueError):
            refuse_wrong_values([f"--{name}={value}", "--seed", "1"], {}, OPTIONS)
    with pytest.raises(ValueError):
        # A word of a file is held against the choices only where it is used.
        recipe_reads(name, value, tmp_path, in_file=not isinstance(value, str))


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_a_right_value_passes_here_as_there(name, value, tmp_path):
    refuse_wrong_values([], {name: value}, OPTIONS)
    if isinstance(value, str | int | float):
        refuse_wrong_values([f"--{name}", str(value)], {}, OPTIONS)
    recipe_reads(name, value, tmp_path, in_file=True)


def test_what_is_not_certain_passes():
    refuse_wrong_values(
        ["--bf16", "--reward_model", "a", "b", "--no_merge_lora_for_generation"], {"lr_scheduler_type": "x"}, OPTIONS
    )
    # Unknown names are the affair of those who read the names.
    refuse_wrong_values(["--unknown", "1"], {"unknown": 1}, OPTIONS)
    # The command line wins over the file, so that a wrong value there harms nobody.
    refuse_wrong_values(["--seed", "1"], {"seed": "one"}, OPTIONS)


def test_the_command_line_tells_it_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("output_dir: o\nadvantage_estimator: grp\n")
    assert main(["ppo", "--config", "p.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pangu-trl ppo: error: advantage_estimator must be one of gae, grpo, rloo,")
    assert error.count("\n") == 1
