"""Guards a run's output folder against another run."""

from pathlib import Path

from accelerate import PartialState
from transformers.trainer_utils import get_last_checkpoint


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
