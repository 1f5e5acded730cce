"""One conversion: open, check, write."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..modeling_gptpangu import GPTPanguForCausalLM, GPTPanguForSequenceClassification
from ..tokenization_gptpangu import GPTPanguTokenizer
from .lora import check_base, merged, split_lora
from .sources import (
    LM_HEAD,
    Source,
    Unsaid,
    open_dschat_reward,
    open_hf,
    open_megatron,
    open_mindspore,
    refuse_missing,
    refuse_unknown,
)
from .stored import ConversionError
from .targets import write_adapter, write_hf, write_megatron, write_mindspore

FORMATS = {
    "hf": open_hf,
    "mindspore-numpy": open_mindspore,
    "megatron": open_megatron,
    "dschat-reward": open_dschat_reward,
    "dschat-lora": open_hf,
}
TARGETS = ("hf", "megatron", "mindspore-numpy")


@dataclass(frozen=True)
class ConversionOptions:
    """How to convert; what the command line's options say.

    Attributes:
        source_format: A key of `FORMATS`.
        target_format: One of `TARGETS`.
        unsaid: What the source format does not say.
        lora_scaling: DeepSpeed-Chat's launch argument `lora_scaling`; for dschat-lora only, and needed there.
        adapter_base: Folder of the base model if the LoRA is to stay an adapter; None merges it.
        tokenizer: Folder of the tokenizer to put beside the weights; None takes the source's, if it has one.
        tensor_parallel_size: Ranks that a Megatron checkpoint is written for.
        max_shard_size: Largest file of a folder in HF format.
    """

    source_format: str
    target_format: str = "hf"
    unsaid: Unsaid = Unsaid()
    lora_scaling: float | None = None
    adapter_base: str | None = None
    tokenizer: Path | None = None
    tensor_parallel_size: int = 1
    max_shard_size: str = "2GB"


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
        write_hf(source, model_class, destination, options.max_shard_size, tokenizer)
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
    return model_class


def _check_options(source_folder: Path, destination: Path, options: ConversionOptions) -> None:
    if not source_folder.is_dir():
        raise ConversionError(
            f"{source_folder}: no such folder. A model of the Hub has to be downloaded first: "
            "`hf download user/name --local-dir FOLDER`."
        )
    if destination.exists():
        raise ConversionError(f"{destination}: exists already; choose another name or remove it.")
    is_lora = options.source_format == "dschat-lora"
    if is_lora and options.lora_scaling is None:
        raise ConversionError(
            "the file does not say how its LoRA was scaled; give the launch argument with --lora-scaling X (it is "
            "divided by the rank)."
        )
    if not is_lora and (options.lora_scaling is not None or options.adapter_base is not None):
        raise ConversionError("--lora-scaling, --merge, --adapter and --base-model belong to --from dschat-lora.")
    if options.adapter_base is not None and options.target_format != "hf":
        raise ConversionError("an adapter is written in HF format only; leave --to out.")
    if options.tensor_parallel_size != 1 and options.target_format != "megatron":
        raise ConversionError("--tensor-parallel-size belongs to --to megatron.")


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
