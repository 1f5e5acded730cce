"""Going on from a checkpoint: with the same options unless told, to the same end, and no further."""

import functools
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from .checkpoints import check_whole, keep_whole_checkpoints, last_whole_checkpoint
from .ranks import on_main_process
from .record import (
    FIXED_OPTIONS,
    FREE_OPTIONS,
    LENGTH_OPTIONS,
    SOURCE_OPTIONS,
    RunRecord,
    differences,
    fingerprint_of_data,
    fingerprint_of_model,
    read_options,
)

logger = logging.getLogger(__name__)

TRAINER_STATE = "trainer_state.json"


class NothingLeft(Exception):
    """The checkpoint is at the end of the run already."""


class Resumption(TrainerCallback):
    """Keeps with every checkpoint what the run was told and what it has summed up, and compares on resume.

    Args:
        trainer: The trainer of the run, which is wrapped by `resume_exactly`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        # Other options of the run than the trainer's own.
        self.arguments: list[Any] = []
        self._fingerprints: dict[str, str] | None = None
        self._saved: RunRecord | None = None
        self._resumed_at: int | None = None
        self._changed: frozenset[str] = frozenset()
        self._new_groups: list[dict[str, Any]] = []

    # What a checkpoint keeps.

    def save(self, folder: Path) -> None:
        """Writes the record of the run into a checkpoint; called on every rank."""
        trainer = self.trainer
        loss = trainer.accelerator.reduce(trainer._tr_loss.detach().clone().float(), reduction="mean").item()
        total = self._loss_before(loss + trainer._total_loss_scalar)
        if trainer.args.should_save:
            record = self._describe()
            record.total_loss, record.num_tokens = total, getattr(trainer, "_total_train_tokens", None)
            record.save(folder)

    def _loss_before(self, since: float) -> float | None:
        if self._resumed_at is None:
            return since
        return None if self._saved is None or self._saved.total_loss is None else self._saved.total_loss + since

    def _describe(self) -> RunRecord:
        trainer, arguments = self.trainer, [self.trainer.args, *self.arguments]
        if self._fingerprints is None:
            found = {"train_data": fingerprint_of_data(trainer.train_dataset)}
            texts = getattr(trainer, "texts", None)
            if texts is not None:
                found["ptx_data"] = fingerprint_of_data(texts.texts)
            for name in ("model_name_or_path", "reward_model", "value_model"):
                value = next((getattr(part, name) for part in arguments if getattr(part, name, None)), None)
                if isinstance(value, str):
                    found[name] = fingerprint_of_model(value)
            self._fingerprints = {name: print_ for name, print_ in found.items() if print_ is not None}
        return RunRecord(read_options(arguments), self._fingerprints)

    # What is compared, and what holds.

    def compare(self, checkpoint: str, wished: Iterable[str]) -> frozenset[str]:
        """Which options have another value than in the checkpoint, and may.

        Raises:
            ValueError: Others differ; the message names each with both values.
        """
        saved = RunRecord.load(checkpoint)
        if saved is None:
            logger.warning("%s holds no options, so they cannot be compared with those of this run.", checkpoint)
            return frozenset()
        ours = self._describe()
        found = differences(saved.options, ours.options)
        prints = differences(saved.fingerprints, ours.fingerprints)
        for name in SOURCE_OPTIONS:
            if name in saved.fingerprints and name in ours.fingerprints:
                found.pop(name, None)
        found |= prints
        wished = frozenset(wished)
        unknown = sorted(wished - set(ours.options) - set(ours.fingerprints))
        if unknown:
            raise ValueError(f"change_on_resume: there is no option {', '.join(unknown)}.")
        refused = {name: pair for name, pair in found.items() if name not in FREE_OPTIONS | LENGTH_OPTIONS | wished}
        refused |= {name: pair for name, pair in found.items() if name in FIXED_OPTIONS}
        if refused:
            raise ValueError(_refusal(checkpoint, refused))
        for name, (then, now) in found.items():
            logger.warning("%s: the checkpoint has %r; %r holds from here on.", name, then, now)
        return frozenset(found)

    def note_groups(self, optimizer: Any) -> None:
        """Remembers what the options say of each parameter group, before the checkpoint's values replace it."""
        keys = ("weight_decay", "betas", "eps")
        self._new_groups = [
            {"lr": group.get("initial_lr", group["lr"])} | {key: group[key] for key in keys if key in group}
            for group in getattr(optimizer, "param_groups", [])
        ]

    def _apply_changes(self) -> None:
        """Has the optimiser and the schedule follow the options that were changed on purpose."""
        trainer, changed = self.trainer, self._changed
        groups = trainer.optimizer.param_groups
        own = {
            "weight_decay": {"weight_decay", "critic_weight_decay"},
            "betas": {"adam_beta1", "adam_beta2"},
            "eps": {"adam_epsilon"},
        }
        for group, new in zip(groups, self._new_groups, strict=True):
            group.update({key: new[key] for key, options in own.items() if options & changed and key in new})
        if not changed & {"learning_rate", "critic_learning_rate"}:
            return
        scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"change_on_resume: the learning rate of lr_scheduler_type {trainer.args.lr_scheduler_type} cannot be "
                "changed, since that schedule computes it from its own past."
            )
        scheduler.base_lrs = [new["lr"] for new in self._new_groups]
        rates = [
            base * share(scheduler.last_epoch)
            for base, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, base, rate in zip(groups, scheduler.base_lrs, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate
        scheduler._last_lr = rates

    # The loop.

    def resolve(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """The checkpoint to go on from, checked and compared; None for a new run."""
        trainer = self.trainer
        self._saved, self._resumed_at, self._changed = None, None, frozenset()
        wished = [name for part in self.arguments for name in getattr(part, "change_on_resume", [])]
        if not resume_from_checkpoint:
            if wished:
                raise ValueError(f"change_on_resume {' '.join(wished)} has no effect without resume_from_checkpoint.")
            return None

        def look() -> tuple[str, frozenset[str]]:
            if resume_from_checkpoint is True:
                checkpoint = last_whole_checkpoint(trainer.args.output_dir)
            else:
                checkpoint = str(resume_from_checkpoint)
                check_whole(checkpoint)
            return checkpoint, self.compare(checkpoint, wished)

        checkpoint, self._changed = on_main_process(look)
        self._saved = RunRecord.load(checkpoint)
        state = json.loads((Path(checkpoint) / TRAINER_STATE).read_text("utf-8"))
        self._resumed_at = state["global_step"]
        trainer.changed_options = self._changed
        return checkpoint

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Everything is loaded: what was changed on purpose is put in its place, and an end is an end."""
        if self._resumed_at is None:
            return
        if self._changed:
            self._apply_changes()
        if self._saved is not None and hasattr(self.trainer, "_total_train_tokens"):
            self.trainer._total_train_tokens = self._saved.num_tokens or 0
        if state.global_step >= state.max_steps:
            raise NothingLeft

    def whole_run(self, logs: dict[str, float]) -> None:
        """Makes the mean loss of the steps since the resume that of the whole run, or leaves it out."""
        if self._resumed_at is None or "train_loss" not in logs:
            return
        step = self.trainer.state.global_step
        total = self._loss_before(logs.pop("train_loss") * (step - self._resumed_at))
        if total is not None:
            logs["train_loss"] = total / step

    def finish_at_once(self, checkpoint: str) -> TrainOutput:
        """What training ends with where nothing was left to train."""
        trainer, state = self.trainer, self.trainer.state
        if trainer.is_world_process_zero():
            logger.warning(
                "%s is at step %d of %d: nothing is left to train. The model is saved once more, as it is.",
                checkpoint,
                state.global_step,
                state.max_steps,
            )
        # Of the end of this very run, if it got there: it holds the figures that came after the checkpoint.
        ended = Path(trainer.args.output_dir) / TRAINER_STATE
        log_history = on_main_process(lambda: _log_of_the_end(ended, state.global_step))
        if log_history is not None:
            state.log_history = log_history
        elif self._saved is not None and self._saved.total_loss is not None:
            trainer.log({"train_loss": self._saved.total_loss / max(state.global_step, 1)})
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            trainer._load_best_model()
        trainer.control = trainer.callback_handler.on_train_end(trainer.args, state, trainer.control)
        trainer.is_in_train = False
        losses = [entry["train_loss"] for entry in state.log_history if "train_loss" in entry]
        return TrainOutput(state.global_step, losses[-1] if losses else float("nan"), {})


def resume_exactly(trainer: Trainer, *arguments: Any) -> None:
    """Has a trainer keep its options in every checkpoint, and resume as docs/ppo.md and docs/scaling.md say.

    A second call adds arguments, and changes nothing else.

    Args:
        trainer: Any trainer.
        *arguments: Dataclasses of further options of the run.
    """
    if not hasattr(trainer, "resumption"):
        _wrap(trainer)
    trainer.resumption.arguments += arguments


def _wrap(trainer: Trainer) -> None:
    resumption = trainer.resumption = Resumption(trainer)
    trainer.changed_options = frozenset()
    trainer.add_callback(resumption)
    keep_whole_checkpoints(trainer, resumption.save)
    train, log, create_optimizer = trainer.train, trainer.log, trainer.create_optimizer

    @functools.wraps(train)
    def train_from(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        checkpoint = resumption.resolve(resume_from_checkpoint)
        try:
            output = train(checkpoint, *args, **kwargs)
        except NothingLeft:
            return resumption.finish_at_once(checkpoint)
        # `log` has put the whole run's figure into the metrics.
        return TrainOutput(output.global_step, output.metrics.get("train_loss", float("nan")), output.metrics)

    @functools.wraps(log)
    def log_whole_run(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        resumption.whole_run(logs)
        log(logs, *args, **kwargs)

    @functools.wraps(create_optimizer)
    def create_and_note(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        is_new = trainer.optimizer is None
        optimizer = create_optimizer(*args, **kwargs)
        if is_new:
            resumption.note_groups(optimizer)
        return optimizer

    trainer.train, trainer.log, trainer.create_optimizer = train_from, log_whole_run, create_and_note


def _refusal(checkpoint: str, found: dict[str, tuple[Any, Any]]) -> str:
    listed = "; ".join(f"{name}: {then!r} in the checkpoint, {now!r} now" for name, (then, now) in found.items())
    fixed = [name for name in found if name in FIXED_OPTIONS]
    free = [name for name in found if name not in FIXED_OPTIONS]
    cure = []
    if fixed:
        cure.append(
            f"{', '.join(fixed)} must stay: the order of what is learnt from depends on it (world_size is the number "
            "of processes)."
        )
    if "world_size" in found:
        processes = found["world_size"][0]
        cure.append(
            f"Start {processes} of them (accelerate launch --num_processes {processes}), or a new run in another "
            "output_dir, from the checkpoint's model (--model_name_or_path)."
        )
    if free:
        cure.append(
            "Give the checkpoint's values, or have the new ones hold from here on with --change_on_resume "
            f"{' '.join(free)}."
        )
    return f"{checkpoint} was written with other options: {listed}. {' '.join(cure)}"


def _log_of_the_end(path: Path, step: int) -> list[dict[str, float]] | None:
    try:
        state = json.loads(path.read_text("utf-8"))
        return state["log_history"] if state["global_step"] == step else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
