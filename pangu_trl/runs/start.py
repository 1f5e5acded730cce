"""How a recipe starts: its options, the folder that it may write into, and the model that it goes on from."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import is_bitsandbytes_available
from trl import ModelConfig, get_peft_config, get_quantization_config

from pangu_trl.data.answer_end import note_stop_tokens
from pangu_trl.models.load_reports import reports_of_files
from pangu_trl.models.loading import find_base_model, load_merged
from pangu_trl.models.lora_targets import check_lora_targets, resolve_lora_targets
from pangu_trl.models.modes import check_generation_settings
from pangu_trl.models.weight_files import refuse_broken_weights, refuse_pointers

from .broken_training import stop_on_broken_training
from .checkpoints import check_whole, last_whole_checkpoint, saving_to
from .coarse_weights import check_coarse_weights
from .ending import tell_end
from .folders import MERGED_BASE_FOLDER
from .hang_guard import watch_for_hangs
from .learning_rates import check_learning_rates
from .lock import LOCK_FILE, lock_folder, unlock_folder
from .options import StrictParser
from .process import recipe_command, stage_of_process
from .pushing import keep_options_private
from .ranges import check_numbers
from .ranks import on_main_process
from .resuming import resume_exactly
from .run_log import RunLog, collect_warnings
from .stopping import end_if_told_to_stop, save_when_told_to_stop
from .whole_evaluation import evaluate_on_all


def parse_options(*dataclass_types: type, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Reads the options of a recipe from `--config FILE.yaml` and the command line, which wins.

    Unknown options, abbreviated ones, those that stand twice and numbers outside of their range are refused, and
    `output_dir` is required. Where there is no accelerator, or `accelerate launch` was told to use the CPU, `use_cpu`
    is on and `bf16` off unless the options say otherwise: transformers does not start several CPU processes without the
    first, and TRL's own default of bfloat16 is several times slower on most CPUs.

    Args:
        *dataclass_types: Dataclasses whose fields are the options.
        argv: Arguments; those of the process if None.

    Returns:
        One instance of each dataclass.

    Raises:
        ValueError: An option is wrong; the message names it, and the file that it stands in.
        OSError: The file cannot be read.
    """
    collect_warnings()
    parser = StrictParser(dataclass_types, allow_abbrev=False)
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available():
        parser.set_defaults_with_config(use_cpu=True, bf16=False)
    options = parser.read(list(sys.argv[1:] if argv is None else argv))
    for config in options:
        check_numbers(config)
    return options


def claim_output_dir(output_dir: str, resume_from_checkpoint: str | bool | None) -> str | None:
    """Takes `output_dir` for this run alone, and finds the checkpoint that it goes on from.

    Call it on every rank before anything is written or loaded. The main process looks, and locks the folder until it
    ends.

    Args:
        output_dir: Where the run will write.
        resume_from_checkpoint: None or `false` for a new run; `true` for the last whole checkpoint in `output_dir`; or
            a checkpoint, which must be whole.

    Returns:
        The checkpoint to resume from, None for a new run.

    Raises:
        BlockingIOError: Another run has the folder.
        FileExistsError: A new run, and the folder is not empty.
        FileNotFoundError: There is no checkpoint to resume from.
        ValueError: The checkpoint that was named is not whole.
        OSError: The folder cannot be written.
    """
    return on_main_process(lambda: _claim(Path(output_dir), resume_from_checkpoint))


def _claim(folder: Path, resume_from_checkpoint: str | bool | None) -> str | None:
    # YAML's true and false come as themselves, those of the command line as words.
    wish = "" if resume_from_checkpoint is None else str(resume_from_checkpoint)
    if wish.lower() in ("true", "last"):
        if folder.is_dir():
            lock_folder(folder)
        return last_whole_checkpoint(folder)
    lock_folder(folder)
    if wish.lower() not in ("", "false"):
        check_whole(wish)
        return wish
    if any(path.name != LOCK_FILE for path in folder.iterdir()):
        unlock_folder(folder)
        raise FileExistsError(
            f"output_dir {folder} is not empty; it may hold another run, and nothing is overwritten. "
            "Give another output_dir, remove it, or continue that run with --resume_from_checkpoint true."
        )
    return None


@dataclass(frozen=True)
class Start:
    """What a run goes on from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    peft_config: PeftConfig | None


def load_start(
    auto_class: Any,
    model_args: ModelConfig,
    training_args: TrainingArguments,
    new_head: str | None = None,
    **model_kwargs: Any,
) -> Start:
    """Loads the model that a run trains, with all weights trainable, and the adapter that it is to learn.

    An adapter's folder is merged into its base model. A new adapter would then name a base model that lacks the first
    one, so the merged model is kept as `output_dir/base`, and the new adapter names that.

    The seed is set first: a new score head and a new adapter start from random numbers.

    Args:
        auto_class: Auto class of the model.
        model_args: Which model, how to load it, and the options of LoRA.
        training_args: Options of the run; its output folder is its own already.
        new_head: Start of the names of weights that the files need not hold, because training makes them.
        **model_kwargs: Passed on to `from_pretrained` of the model.

    Raises:
        ValueError: An option that the recipes do not follow is set, the model cannot be loaded, or its files miss
            weights.
    """
    _refuse_unused_options(model_args, training_args)
    set_seed(training_args.seed)
    model_id, revision = model_args.model_name_or_path, model_args.model_revision
    refuse_pointers(model_id)
    with reports_of_files(new_head):
        model, tokenizer, missing = load_merged(
            auto_class,
            model_id,
            revision=revision,
            trust_remote_code=getattr(training_args, "trust_remote_code", False),
            quantization_config=get_quantization_config(model_args),
            **loading_options(model_args),
            **model_kwargs,
        )
    unknown = [name for name in missing if new_head is None or not name.startswith(new_head)]
    if unknown:
        raise ValueError(
            f"{model_id}: cannot start from it as a {type(model).__name__}, as its files hold no weights for "
            f"{', '.join(unknown)}"
        )
    note_stop_tokens(model, tokenizer)
    refuse_broken_weights(model, model_id)
    peft_config = get_peft_config(model_args)
    if peft_config is None:
        check_generation_settings(model)
    if peft_config is not None:
        resolve_lora_targets(peft_config, model)
        check_lora_targets(peft_config, model)
    if peft_config is not None and find_base_model(model_id, revision) is not None:
        _keep_merged_base(model, tokenizer, Path(training_args.output_dir) / MERGED_BASE_FOLDER, missing)
    elif peft_config is not None and revision != "main":
        peft_config.revision = revision
    return Start(model, tokenizer, peft_config)


def loading_options(model_args: ModelConfig) -> dict[str, Any]:
    """Those options of `from_pretrained` that hold for every model of a run."""
    return {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}


def guard(trainer: Trainer, *arguments: Any) -> None:
    """Stops broken training, resumes exactly, marks whole checkpoints, pushes no options, saves when told to stop.

    It also refuses a run whose warm-up leaves nothing to learn with, has all examples evaluated, names ranks that wait
    for others, and keeps the run's log for the page on it.

    The trainers of this package look at the dtype of their weights themselves.

    Args:
        trainer: Any trainer.
        *arguments: The options of the run beside the trainer's own.
    """
    if not type(trainer).__module__.startswith("pangu_trl."):
        check_coarse_weights(trainer)
    check_learning_rates(trainer)
    stop_on_broken_training(trainer)
    resume_exactly(trainer, *arguments)
    keep_options_private(trainer)
    evaluate_on_all(trainer)
    save_when_told_to_stop(trainer)
    watch_for_hangs(trainer)
    trainer.add_callback(RunLog(stage_of_process(), (trainer.args, *arguments)))


def train(trainer: Trainer, checkpoint: str | None) -> None:
    """Trains, from a checkpoint if there is one; a run that was told to stop ends here.

    Raises:
        SystemExit: It was told to stop.
    """
    trainer.train(resume_from_checkpoint=checkpoint)
    end_if_told_to_stop(trainer, recipe_command())


def finish(trainer: Trainer) -> None:
    """Saves the model and the log, says what came of it, and lets all ranks end together.

    A rank that leaves while the others still save can be aborted by its own communication threads.
    """
    folder = trainer.args.output_dir
    with saving_to(Path(folder)):
        trainer.save_model()
        trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    unlock_folder(folder)
    if trainer.is_world_process_zero():
        print(tell_end(Path(folder)), flush=True)
    trainer.accelerator.end_training()


def _keep_merged_base(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, untrained: list[str]
) -> None:
    """Saves the model that a new adapter belongs to, and has the adapter name it."""
    folder = folder.absolute()
    if PartialState().is_main_process and not folder.exists():
        # Without the new score head, which the adapter brings: so the folder cannot pass for a reward model.
        state_dict = {name: tensor for name, tensor in model.state_dict().items() if name not in untrained}
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        model.save_pretrained(unfinished, state_dict=state_dict)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
    PartialState().wait_for_everyone()
    model.name_or_path = model.config._name_or_path = str(folder)


def _refuse_unused_options(model_args: ModelConfig, training_args: TrainingArguments) -> None:
    if not model_args.model_name_or_path:
        raise ValueError("model_name_or_path is required: the folder of a model or an adapter, or its Hub id.")
    if getattr(training_args, "model_init_kwargs", None):
        raise ValueError(
            "model_init_kwargs has no effect in the recipes; use dtype, attn_implementation and model_revision."
        )
    check_quantisation(model_args)


def check_quantisation(model_args: ModelConfig) -> None:
    """Refuses quantised weights that would have to learn, or that nothing here can make.

    Raises:
        ValueError: There is no adapter, or no bitsandbytes.
    """
    if model_args.load_in_4bit or model_args.load_in_8bit:
        option = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
        if not model_args.use_peft:
            raise ValueError(f"{option} needs use_peft: quantised weights cannot be trained, only an adapter on them.")
        if not is_bitsandbytes_available():
            raise ValueError(
                f"{option} needs bitsandbytes and a device that it supports: pip install 'pangu_trl[quantised]'."
            )
