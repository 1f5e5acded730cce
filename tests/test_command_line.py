"""The command line as a whole: what every command has, what is said about a wrong word, and how a stage is started."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from subprocess import CalledProcessError

import accelerate.commands.launch
import pytest
import yaml

from pangu_trl import __version__, cli
from pangu_trl.runs import process
from pangu_trl.runs.folders import STAGES
from pangu_trl.runs.option_sources import options_of_recipe
from pangu_trl.runs.shipped import accelerate_config, recipe_config, shipped

ROOT = Path(__file__).parent.parent
QUIET = (
    *("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"),
    *("DS_ACCELERATOR", "OMP_NUM_THREADS"),
)


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, *words: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command line."""
    try:
        code = cli.main(words)
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example_that_its_own_options_read(name, capsys):
    code, out, _ = said(capsys, name, "--help")
    assert code == 0
    example = out[out.index("example:") :].split()[1:]
    assert example[:2] == ["pangu-trl", name]
    words = [word for word in example[2:] if not word.startswith(("--learning_rate", "1e-", "--reward_model"))]
    words = words[: words.index(">")] if ">" in words else words
    command = cli._command(name)
    parser = cli._Parser()
    command.add_options(parser)
    parser.parse_known_args(words)


def test_the_version_is_the_package_s(capsys):
    assert said(capsys, "--version")[:2] == (0, f"pangu-trl {__version__}\n")


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "pangu_trl", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"pangu-trl {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pangu-trl: error: the following arguments are required: COMMAND"),
        (["sampel"], "pangu-trl: error: there is no command sampel (did you mean sample?)"),
        (["xyzzy"], "pangu-trl: error: there is no command xyzzy. See"),
        (["--verson"], "pangu-trl: error: "),
        (["sample", "--modle", "m"], "pangu-trl sample: error: there is no option --modle (did you mean --model?)"),
        # Abbreviations are no options, here as in the recipes.
        (["sample", "--max-new", "3"], "there is no option --max-new (did you mean --max-new-tokens?)"),
        (["score", "a.jsonl", "b.jsonl", "--judge", "j", "--output", "o"], "unrecognized arguments: b.jsonl"),
        (["sft", "--learning_rat", "1"], "pangu-trl sft: error: there is no option learning_rat (did you mean"),
        # What accelerate and the command itself take is meant as often as what the recipe takes.
        (["sft", "--confg", "my.yaml"], "there is no option confg (did you mean config?)"),
        (["sft", "--acelerate", "zero3"], "there is no option acelerate (did you mean accelerate?)"),
        (["sft", "--num_proceses", "2"], "there is no option num_proceses (did you mean num_processes?)"),
        (["sft", "--learning_rate", "1"], "the folder that the run writes into. `pangu-trl init`"),
        (["ppo", "--config", "absent.yaml"], "absent.yaml"),
        (["ppo", "--output_dir", "o", "--accelerate", "zero9"], "zero9: no accelerate configuration; give a file, or"),
        (["sft", "--output_dir", "o", "--accelerate", "cpu", "--num-processes", "2"], "distributed_type 'NO'"),
        (["sft", "--output_dir", "o", "--num-processes", "none"], "--num-processes: must be a whole number"),
    ],
)
def test_a_wrong_word_is_told_in_one_line(words, message, capsys):
    code, out, error = said(capsys, *words)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("stage", STAGES)
def test_the_options_read_from_sources_are_those_of_the_dataclasses(stage):
    from trl import DPOConfig, GRPOConfig, ModelConfig, SFTConfig

    from pangu_trl import KWiseRewardConfig, PPOConfig
    from pangu_trl.data.arguments import DataArguments
    from pangu_trl.runs.arguments import OWN_OPTIONS, RunArguments

    config = {"sft": SFTConfig, "reward": KWiseRewardConfig, "ppo": PPOConfig, "dpo": DPOConfig, "grpo": GRPOConfig}
    types = [DataArguments, *OWN_OPTIONS.get(stage, ()), RunArguments, config[stage], ModelConfig]
    declared = {option.name: option for kind in types for option in fields(kind) if option.init}
    found = {option.name: option for option in options_of_recipe(shipped("recipes") / f"{stage}.py")}
    assert found.keys() == declared.keys()
    for name, option in found.items():
        assert option.help == " ".join(declared[name].metadata["help"].split()), name


@pytest.fixture
def launched(monkeypatch) -> list:
    """What `accelerate launch` was asked to start, in place of its start."""
    seen: list = []
    # What is set already stays as it is, and does not pass to other tests.
    for name in QUIET:
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setattr(accelerate.commands.launch, "launch_command", seen.append)
    return seen


def test_a_stage_starts_its_recipe_with_everything_that_is_not_the_launcher_s(launched, capsys):
    Path("my.yaml").write_text("output_dir: o\nlearning_rate: 1.0e-5\n")
    words = ["--config", "my.yaml", "--accelerate", "zero3", "--num-processes", "2", "--seed", "7", "--bf16"]
    assert said(capsys, "sft", *words)[0] == 0
    (arguments,) = launched
    assert Path(arguments.config_file) == ROOT / "accelerate_configs" / "zero3.yaml"
    assert arguments.num_processes == 2
    assert Path(arguments.training_script) == ROOT / "recipes" / "sft.py"
    assert arguments.training_script_args == ["--config", "my.yaml", "--seed", "7", "--bf16"]


def test_other_libraries_are_told_to_be_quiet_where_nobody_watches(launched, monkeypatch, capsys):
    for name in QUIET:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 12 if logical else 6)
    assert said(capsys, "sft", "--output_dir", "o", "--accelerate", "cpu") == (0, "", "")
    assert [os.environ.pop(name) for name in QUIET] == ["0", "1", "1", "cpu", "6"]
    # Threads as accelerate shares them out, which would otherwise say in four lines that nobody had said so.
    assert said(capsys, "sft", "--output_dir", "o", "--accelerate", "zero3_cpu", "--num-processes", "4")[0] == 0
    assert [os.environ.pop(name) for name in QUIET] == ["1", "1", "1", "cpu", "1"]
    # On a GPU DeepSpeed finds out by itself, and a terminal has its bars.
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert said(capsys, "sft", "--output_dir", "o", "--accelerate", "zero3")[0] == 0
    assert not [name for name in QUIET if name in os.environ]


def test_a_stage_ends_with_the_exit_status_of_its_recipe(launched, monkeypatch, capsys):
    # As subprocess tells it: 2 after an error, the signal's number below zero after a signal.
    for status, expected in ((2, 2), (143, 143), (-9, 137)):

        def fail(_, status=status):
            raise CalledProcessError(status, ["python", "sft.py"])

        monkeypatch.setattr(accelerate.commands.launch, "launch_command", fail)
        assert said(capsys, "sft", "--output_dir", "o", "--accelerate", "cpu") == (expected, "", "")


@pytest.mark.parametrize(
    "program, said",
    [
        (("/usr/bin/pangu-trl",), "pangu-trl"),
        (("-m", "pangu_trl"), "python3 -m pangu_trl"),
        (("-P", "-m", "pangu_trl"), "python3 -P -m pangu_trl"),
    ],
)
def test_a_run_is_told_to_go_on_with_the_command_that_was_typed(monkeypatch, program, said):
    typed = ["/usr/bin/python3", *program, "sft", "--config", "my sft.yaml"]
    monkeypatch.setattr(process, "_words_of", lambda _: [*typed, "--resume_from_checkpoint", "true"])
    monkeypatch.setattr(process, "is_launched", lambda: True)
    assert process.launch_command() == f"{said} sft --config 'my sft.yaml'"


def test_an_accelerate_configuration_is_a_file_before_it_is_a_name():
    assert accelerate_config("cpu") == shipped("accelerate_configs") / "cpu.yaml"
    Path("cpu").write_text("distributed_type: 'NO'\n")
    assert accelerate_config("cpu") == Path("cpu")


def test_a_recipe_of_the_package_is_found_from_any_folder(launched, capsys):
    path = "recipes/pangu-2.6b/ppo/deepspeed_chat.yaml"
    own = str(ROOT / path)
    assert said(capsys, "ppo", "--config", path, "--accelerate", "cpu", "--output_dir", "o")[0] == 0
    (arguments,) = launched
    assert arguments.training_script_args == ["--config", own, "--output_dir", "o"]
    # A file of one's own comes first, and what is nowhere keeps the name that was given.
    assert recipe_config("recipes/absent.yaml") == "recipes/absent.yaml"
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text("seed: 1\n")
    assert recipe_config(path) == path


@pytest.mark.parametrize("stage", STAGES)
def test_init_writes_a_file_that_the_recipe_reads_and_never_a_second_time(stage, capsys):
    judge = ["--reward-model", "runs/reward"] if stage in ("ppo", "grpo") else []
    Path("d.jsonl").touch()
    words = ["init", "新", "--stage", stage, "--model", "runs/sft", "--data", "d.jsonl", "--method", "lora", *judge]
    code, out, _ = said(capsys, *words)
    assert code == 0
    assert out == f"新/{stage}.yaml: written. Next:\n  pangu-trl {stage} --config 新/{stage}.yaml\n"
    text = Path(f"新/{stage}.yaml").read_text("utf-8")
    settings = yaml.safe_load(text)
    recipe = yaml.safe_load((ROOT / "recipes" / "generic" / stage / "lora.yaml").read_text("utf-8"))
    # Nothing is held out here.
    recipe = {name: value for name, value in recipe.items() if not name.startswith("eval_")}
    assert settings == recipe | {
        "model_name_or_path": "runs/sft",
        "train_data": "d.jsonl",
        "output_dir": f"新/{stage}",
        **({"reward_model": "runs/reward"} if judge else {}),
    }
    known = {option.name: option.help for option in options_of_recipe(shipped("recipes") / f"{stage}.py")}
    for name in settings:
        comment = text[: text.index(f"\n{name}:")].split("\n\n")[-1]
        words_of_comment = " ".join(line.removeprefix("#").strip() for line in comment.splitlines())
        assert words_of_comment == known[name].replace("%%", "%")
    assert "%%" not in text
    code, _, error = said(capsys, *words)
    assert (code, "exists already" in error) == (2, True)
    assert Path(f"新/{stage}.yaml").read_text("utf-8") == text


def test_init_with_held_out_data_evaluates_before_and_after(capsys):
    for name in ("d.jsonl", "e.jsonl"):
        Path(name).touch()
    words = ["init", "run", "--stage", "sft", "--model", "m", "--data", "d.jsonl", "--eval-data", "e.jsonl"]
    assert said(capsys, *words)[0] == 0
    settings = yaml.safe_load(Path("run/sft.yaml").read_text("utf-8"))
    assert (settings["eval_data"], settings["eval_on_start"], settings["eval_strategy"]) == ("e.jsonl", True, "epoch")


def test_init_leaves_a_place_for_what_it_was_not_told(capsys):
    _, out, _ = said(capsys, "init", "run", "--stage", "ppo", "--model", "m")
    assert "fill in train_data and reward_model" in out
    assert "\n# train_data:\n" in Path("run/ppo.yaml").read_text()
    code, _, error = said(capsys, "init", "run", "--stage", "sft", "--model", "m", "--reward-model", "r")
    assert (code, "--reward-model belongs to the stages ppo and grpo" in error) == (2, True)


@pytest.mark.parametrize(
    ("option", "name", "hint"),
    [
        ("--data", "tran.jsonl", " (did you mean train.jsonl?)"),
        ("--data", "nosuch.jsonl", ""),
        ("--data", "card.md", ""),
        ("--data", "./folder", ""),
        ("--eval-data", "sets/heldout.parquet", " (did you mean sets/held-out.parquet?)"),
        ("--model", "models/sft/bse", " (did you mean models/sft/base?)"),
        ("--model", "model/sft/base", " (did you mean models/sft/base?)"),
        ("--model", "~/nowhere-at-all", ""),
        ("--reward-model", "../absent", ""),
        ("--reward-model", "jugde.py:score", " (did you mean judge.py?)"),
    ],
)
def test_init_refuses_a_path_that_leads_nowhere_before_it_writes(option, name, hint, capsys):
    for path in ("train.jsonl", "sets/held-out.parquet", "models/sft/base/config.json", "judge.py"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    others = {"--model": "user/name", "--data": "train.jsonl", "--reward-model": "judge.py:score"}
    words = [word for pair in (others | {option: name}).items() for word in pair]
    code, out, error = said(capsys, "init", "run", "--stage", "ppo", *words)
    assert (code, out, Path("run").exists()) == (2, "", False)
    assert f"error: {option} {name}: there is no such file or folder (looked for " in error
    assert error.endswith(f"){hint}; nothing is written\n")


@pytest.mark.parametrize(
    "judge", ["user/name", "judge.py:score", "package.module:score", "http://localhost:8000/score"]
)
def test_init_takes_hub_ids_functions_and_services(judge, capsys):
    Path("judge.py").touch()
    words = ["--model", "name", "--data", "user/name@v1.0", "--eval-data", "name", "--reward-model", judge]
    assert said(capsys, "init", "run", "--stage", "ppo", *words)[0] == 0


def test_env_tells_versions_and_nothing_private(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    _, out, _ = said(capsys, "env", "--json")
    facts = json.loads(out)
    import torch

    assert facts["torch"] == torch.__version__
    assert facts["pangu_trl"] == __version__
    assert facts["OMP_NUM_THREADS"] == "3"
    import platform

    assert "secret" not in out and str(Path.home()) not in out and sys.prefix not in out
    assert platform.node() not in out
    assert said(capsys, "env")[1].startswith("pangu_trl ")


def test_a_plan_knows_a_recipe_of_any_name_when_it_is_told_the_stage(capsys):
    Path("my_ppo.yaml").write_text("model_name_or_path: tiny\nuse_peft: true\n")
    code, _, error = said(capsys, "plan", "--config", "my_ppo.yaml", "--accelerate", "cpu")
    assert (code, "say its stage with --stage" in error) == (2, True)
    code, out, _ = said(capsys, "plan", "--config", "my_ppo.yaml", "--accelerate", "cpu", "--stage", "ppo")
    assert code == 0
    assert "GiB" in out


def test_completion_knows_commands_and_the_options_of_recipes(capsys):
    code, out, _ = said(capsys, "completion", "bash")
    assert code == 0
    assert "score-sft" in out and "--critic_learning_rate" in out and "--machine-rank" in out
    assert subprocess.run(["bash", "-n"], input=out, text=True).returncode == 0


def test_a_closed_pipe_is_silent():
    program = [sys.executable, "-c", "from pangu_trl.cli import main; import sys; sys.exit(main(['env']))"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_figures_are_one_json_object_where_that_is_asked_for(capsys):
    Path("scored.jsonl").write_text('{"prompt": "p", "responses": ["a", "bb"], "scores": [1, 2]}\n')
    Path("sft.jsonl").write_text('{"prompt": "p", "completion": "abc"}\n')
    Path("judge.py").write_text(
        "def length(prompts, completions, **columns):\n    return [float(len(text)) for text in completions]\n"
    )
    figures = json.loads(said(capsys, "evaluate", "scored.jsonl", "--json")[1])
    assert (figures["score/mean"], figures["score/best_of_k"]) == (1.5, 2)
    figures = json.loads(said(capsys, "best-of-n", "scored.jsonl", "--output", "best.jsonl", "--json")[1])
    assert figures == {"prompts": 1, "score/mean_of_best": 2, "score/mean_of_all": 1.5}
    words = ["score-sft", "sft.jsonl", "--judge", "judge.py:length", "--output", "o.jsonl", "--json"]
    assert json.loads(said(capsys, *words)[1]) == {"demonstrations": 1, "score/mean": 3}
    plan = ["plan", "--config", "sft.yaml", "--model", "tiny", "--accelerate", "cpu"]
    Path("sft.yaml").write_text("max_length: 8\n")
    figures = json.loads(said(capsys, *plan, "--json")[1])
    assert figures["fits"] is True
    assert f"{figures['peak_bytes'] / 2**30:.3f}" in said(capsys, *plan)[1]


@pytest.mark.parametrize("words", [["--help"], ["ppo", "--help"], ["sampel"], ["sft", "--learning_rat", "1"], ["env"]])
def test_no_colour_where_none_is_wanted(words, monkeypatch, capsys):
    """NO_COLOR (no-color.org) wins over what asks for colours, which newer versions of argparse follow."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, error = said(capsys, *words)
    assert out + error
    assert "\x1b" not in out + error
