"""Two nodes on one machine: two launchers with one process each, that meet over TCP and share a model with ZeRO-3."""

import json
import socket
from pathlib import Path

import pytest
from launching import config_for_cpu, launch_command, logged, start, wait

pytestmark = [pytest.mark.launches, pytest.mark.slow]

ADDRESS = "127.0.0.1"


@pytest.fixture
def port() -> int:
    """A free port of the first node."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def test_two_nodes_train_one_sharded_model_as_one_process_does(workspace, stage_options, one_process, port):
    folder = workspace / "nodes-sft"
    # A file of each node's own, as on two machines.
    launchers = []
    for rank in (0, 1):
        (workspace / f"node-{rank}").mkdir()
        config = config_for_cpu("zero3_multinode", workspace / f"node-{rank}")
        words = ["--machine_rank", str(rank), "--main_process_ip", ADDRESS, "--main_process_port", str(port)]
        command = launch_command(config, "sft", stage_options("sft", folder), words)
        launchers.append(start(command, Path(f"{folder}-{rank}.log")))
    assert wait(*launchers) == [0, 0], "\n".join(Path(f"{folder}-{rank}.log").read_text()[-3000:] for rank in (0, 1))
    for rank in (0, 1):
        notes = json.loads((folder / f"rank-{rank}.json").read_text())
        assert notes["num_processes"] == 2 and notes["local_process_index"] == 0
        assert notes["zero3_parts"] == notes["parameters"]
    assert logged(folder, "loss") == pytest.approx(logged(one_process("sft"), "loss"), rel=1e-5, abs=1e-5)
