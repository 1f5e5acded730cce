"""Which checkpoints count as whole, and when they are pushed and older ones go."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from pangu_trl.runs.checkpoints import MARK, keep_whole_checkpoints, last_whole_checkpoint
from pangu_trl.runs.start import claim_output_dir


class StandIn:
    """Saves as a Trainer does: parts, then what options ask for, unless it is told to fail on the way."""

    def __init__(self, output_dir: Path) -> None:
        self.args = SimpleNamespace(
            output_dir=str(output_dir), save_total_limit=2, should_save=True, save_only_model=False, push_to_hub=False
        )
        self.state = SimpleNamespace(global_step=0, best_model_checkpoint=None)
        self.accelerator = SimpleNamespace(wait_for_everyone=self._wait)
        self.fails = self.pickles_options = False
        self.pushed = []
        self.seen_while_waiting = []

    def _wait(self):
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.seen_while_waiting.append(sorted(path.name for path in folder.rglob("*") if path.is_file()))

    def _get_output_dir(self, trial):
        return self.args.output_dir

    def _save_checkpoint(self, model, trial):
        # Whether to push and to delete is left to the one who knows that all ranks have written.
        assert self.args.save_total_limit is None and not self.args.push_to_hub
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / "part").mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        if self.pickles_options:
            (folder / "training_args.bin").write_bytes(b"paths and tokens")
        if self.fails:
            raise OSError("No space left on device")
        (folder / "part" / "optimizer.pt").write_bytes(b"states")

    def _push_from_checkpoint(self, folder):
        self.pushed.append(sorted(path.name for path in Path(folder).rglob("*") if path.is_file()))


@pytest.fixture
def trainer(tmp_path) -> StandIn:
    trainer = StandIn(tmp_path)
    for _ in range(2):
        keep_whole_checkpoints(trainer)
    return trainer


@pytest.fixture
def save(trainer):
    """Writes a checkpoint, or the half of one."""

    def write(step: int, is_whole: bool = True) -> None:
        trainer.state.global_step, trainer.fails = step, not is_whole
        with suppress(OSError):
            trainer._save_checkpoint(None, None)
        assert trainer.args.save_total_limit == 2

    return write


def test_the_last_whole_checkpoint_is_the_newest_with_a_mark(tmp_path, save):
    with pytest.raises(FileNotFoundError, match="no whole checkpoint to resume from"):
        last_whole_checkpoint(tmp_path)
    save(9)
    save(10)
    save(11, is_whole=False)
    (tmp_path / "checkpoint-old").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert claim_output_dir(str(tmp_path), "true") == str(tmp_path / "checkpoint-10")


def test_a_file_that_is_missing_or_cut_makes_a_checkpoint_useless(tmp_path, save, caplog):
    save(1)
    save(2)
    (tmp_path / "checkpoint-2" / "part" / "optimizer.pt").write_bytes(b"stat")
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert "part/optimizer.pt must have 6 bytes; it is 4 bytes" in caplog.text
    (tmp_path / "checkpoint-1" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no whole checkpoint to resume from"):
        claim_output_dir(str(tmp_path), "true")


def test_the_limit_deletes_only_when_the_new_one_is_whole(tmp_path, save):
    for step in (1, 2):
        save(step)
    save(3, is_whole=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    save(4)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 2 and "checkpoint-4" in kept
    assert (tmp_path / "checkpoint-4" / MARK).exists()


def test_a_mark_of_an_earlier_run_does_not_stand_for_what_is_half_written_anew(tmp_path, save):
    save(1)
    save(2)
    save(2, is_whole=False)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_the_mark_waits_for_the_other_ranks(tmp_path, trainer, save):
    save(1)
    save(1)
    # Before anything is written the old mark is away on all ranks; after all of it, before the new one is written.
    assert trainer.seen_while_waiting[2:] == [["model.safetensors", "optimizer.pt"]] * 2
    assert (tmp_path / "checkpoint-1" / MARK).is_file()


def test_what_is_pushed_is_whole_and_has_its_mark(trainer, save):
    trainer.args.push_to_hub = trainer.pickles_options = True
    save(1)
    save(2, is_whole=False)
    assert trainer.pushed == [[MARK, "model.safetensors", "optimizer.pt"]]
    assert trainer.args.push_to_hub


def test_a_model_alone_gets_no_mark_and_counts_for_the_limit(tmp_path, trainer, save):
    trainer.args.save_only_model = True
    for step in (1, 2, 3):
        save(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    with pytest.raises(FileNotFoundError, match="no whole checkpoint to resume from"):
        last_whole_checkpoint(tmp_path)


def test_the_file_that_transformers_takes_away_when_it_has_saved_is_not_missed(tmp_path, save):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "checkpoint-is-incomplete.txt").write_text("in progress")
    save(1)
    (tmp_path / "checkpoint-1" / "checkpoint-is-incomplete.txt").unlink()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
