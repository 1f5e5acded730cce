"""Counts the moments of a recipe's training, and kills it at one of them: the same one whenever that is repeated.

    accelerate launch ... tests/distributed/moments.py recipes/sft.py --config ...

A moment is a file that is opened, renamed or removed, a folder that is made, or a module that computes. MOMENTS names
a folder for the counts of each rank; KILL_AT=RANK:COUNT is where a rank kills itself.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from pangu_trl.runs import start
from pangu_trl.runs.process import run_recipe

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree")


class Moments:
    """Counts from the start of training on.

    Args:
        rank: Of this process.
        kill_at: Count at which to end it with SIGKILL; None for never.
    """

    def __init__(self, rank: int, kill_at: int | None) -> None:
        self.rank, self.kill_at = rank, kill_at
        self.count = 0
        self.final_save = 0
        self._counts = False

    def pass_one(self, *_: Any) -> None:
        if self._counts:
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Takes its place in the recipes that are run from here on."""
        sys.addaudithook(lambda event, _: self.pass_one() if event in EVENTS else None)
        register_module_forward_pre_hook(self.pass_one)
        train, finish = start.train, start.finish

        def counted_train(*args: Any) -> None:
            self._counts = True
            train(*args)

        def counted_finish(*args: Any) -> None:
            self.final_save = self.count
            finish(*args)

        start.train, start.finish = counted_train, counted_finish

    def write(self, folder: Path) -> None:
        self._counts = False
        told = {"all": self.count, "final_save": self.final_save}
        (folder / f"{self.rank}.json").write_text(json.dumps(told))


def main() -> None:
    """Runs the recipe that the command line names, to its end or to the moment of its death."""
    sys.argv = sys.argv[1:]
    rank = int(os.environ.get("RANK", "0"))
    killed_rank, _, count = os.environ.get("KILL_AT", "-1:0").partition(":")
    moments = Moments(rank, int(count) if int(killed_rank) == rank else None)
    moments.watch()
    runpy.run_path(sys.argv[0], run_name="recipe")["main"]()
    if "MOMENTS" in os.environ:
        moments.write(Path(os.environ["MOMENTS"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_recipe(main)
