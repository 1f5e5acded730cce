"""Which checkpoints count as whole, and when older ones go."""

from types import SimpleNamespace

import pytest

from pangu_trl.checkpoints import MARK, WholeCheckpoints, last_whole_checkpoint
from pangu_trl.recipe import claim_output_dir


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint as a Trainer does, and tells the callback."""
    callback = WholeCheckpoints()
    args = SimpleNamespace(output_dir=str(tmp_path), save_total_limit=2, should_save=True)
    callback.on_train_begin(args)
    assert args.save_total_limit is None

    def write(step: int, is_whole: bool = True) -> None:
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "part").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "part" / "optimizer.pt").write_bytes(b"states")
        if is_whole:
            callback.on_save(args, SimpleNamespace(global_step=step, best_model_checkpoint=None), None)

    return write


def test_the_last_whole_checkpoint_is_the_newest_with_a_mark(tmp_path, save):
    assert last_whole_checkpoint(tmp_path) is None
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
