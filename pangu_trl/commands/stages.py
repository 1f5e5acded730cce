"""`pangu-trl sft|reward|ppo|dpo|grpo`: the recipe of a stage, started by accelerate."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from pangu_trl.runs.early_values import refuse_wrong_values
from pangu_trl.runs.folders import STAGES
from pangu_trl.runs.given_options import read_given_options, read_yaml
from pangu_trl.runs.option_sources import SourceOption, options_of_recipe
from pangu_trl.runs.shipped import accelerate_config, recipe_config, shipped

from .options import note, positive_int

_OF_SEVERAL_MACHINES = ("machine_rank", "main_process_ip", "main_process_port")
# What is taken from the command line before the recipe reads it.
_LAUNCHER_OPTIONS = ("accelerate", "num_processes", *_OF_SEVERAL_MACHINES)


class StageCommand:
    """The command of one stage; what it does not know itself goes to the recipe."""

    def __init__(self, stage: str):
        self.stage = stage
        self.SUMMARY = f"{STAGES[stage]}; starts its recipe through accelerate"
        judge = " --reward_model runs/reward" if stage in ("ppo", "grpo") else ""
        self.EXAMPLE = f"pangu-trl {stage} --config my_{stage}.yaml --accelerate zero3{judge} --learning_rate 1e-5"

    @property
    def script(self) -> Path:
        return shipped("recipes") / f"{self.stage}.py"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--config", metavar="FILE.yaml", help="options of the recipe; those given here win")
        parser.add_argument(
            "--accelerate",
            metavar="NAME|FILE",
            help="accelerate configuration: a file, or the name of one that comes along, such as zero3 (default: what "
            "`accelerate config` wrote, otherwise single_gpu or cpu)",
        )
        parser.add_argument("--num-processes", type=positive_int, metavar="N", help="processes in all, one to a device")
        parser.add_argument("--machine-rank", type=int, metavar="I", help="of several machines this one, from 0")
        parser.add_argument("--main-process-ip", metavar="HOST", help="of several machines the one with rank 0")
        parser.add_argument("--main-process-port", type=positive_int, metavar="PORT", help="a port that is free there")

    def add_recipe_options(self, parser: argparse.ArgumentParser) -> None:
        """For the page of help and for completion; the recipe itself reads them."""
        # The list of all of them would fill a screen.
        parser.usage = f"pangu-trl {self.stage} [--config FILE.yaml] [--accelerate NAME|FILE] [--any_option VALUE ...]"
        groups: dict[str, Any] = {}
        for option in options_of_recipe(self.script):
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(f"options of the recipe: {option.group}")
            groups[option.group].add_argument(
                f"--{option.name}",
                metavar=_metavar(option),
                default=argparse.SUPPRESS,
                help=option.help.replace("%", "%%"),
            )

    def run(self, args: argparse.Namespace, words: list[str]) -> int:
        config = [] if args.config is None else ["--config", recipe_config(args.config)]
        options = options_of_recipe(self.script)
        given = read_given_options([*config, *words], [option.name for option in options], elsewhere=_LAUNCHER_OPTIONS)
        refuse_wrong_values(given.words, given.settings, options)
        configuration = None if args.accelerate is None else accelerate_config(args.accelerate)
        _refuse_several_without_distribution(configuration, args.num_processes)
        launcher = ["--num_processes", str(args.num_processes)] if args.num_processes else []
        for name in _OF_SEVERAL_MACHINES:
            if getattr(args, name) is not None:
                launcher += [f"--{name}", str(getattr(args, name))]
        return _launch(args, configuration, launcher, [str(self.script), *config, *words])


def _metavar(option: SourceOption) -> str:
    kind = option.kind.replace(" | None", "").strip("\"'")
    return kind.upper() if kind.isidentifier() else "VALUE"


def _refuse_several_without_distribution(configuration: Path | None, num_processes: int | None) -> None:
    if configuration is None or (num_processes or 1) == 1:
        return
    if str(read_yaml(configuration).get("distributed_type", "NO")).upper() == "NO":
        raise ValueError(
            f"{configuration}: distributed_type 'NO' starts one process; got --num-processes {num_processes}. Take "
            "another configuration with --accelerate, such as ddp or zero2"
        )


def _launch(args: argparse.Namespace, configuration: Path | None, launcher: list[str], recipe: list[str]) -> int:
    """Starts a recipe as `accelerate launch` does, and ends with the recipe's own exit status.

    The recipe has said in one line what was wrong, so the launcher's traceback is left out.
    """
    from subprocess import CalledProcessError

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if configuration is None:
        configuration = _default_configuration(args)
    for name, value in _quiet_environment(configuration, args.num_processes).items():
        os.environ.setdefault(name, value)
    if configuration is not None:
        launcher = ["--config_file", str(configuration), *launcher]
    # Ctrl-C reaches the recipe, which saves before it ends, and is waited for. Not ignored: it would inherit that.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        launch_command(launch_command_parser().parse_args([*launcher, *recipe]))
    except CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _quiet_environment(configuration: Path | None, num_processes: int | None) -> dict[str, str]:
    """Settings of other libraries without which they write what nobody asked for; whoever sets them otherwise wins."""
    environment = {}
    if not sys.stderr.isatty():
        # In a file every move of a bar is a line.
        environment |= dict.fromkeys(
            ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"), "1"
        )
    settings = {} if configuration is None else read_yaml(configuration)
    if settings.get("use_cpu"):
        # DeepSpeed, which is imported whether it is used or not, would warn that it has found no GPU.
        environment["DS_ACCELERATOR"] = "cpu"
        # The launcher takes as many, and warns that nobody has said so.
        processes = num_processes or settings.get("num_processes") or 1
        cores = (psutil.cpu_count(logical=False) or 1) * (settings.get("num_machines") or 1)
        environment["OMP_NUM_THREADS"] = str(max(cores // processes, 1))
    return environment


def _default_configuration(args: argparse.Namespace) -> Path | None:
    """The configuration to take where none is named; None where the user has one of their own."""
    import torch
    from accelerate.commands.config.config_args import default_config_file

    if os.path.isfile(default_config_file):
        return None
    several = (args.num_processes or 1) > 1
    if not torch.accelerator.is_available():
        if several:
            raise ValueError(
                "--num-processes without an accelerator: name a configuration for several CPU processes with "
                "--accelerate, such as zero3_cpu"
            )
        name = "cpu"
    else:
        name = "ddp" if several else "single_gpu"
    note(args, f"accelerate configuration: {name}, as none is named and `accelerate config` wrote none")
    return accelerate_config(name)


COMMANDS = {stage: StageCommand(stage) for stage in STAGES}
