"""What a run was told, as its checkpoints keep it: options, and fingerprints of data and models."""

import io
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset

from pangu_trl.data.streams import fingerprint_of_stream

RECORD_FILE = "run.json"
# What decides where and how a run writes, logs and evaluates, and not one bit of what it learns.
FREE_OPTIONS = frozenset(
    """
    do_train do_eval do_predict
    logging_steps logging_strategy logging_first_step log_level log_level_replica log_on_each_node
    logging_nan_inf_filter report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
    disable_tqdm log_completions num_completions_to_print log_unique_prompts include_num_input_tokens_seen
    skip_memory_metrics debug
    save_steps save_strategy save_total_limit save_only_model save_on_each_node enable_jit_checkpoint
    restore_callback_states_from_checkpoint load_best_model_at_end metric_for_best_model greater_is_better
    eval_steps eval_strategy eval_delay eval_on_start eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps per_device_eval_batch_size prediction_loss_only batch_eval_metrics
    include_for_metrics bf16_full_eval fp16_full_eval eval_split
    push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataset_num_proc ddp_timeout ddp_backend ddp_bucket_cap_mb local_rank vllm_server_timeout vllm_server_base_url
    vllm_group_port vllm_server_host vllm_server_port
    vllm_gpu_memory_utilization vllm_enable_sleep_mode reward_service_timeout reward_service_retries
    """.split()
)
# A run may be made longer or shorter; the learning rate then follows the schedule of the new length.
LENGTH_OPTIONS = frozenset({"max_steps", "num_train_epochs"})
# What a new value would make nonsense of: the order of what is learnt from, what tensors mean.
FIXED_OPTIONS = frozenset(
    """
    world_size per_device_train_batch_size gradient_accumulation_steps seed data_seed
    num_rollout_batches num_generations num_ppo_epochs advantage_estimator
    dataset_streaming streaming_buffer
    """.split()
)
# Compared by content where they are files here, so that a folder may move.
SOURCE_OPTIONS = ("model_name_or_path", "reward_model", "value_model", "train_data", "ptx_data")
NOT_KEPT = frozenset({"output_dir", "resume_from_checkpoint", "change_on_resume", "eval_data", "hub_token"})
# Of every weight file, so that large models cost nothing to speak of.
SAMPLES, SAMPLE_BYTES = 16, 1 << 16


@dataclass
class RunRecord:
    """Options and fingerprints of a run, and its totals so far.

    Attributes:
        options: Every option by name.
        fingerprints: Of data and of the models that it starts from.
        total_loss: Sum over steps of the mean loss of a step.
        num_tokens: Tokens learnt from, as TRL counts them; None where it does not.
    """

    options: dict[str, Any]
    fingerprints: dict[str, str] = field(default_factory=dict)
    total_loss: float | None = None
    num_tokens: float | None = None

    def save(self, folder: Path) -> None:
        """Writes `run.json`."""
        (folder / RECORD_FILE).write_text(json.dumps(vars(self), indent=2, ensure_ascii=False), "utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "RunRecord | None":
        """Reads it back; None if the checkpoint has none."""
        path = Path(folder) / RECORD_FILE
        return cls(**json.loads(path.read_text("utf-8"))) if path.is_file() else None


def read_options(arguments: Iterable[Any]) -> dict[str, Any]:
    """The options of dataclasses as JSON holds them; of the paths of models and data the last part."""
    found: dict[str, Any] = {}
    for part in arguments:
        for option in fields(part):
            name = option.name
            if option.init and not name.startswith("_") and name not in NOT_KEPT:
                found[name] = _plain(getattr(part, name))
            if name in SOURCE_OPTIONS:
                found[name] = _without_folders(found[name])
        if hasattr(part, "world_size"):
            found["world_size"] = part.world_size
    return found


def _without_folders(source: Any) -> Any:
    """Of a path that is here the last part, of `FILE.py:FUNCTION` too, and of each in a list; else as it is."""
    if isinstance(source, list):
        return [_without_folders(item) for item in source]
    if not isinstance(source, str) or not source:
        return source
    if Path(source).exists():
        return Path(source).absolute().name
    path, colon, function = source.rpartition(":")
    return f"{Path(path).name}:{function}" if colon and Path(path).is_file() else source


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        items = [_plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set) else items
    if is_dataclass(value) and not isinstance(value, type):
        return {option.name: _plain(getattr(value, option.name)) for option in fields(value)}
    # A float of JSON comes back as the same float.
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def differences(saved: dict[str, Any], ours: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What both know and do not agree on: name -> (in the checkpoint, now)."""
    both = [name for name in ours if name in saved]
    return {name: (saved[name], ours[name]) for name in both if saved[name] != ours[name]}


def fingerprint_of_data(dataset: Any) -> str | None:
    """Number of rows and a checksum of the content; of a stream a checksum of its first records; None for others."""
    if isinstance(dataset, IterableDataset):
        return fingerprint_of_stream(dataset)
    if not isinstance(dataset, Dataset):
        return None
    checksum = 0
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, batch.schema.remove_metadata()) as writer:
            writer.write_table(batch.replace_schema_metadata(None).combine_chunks())
        checksum = zlib.crc32(sink.getbuffer(), checksum)
    return f"{len(dataset)} rows, {checksum:08x}"


def fingerprint_of_model(name: str) -> str | None:
    """Sizes and a checksum of samples of the files of a model's folder, or of a file of Python; None for a Hub id."""
    path = Path(name)
    if not path.exists() and ":" in name:
        path = Path(name.rpartition(":")[0])
    if path.is_dir():
        suffixes = (".safetensors", ".bin", ".json")
        files = [file for file in sorted(path.iterdir()) if file.suffix in suffixes and file.is_file()]
        # What training leaves beside its model; two runs with the same weights differ in it.
        beside = ("training_args.bin", "trainer_state.json")
        files = [file for file in files if file.name not in beside and not file.name.startswith("_")]
    elif path.is_file():
        files = [path]
    else:
        return None
    checksum = 0
    for file in files:
        size = file.stat().st_size
        checksum = zlib.crc32(f"{file.name} {size}".encode(), checksum)
        with file.open("rb") as stream:
            for place in sorted({size * sample // SAMPLES for sample in range(SAMPLES)}):
                stream.seek(place)
                checksum = zlib.crc32(stream.read(SAMPLE_BYTES), checksum)
    return f"{len(files)} files, {checksum:08x}"
