"""A rank that dies or hangs, in every phase under every engine: the run ends, and its log says which rank was where."""

import re
import time

import pytest
from launching import config_for_cpu, launch_command, start, stop, wait

pytestmark = [pytest.mark.launches, pytest.mark.slow, pytest.mark.timeout(1800)]

PHASES = ["rollout", "scoring", "learning", "saving", "evaluation"]
ENGINES = ["ddp", "zero3", "fsdp2"]
REPORT = re.compile(r"rank (\d) of 2: no progress for \d+ s in phase (\w+) of step (\d+); it is in (\S+)")


@pytest.fixture
def run(workspace, stage_options, tmp_path):
    """Starts PPO, with a checkpoint and an evaluation after every second step and a fault in the second or a later."""

    def begin(engine: str, fault: str, **changes):
        options = stage_options(
            "ppo",
            tmp_path / "run",
            max_steps=10,
            save_steps=2,
            num_ppo_epochs=1,
            num_rollout_batches=1,
            eval_strategy="steps",
            eval_steps=2,
            eval_data=workspace / "ppo.jsonl",
            **changes,
        )
        environment = {"FAULT_IN_PHASE": fault, "FAULT_FOLDER": str(tmp_path)}
        said = tmp_path / "said.log"
        return start(launch_command(config_for_cpu(engine, workspace), "ppo", options), said, **environment), said

    return begin


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rank_that_hangs_is_named_in_every_phase_and_the_run_ends(run, engine):
    # One run hangs in every phase until both ranks have said so, and then for good.
    process, said = run(engine, f"hang:1:{','.join(PHASES)}", ddp_timeout=90)
    deadline = time.monotonic() + 1500
    try:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(1)
        text = said.read_text(errors="replace")
        assert process.poll() not in (None, 0), text[-4000:]
    finally:
        stop(process)
    reports = REPORT.findall(text)
    of_the_one_that_hangs = [phase for rank, phase, *_ in reports if rank == "1"]
    assert set(of_the_one_that_hangs) == set(PHASES)
    # It is in our list, and the one that waits in a collective or where that begins.
    assert all(place.startswith("append") for rank, _, _, place in reports if rank == "1")
    assert not any(place.startswith("append") for rank, _, _, place in reports if rank == "0")
    # The one that waits gives up first, after ddp_timeout.
    assert re.search(r"rank 0 of 2 was in phase \w+ of step \d", text), text[-4000:]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_rank_that_dies_says_in_which_phase_and_the_run_ends(run, engine, phase):
    process, said = run(engine, f"die:1:{phase}")
    assert wait(process, timeout=1200) != [0]
    text = said.read_text(errors="replace")
    expected = rf"out of memory, let us say\n.*rank 1 of 2 was in phase {phase} of step [23]"
    assert re.search(expected, text), text[-4000:]
