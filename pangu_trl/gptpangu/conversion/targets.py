"""Writing a checkpoint: HF format shard by shard, Megatron ranks, MindSpore's numpy files, a PEFT adapter."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from ..tokenization_gptpangu import GPTPanguTokenizer
from .lora import LoraPair, adapter_tensors, common_rank, target_modules
from .names import WORD_EMBEDDING, TensorName, tensor_names
from .sources import LM_HEAD, Source
from .stored import ConversionError

# Megatron pads the vocabulary to a multiple of this for each rank.
MEGATRON_VOCABULARY_DIVISOR = 128
# Source files are mapped; the pages that were read count as memory of the process until the map is given back.
RELEASE_AFTER_BYTES = 200_000_000


def unfinished_path(destination: Path) -> Path:
    """Where a folder stands while it is being written."""
    return destination.with_name(destination.name + ".unfinished")


@contextmanager
def unfinished_folder(destination: Path, num_bytes: int) -> Iterator[Path]:
    """A folder to write into that gets its name when everything is written, so that no half of a model looks whole.

    Args:
        destination: Name of the finished folder; must not exist.
        num_bytes: How much will be written.

    Raises:
        ConversionError: It exists, or the disk has too little space or runs full. Nothing is left behind.
    """
    if destination.exists():
        raise ConversionError(f"{destination}: exists already; choose another name or remove it.")
    unfinished = unfinished_path(destination)
    # A run that was killed leaves it behind; the next one starts over.
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        free = shutil.disk_usage(unfinished).free
        if free < num_bytes:
            raise ConversionError(
                f"{destination}: {num_bytes / 1e9:.2f} GB are needed there, {free / 1e9:.2f} GB are free."
            )
        yield unfinished
        os.replace(unfinished, destination)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{destination}: writing failed, nothing was kept: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_hf(
    source: Source,
    model_class: type[PreTrainedModel],
    destination: Path,
    max_shard_size: str,
    tokenizer: GPTPanguTokenizer | None,
) -> None:
    """Writes a folder that `from_pretrained` loads.

    Args:
        source: A checked model.
        model_class: The class that it belongs to.
        destination: The folder.
        max_shard_size: Largest size of one file, such as "2GB". About one file is in memory at a time.
        tokenizer: Is written beside it, or None.
    """
    split = split_state_dict_into_shards_factory(
        source.tensors,
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    source.config.architectures = [model_class.__name__]
    dtypes = {tensor.dtype for tensor in source.tensors.values()}
    source.config.dtype = dtypes.pop() if len(dtypes) == 1 else None
    with unfinished_folder(destination, _num_bytes(source)) as folder:
        for file_name, names in tqdm(split.filename_to_tensors.items(), desc="writing", unit="file"):
            save_tensors(dict(read_in_turn(source, names)), folder / file_name)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        source.config.save_pretrained(folder)
        if model_class.can_generate():
            GenerationConfig.from_model_config(source.config).save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def write_adapter(
    pairs: dict[str, LoraPair], source: Source, base_model: str, lora_scaling: float, destination: Path
) -> None:
    """Writes a PEFT adapter.

    Args:
        pairs: Factors by module name.
        source: The model that they belong to.
        base_model: Folder or hub id, written to adapter_config.json as it is.
        lora_scaling: DeepSpeed-Chat's launch argument.
        destination: The folder.

    Raises:
        ConversionError: The modules have several ranks.
    """
    config = LoraConfig(
        r=common_rank(pairs),
        lora_alpha=int(lora_scaling) if lora_scaling == int(lora_scaling) else lora_scaling,
        lora_dropout=0.0,
        target_modules=target_modules(pairs, source.config.num_layers),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    tensors = adapter_tensors(pairs)
    with unfinished_folder(destination, sum(tensor.num_bytes for tensor in tensors.values())) as folder:
        save_tensors({name: tensor.read() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
        config.save_pretrained(folder)


def write_mindspore(source: Source, destination: Path) -> None:
    """Writes one numpy file a tensor.

    Raises:
        ConversionError: The format cannot hold the model.
    """
    _refuse_head(source, "MindSpore")
    with unfinished_folder(destination, _num_bytes(source)) as folder:
        names = {name.hf: name for name in tensor_names(source.config.num_layers)}
        for hf_name, tensor in tqdm(read_in_turn(source, names), total=len(names), desc="writing", unit="file"):
            name = names[hf_name]
            if tensor.dtype == torch.bfloat16:
                raise ConversionError(
                    f"{source.tensors[name.hf].place}: numpy has no bfloat16; save the model as float32 first."
                )
            array = (tensor.T if name.mindspore_transposed else tensor).contiguous().numpy()
            np.save(folder / f"{name.mindspore}.npy", array, allow_pickle=False)


def write_megatron(source: Source, destination: Path, num_ranks: int) -> None:
    """Writes a release checkpoint of Megatron, one file a tensor-parallel rank.

    The word embedding is padded with zeros to the rows that Megatron gives it, a multiple of 128 for each rank.

    Args:
        source: A checked language model.
        destination: The folder.
        num_ranks: Tensor-parallel ranks.

    Raises:
        ConversionError: The format cannot hold the model, or it cannot be divided.
    """
    _refuse_head(source, "Megatron")
    if source.config.num_heads % num_ranks != 0:
        raise ConversionError(f"{source.config.num_heads} attention heads cannot be divided between {num_ranks} ranks.")
    names = {name.hf: name for name in tensor_names(source.config.num_layers)}
    with unfinished_folder(destination, _num_bytes(source)) as folder:
        for rank in tqdm(range(num_ranks), desc="writing", unit="rank"):
            content: dict = {}
            for hf_name, tensor in read_in_turn(source, names):
                *keys, last = names[hf_name].megatron
                node = content
                for key in keys:
                    node = node.setdefault(key, {})
                node[last] = _part_of_rank(tensor, names[hf_name], rank, num_ranks)
            file = folder / "release" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
            file.parent.mkdir(parents=True)
            torch.save({"model": {"language_model": content}, "iteration": 0}, file)
        (folder / "latest_checkpointed_iteration.txt").write_text("release\n", "utf-8")


def read_in_turn(source: Source, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Reads one tensor after the other, and gives the memory of the source files back now and then."""
    num_bytes = 0
    for name in names:
        tensor = source.tensors[name].read()
        num_bytes += source.tensors[name].num_bytes
        yield name, tensor
        if num_bytes > RELEASE_AFTER_BYTES:
            del tensor
            source.release()
            num_bytes = 0
    source.release()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _num_bytes(source: Source) -> int:
    return sum(tensor.num_bytes for tensor in source.tensors.values())


def _refuse_head(source: Source, target: str) -> None:
    for name in (LM_HEAD, "score.weight"):
        if name in source.tensors:
            raise ConversionError(
                f"{source.tensors[name].place}: {target} keeps no head of its own; the model's output must be the word "
                "embedding."
            )


def _part_of_rank(tensor: Tensor, name: TensorName, rank: int, num_ranks: int) -> Tensor:
    if name == WORD_EMBEDDING:
        divisor = MEGATRON_VOCABULARY_DIVISOR * num_ranks
        padding = -tensor.shape[0] % divisor
        tensor = torch.cat([tensor, tensor.new_zeros(padding, tensor.shape[1])])
    if num_ranks == 1:
        return tensor
    part = tensor if name.split_dim is None else tensor.chunk(num_ranks, dim=name.split_dim)[rank]
    # A copy: torch.save writes the whole memory that a view lies in, and a view keeps the source file in memory.
    return part.clone(memory_format=torch.contiguous_format)
