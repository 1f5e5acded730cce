"""SIGKILL at any moment, as often as one likes: the run that goes on ends with the same bits.

    make test-kills                      # 100 kills
    make test-kills KILLS=5 SEED=17      # five, and those of another run again

Most runs are forked from this process, which has the imports done; a fifth is launched as a user does it. The seed is
printed, and a moment is counted rather than timed: the same seed kills at the same moments.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  (imported once, for all that is forked)
import moments
import pytest
import torch
from launching import ROOT, config_for_cpu, launch_command, start, wait
from safetensors.torch import load_file

from pangu_trl.runs.checkpoints import last_whole_checkpoint

# Every run has a limit of its own, wide enough for DeepSpeed's first build on a busy machine.
SECONDS_OF_A_RUN = 1200
pytestmark = [pytest.mark.kills, pytest.mark.launches, pytest.mark.timeout(0)]

KILLS = int(os.environ.get("KILLS", "100"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 31))
STEPS = dict(max_steps=4, save_steps=1, save_total_limit=2, optim="adamw_torch", learning_rate=1e-3)
# What `accelerate launch` tells its processes of ZeRO-3.
ZERO_3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_MIXED_PRECISION": "no",
}


@dataclass(frozen=True)
class Case:
    """A stage, and how it is held."""

    stage: str
    engine: str

    @property
    def num_processes(self) -> int:
        return 1 if self.engine == "cpu" else 2


CASES = [
    Case(stage, engine)
    for engine in ("cpu", "ddp", "zero3")
    for stage in ("ppo", "reward", "sft")
    # The reward model and SFT are the same engine's work; ZeRO-3 is slow to start.
    if (stage, engine) != ("reward", "zero3")
]


class Runner:
    """Runs cases, each in a folder of its own."""

    def __init__(self, workspace: Path, stage_options: Any) -> None:
        self.workspace, self.stage_options = workspace, stage_options
        self._whole: dict[tuple[Case, bool], Path] = {}

    def whole(self, case: Case, launched: bool) -> Path:
        """The folder of an uninterrupted run, with its counts in `moments`; each is made once."""
        if (case, launched) not in self._whole:
            folder = self.workspace / f"whole-{case.stage}-{case.engine}-{'launched' if launched else 'forked'}"
            counts = folder.with_name(f"{folder.name}-moments")
            counts.mkdir()
            assert self.run(case, folder, launched, MOMENTS=str(counts)) == 0, said(folder)
            self._whole[case, launched] = folder
        return self._whole[case, launched]

    def run(self, case: Case, folder: Path, launched: bool, resume: bool = False, **environment: str) -> int:
        """Runs a case to its end, or to its kill; the exit status, 0 if all is well."""
        options = self.stage_options(case.stage, folder, case.num_processes, **STEPS)
        if resume:
            options["resume_from_checkpoint"] = "true"
        log = folder.with_name(f"{folder.name}.log")
        if launched:
            command = launch_command(
                config_for_cpu(case.engine, self.workspace), case.stage, options, takes_notes=False
            )
            script = command.index(str(ROOT / "recipes" / f"{case.stage}.py"))
            command.insert(script, moments.__file__)
            return wait(start(command, log, **environment), timeout=SECONDS_OF_A_RUN)[0]
        if case.engine == "zero3":
            environment |= ZERO_3
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return fork(case.stage, words, case.num_processes, log, environment)


def fork(stage: str, words: Sequence[str], num_processes: int, log: Path, environment: dict[str, str]) -> int:
    """Runs a recipe in forks of this process; when one dies the others are killed, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(num_processes):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.environ.update(environment, DS_ACCELERATOR="cpu")
                if num_processes > 1:
                    os.environ.pop("ACCELERATE_USE_CPU", None)
                    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_processes))
                    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_WORLD_SIZE="2")
                stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(stream, 1)
                os.dup2(stream, 2)
                # In place of pytest's.
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                sys.argv = ["moments.py", str(ROOT / "recipes" / f"{stage}.py"), *words]
                moments.main()
                code = 0
            except BaseException:  # noqa: B036  (a child must not go on with the tests)
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            finally:
                os._exit(code)
        ranks.append(pid)
    codes: list[int] = []
    deadline = time.monotonic() + SECONDS_OF_A_RUN
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG) if ranks else (0, 0)
        if pid in ranks:
            ranks.remove(pid)
            codes.append(os.waitstatus_to_exitcode(status))
        if codes and codes[-1] != 0 or time.monotonic() > deadline:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return codes[-1] if codes else 1
        time.sleep(0.02)
    return 0


def cpu_seconds() -> float:
    """What this process and those that it has waited for have computed for so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def said(folder: Path) -> str:
    return folder.with_name(f"{folder.name}.log").read_text(errors="replace")[-4000:]


@pytest.fixture(scope="module")
def runner(workspace, stage_options) -> Runner:
    return Runner(workspace, stage_options)


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_with_the_same_bits(runner, number):
    chance = random.Random(f"{SEED}:{number}")
    before = cpu_seconds()
    case = CASES[number % len(CASES)]
    # In a fork the frozen engine of PPO's reward model comes up empty.
    launched = number % 5 == 4 or case == Case("ppo", "zero3")
    whole = runner.whole(case, launched)
    rank = chance.randrange(case.num_processes)
    counts = json.loads((whole.with_name(f"{whole.name}-moments") / f"{rank}.json").read_text())
    # Every fourth in the final save: the first rank's, since it is the one that writes.
    in_final_save = number % 4 == 3 and rank == 0
    moment = chance.randint(counts["final_save"] + 1 if in_final_save else 1, counts["all"])
    print(f"SEED={SEED}, kill {number}: {case}, launched {launched}, rank {rank} at {moment} of {counts}")
    folder = runner.workspace / f"killed-{number}"
    assert runner.run(case, folder, launched, KILL_AT=f"{rank}:{moment}") != 0, "it outlived its kill"
    try:
        last_whole_checkpoint(folder)
        resumes = True
    except FileNotFoundError:
        shutil.rmtree(folder)
        resumes = False
    assert runner.run(case, folder, launched, resume=resumes) == 0, said(folder)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert files
    for name in files:
        ended, expected = load_file(folder / name), load_file(whole / name)
        assert ended.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(ended[key], tensor), (name, key)
    print(f"{cpu_seconds() - before:.0f} s of CPU time, with the uninterrupted run if this is the first of its kind")
    shutil.rmtree(folder)
