"""One conversion: open, check, write."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..modeling_gptpangu import GPTPanguForCausalLM, GPTPanguForSequenceClassification
from ..tokenization_gptpangu import GPTPanguTokenizer
from .configurations import Unsaid
from .lora import check_base, merged, split_lora
from .sources import (
    LM_HEAD,
    Source,
    open_dschat_reward,
    open_hf,
    open_megatron,
    open_mindspore,
    refuse_missing,
    refuse_unknown,
)
from .stored import ConversionError
from .targets import unfinished_path, write_adapter, write_hf, write_megatron, write_mindspore

FORMATS = {
    "hf": open_hf,
    "mindspore-numpy": open_mindspore,
    "megatron": open_megatron,
    "dschat-reward": open_dschat_reward,
    "dschat-lora": open_hf,
}
TARGETS = ("hf", "megatron", "mindspore-numpy")
MAX_SHARD_SIZE = "2GB"


@dataclass(frozen=True)
class ConversionOptions:
    """How to convert; what the command line's options say.

    Attributes:
        source_format: A key of `FORMATS`.
        target_format: One of `TARGETS`.
        unsaid: What the source format does not say.
        lora_scaling: DeepSpeed-Chat's launch argument `lora_scaling`; for dschat-lora only, and needed there.
        adapter_base: Folder of the base model if the LoRA is to stay an adapter; None merges it.
        tokenizer: Folder of the tokenizer to put beside weights in HF format; None takes the source's, if it has one.
        tensor_parallel_size: Ranks that a Megatron checkpoint is written for.
        max_shard_size: Largest file of a folder in HF format, such as "500MB"; None is `MAX_SHARD_SIZE`.
    """

    source_format: str
    target_format: str = "hf"
    unsaid: Unsaid = Unsaid()
    lora_scaling: float | None = None
    adapter_base: str | None = None
    tokenizer: Path | None = None
    tensor_parallel_size: int = 1
    max_shard_size: str | None = None


def convert(source_folder: Path, destination: Path, options: ConversionOptions) -> list[str]:
    """Converts a checkpoint. `destination` appears when it is complete, or not at all.

    Args:
        source_folder: The checkpoint.
        destination: Folder to write; must not exist.
        options: How.

    Returns:
        What the user should know, a sentence each.

    Raises:
        ConversionError: The checkpoint is not what it should be, something has to be said, or writing failed.
    """
    _check_options(source_folder, destination, options)
    source = FORMATS[options.source_format](source_folder, options.unsaid)
    pairs = None
    if options.source_format == "dschat-lora":
        source, pairs = split_lora(source)
        if options.adapter_base is None:
            source = merged(source, pairs, options.lora_scaling)
    model_class = check_tensors(source, source_folder)

    if options.adapter_base is not None:
        check_base(source, open_hf(Path(options.adapter_base), Unsaid()))
        write_adapter(pairs, source, options.adapter_base, options.lora_scaling, destination)
    elif options.target_format == "megatron":
        _note_activation(source)
        write_megatron(source, destination, options.tensor_parallel_size)
    elif options.target_format == "mindspore-numpy":
        _note_activation(source)
        write_mindspore(source, destination)
    else:
        tokenizer = _load_tokenizer(source, options.tokenizer)
        write_hf(source, model_class, destination, options.max_shard_size or MAX_SHARD_SIZE, tokenizer)
    return source.notes


def check_tensors(source: Source, where: object) -> type[PreTrainedModel]:
    """Compares names and shapes with the model that the configuration describes.

    Returns:
        The class of the model: with a score head a sequence classifier, else a language model.

    Raises:
        ConversionError: A tensor is missing, unknown or of another shape; the message names it.
    """
    model_class = GPTPanguForSequenceClassification if "score.weight" in source.tensors else GPTPanguForCausalLM
    with torch.device("meta"):
        model = model_class(source.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if source.config.tie_word_embeddings:
        shapes.pop(LM_HEAD, None)
    size = f"{where} (its configuration says num_layers={source.config.num_layers})"
    refuse_unknown(source.tensors, shapes, size)
    refuse_missing(source.tensors, {name: name for name in shapes}, size)
    for name, shape in shapes.items():
        if source.tensors[name].shape != shape:
            raise ConversionError(
                f"{source.tensors[name].place}: expected shape {shape} by the configuration; got "
                f"{source.tensors[name].shape}."
            )
        if not source.tensors[name].dtype.is_floating_point:
            raise ConversionError(
                f"{source.tensors[name].place}: expected floating-point numbers; got {source.tensors[name].dtype}."
            )
    return model_class


def _check_options(source_folder: Path, destination: Path, options: ConversionOptions) -> None:
    _check_folders(source_folder, destination, options)
    is_lora = options.source_format == "dschat-lora"
    if is_lora and options.lora_scaling is None:
        raise ConversionError(
            "the file does not say how its LoRA was scaled; give the launch argument with --lora-scaling X (it is "
            "divided by the rank)."
        )
    if is_lora and not 0 < options.lora_scaling < math.inf:
        raise ConversionError(f"--lora-scaling must be a number above 0; got {options.lora_scaling}.")
    if not is_lora and (options.lora_scaling is not None or options.adapter_base is not None):
        raise ConversionError("--lora-scaling, --merge, --adapter and --base-model belong to --from dschat-lora.")
    if options.adapter_base is not None and options.target_format != "hf":
        raise ConversionError("an adapter is written in HF format only; leave --to out.")
    if options.tensor_parallel_size != 1 and options.target_format != "megatron":
        raise ConversionError("--tensor-parallel-size belongs to --to megatron.")
    writes_model = options.target_format == "hf" and options.adapter_base is None
    if not writes_model and (options.tokenizer is not None or options.max_shard_size is not None):
        raise ConversionError(
            "--tokenizer and --max-shard-size belong to models in HF format, which is not written here."
        )
    size = options.max_shard_size
    if size is not None and not re.fullmatch(r"(?=.*[1-9])\d+(\.\d+)?[KMGT]B", size, re.IGNORECASE):
        raise ConversionError(
            f"--max-shard-size must be a number above 0 with KB, MB, GB or TB, such as 500MB; got {size!r}."
        )


def _check_folders(source_folder: Path, destination: Path, options: ConversionOptions) -> None:
    if source_folder.is_file():
        raise ConversionError(f"{source_folder}: must be the folder of the checkpoint; got a file. Name its folder.")
    read = [source_folder] + ([] if options.adapter_base is None else [Path(options.adapter_base)])
    for folder in read:
        if not folder.is_dir():
            raise ConversionError(
                f"{folder}: no such folder. A model of the Hub has to be downloaded first: "
                "`hf download user/name --local-dir FOLDER`."
            )
    if options.tokenizer is not None:
        if not options.tokenizer.exists():
            raise ConversionError(
                f"{options.tokenizer}: no such folder; --tokenizer takes one that holds a vocab.model."
            )
        read.append(options.tokenizer)
    if destination.exists():
        raise ConversionError(f"{destination}: exists already; choose another name or remove it.")
    # What an interrupted run left there is removed, which must never be what is to be read.
    written = {destination.resolve(), unfinished_path(destination).resolve()}
    for path in read:
        if written & {path.resolve(), *path.resolve().parents} or path.resolve() in destination.resolve().parents:
            raise ConversionError(
                f"{destination}: is written as {unfinished_path(destination)} first, and must lie apart from {path}, "
                "which is read; choose another name."
            )


def _load_tokenizer(source: Source, folder: Path | None) -> GPTPanguTokenizer | None:
    folder = folder or source.tokenizer
    if folder is None:
        source.notes.append("no tokenizer came with the weights; add one with --tokenizer FOLDER (with a vocab.model)")
        return None
    tokenizer = GPTPanguTokenizer.from_pretrained(folder)
    if len(tokenizer) > source.config.vocab_size:
        raise ConversionError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {source.config.vocab_size} only."
        )
    return tokenizer


def _note_activation(source: Source) -> None:
    activation = source.config.activation_function
    if activation not in ("gelu_pytorch_tanh", "gelu_new"):
        source.notes.append(
            f"the model was trained with activation_function {activation}; the official code, which the new format is "
            "for, computes gelu_pytorch_tanh, and the format cannot say otherwise"
        )
