"""Two ranks, of which the first ends while a communication thread gives a tensor back.

    python tests/distributed/endings.py plain|ours FOLDER [--idle RUNS]

Prints the exit status of the first rank. `plain` leaves the end to the interpreter, `ours` to `run_recipe`. A thread
that waits for the interpreter's lock when that begins to finalise is ended, in the middle of C++ that calls abort then.
Here the last function of all holds the lock until the thread waits for it. With `--idle` nothing is arranged but time:
the threads are SCHED_IDLE, on one core with a process that is always busy.
"""

import atexit
import ctypes
import os
import signal
import sys
import time
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

parser = ArgumentParser()
parser.add_argument("how", choices=["plain", "ours"])
parser.add_argument("folder", type=Path, help="an empty one")
parser.add_argument("--idle", type=int, default=0, metavar="RUNS")
args = parser.parse_args()
ENDING = args.folder / "ending"
if not args.idle:
    # In the order of their registration the last: before anything else has registered. No line of Python lies between
    # them and the interpreter's end, and functions of a PyDLL keep its lock.
    holding_the_lock = ctypes.PyDLL(None)
    atexit.register(holding_the_lock.usleep, 1_000_000)
    atexit.register(holding_the_lock.creat, os.fsencode(ENDING), 0o600)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from pangu_trl.runs.process import run_recipe  # noqa: E402

# As DeepSpeed and the wrappers of models hold groups beyond `destroy_process_group`.
kept: list[dist.ProcessGroup] = []


def train(rank: int, store: Path) -> None:
    """Communicates in a group of its own last, and ends the groups as our recipes do."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    kept.append(dist.new_group([0, 1]))
    if args.idle:
        make_communication_idle()
    dist.barrier()
    while not args.idle and rank == 1 and not ENDING.exists():
        time.sleep(0.01)
    work = dist.all_reduce(torch.ones(1000), group=kept[0], async_op=True)
    if args.idle or rank == 1:
        work.wait()
    del work
    dist.destroy_process_group()


def make_communication_idle() -> None:
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("pt_gloo"):
            os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))


def start_rank(rank: int, store: Path) -> int:
    """Forks; the child ends as a program does whose last line was reached."""
    pid = os.fork()
    if pid == 0:
        os.environ["WORLD_SIZE"] = "2"
        if args.idle:
            stay_on_one_core()
        if args.how == "ours":
            run_recipe(partial(train, rank, store))
        train(rank, store)
        sys.exit()
    return pid


def start_busy_process() -> int:
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        stay_on_one_core()
        while os.getppid() == parent:
            pass
        os._exit(0)
    return pid


def stay_on_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


if __name__ == "__main__":
    busy = start_busy_process() if args.idle else None
    for number in range(args.idle or 1):
        ranks = [start_rank(rank, args.folder / str(number)) for rank in range(2)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        print(statuses[0], flush=True)
    if busy is not None:
        os.kill(busy, signal.SIGKILL)
