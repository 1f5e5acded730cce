"""How a recipe starts: its options, and the folder that it may write into."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser


def parse_options(*dataclass_types: type, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Reads the options of a recipe from `--config FILE.yaml` and the command line, which wins.

    Unknown keys are refused. Where there is no accelerator, or `accelerate launch` was told to use the CPU, `use_cpu` is
    on and `bf16` off unless the options say otherwise: transformers does not start several CPU processes without the
    first, and TRL's own default of bfloat16 is several times slower on most CPUs.

    Args:
        *dataclass_types: Dataclasses whose fields are the options.
        argv: Arguments; those of the process if None.

    Returns:
        One instance of each dataclass.
    """
    parser = TrlParser(dataclass_types)
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available():
        parser.set_defaults_with_config(use_cpu=True, bf16=False)
    return parser.parse_args_and_config(argv)


def claim_output_dir(output_dir: str, resume_from_checkpoint: str | None) -> str | None:
    """Checks that a run may write into `output_dir`, and finds the checkpoint that it goes on from.

    Call it on every rank before anything is written.

    Args:
        output_dir: Where the run will write.
        resume_from_checkpoint: None for a new run; `true` for the last checkpoint in `output_dir`; or a checkpoint.

    Returns:
        The checkpoint to resume from, None for a new run.

    Raises:
        FileExistsError: A new run, and the folder is not empty.
        FileNotFoundError: There is no checkpoint to resume from.
    """
    folder = Path(output_dir)
    if resume_from_checkpoint is None:
        # Only one rank looks, before any rank can have written.
        if PartialState().is_main_process and folder.is_dir() and any(folder.iterdir()):
            raise FileExistsError(
                f"output_dir {output_dir} is not empty; it may hold another run, and nothing is overwritten. "
                "Give another output_dir, remove it, or continue that run with --resume_from_checkpoint true."
            )
        PartialState().wait_for_everyone()
        return None
    if resume_from_checkpoint.lower() in ("true", "last"):
        checkpoint = get_last_checkpoint(output_dir) if folder.is_dir() else None
        if checkpoint is None:
            raise FileNotFoundError(
                f"output_dir {output_dir} has no checkpoint to resume from. Start without --resume_from_checkpoint."
            )
        return checkpoint
    if not Path(resume_from_checkpoint).is_dir():
        raise FileNotFoundError(f"resume_from_checkpoint {resume_from_checkpoint} is not a folder.")
    return resume_from_checkpoint
