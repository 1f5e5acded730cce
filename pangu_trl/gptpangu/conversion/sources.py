"""Reading each checkpoint format as tensors under the names of our classes, with the configuration they belong to."""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..configuration_gptpangu import GPTPanguConfig
from .configurations import Unsaid, checked_config, compare_with_user, other_format, read_config
from .names import WORD_EMBEDDING, TensorName, tensor_names
from .sizes import SIZES, named_config
from .stored import ConversionError, NumpyFile, StoredTensor, TensorFile, TorchFile, collect, find_model_files

LM_HEAD = "lm_head.weight"
# Causal masks that the published code kept as buffers; the model computes its own.
_MASK_BUFFER = re.compile(r"\.attn\.(masked_)?bias$")


@dataclass
class Source:
    """A checkpoint that was opened.

    Attributes:
        config: Its configuration.
        tensors: Its tensors, by the names of our classes.
        files: The files that hold them.
        notes: What the user should know: what was left out or decided, and why.
        tokenizer: Folder of the tokenizer that came with it, or None.
    """

    config: GPTPanguConfig
    tensors: dict[str, StoredTensor]
    files: list[TensorFile]
    notes: list[str] = field(default_factory=list)
    tokenizer: Path | None = None

    def release(self) -> None:
        """Gives the memory of the files back."""
        for file in self.files:
            file.release()


def open_hf(folder: Path, unsaid: Unsaid) -> Source:
    """A folder as transformers writes it, of the published code or of ours: language model or reward model.

    Raises:
        ConversionError: See `read_config`, `find_model_files`.
    """
    config, said = read_config(folder, unsaid)
    files, others = find_model_files(folder)
    tensors = collect(files)
    source = Source(config, tensors, files, tokenizer=folder if (folder / "vocab.model").exists() else None)
    if others:
        source.notes.append(
            f"read {files[0].path.name}, as transformers does, and not {' or '.join(path.name for path in others)} "
            "beside it"
        )
    _leave_out_mask_buffers(source)
    if LM_HEAD in tensors and "transformer.wte.weight" in tensors:
        _decide_tying(source, said_tied=said.get("tie_word_embeddings", True))
    if "score.weight" in tensors:
        config.num_labels = tensors["score.weight"].shape[0]
    return source


def open_dschat_reward(folder: Path, unsaid: Unsaid) -> Source:
    """A reward or critic model of DeepSpeed-Chat: `rwtransformer.*` and `v_head.weight` become a scored model.

    Raises:
        ConversionError: The file holds no such model.
    """
    source = open_hf(folder, unsaid)
    for name in ("rwtransformer.wte.weight", "v_head.weight"):
        if name not in source.tensors:
            raise ConversionError(
                f"{folder}: no reward model of DeepSpeed-Chat, it has no {name}; it holds {_some(source.tensors)}."
            )
    renamed = {
        re.sub(r"^rwtransformer\.", "transformer.", re.sub(r"^v_head\.", "score.", name)): tensor
        for name, tensor in source.tensors.items()
    }
    source.config.num_labels = 1
    return replace(source, tensors=renamed)


def open_mindspore(folder: Path, unsaid: Unsaid) -> Source:
    """A folder with one numpy file a tensor, exported from MindSpore.

    Raises:
        ConversionError: A file is missing, unknown, damaged or of another shape, or something has to be said.
    """
    files: list[TensorFile] = [NumpyFile(path) for path in sorted(folder.glob("*.npy"))]
    if not files:
        raise ConversionError(
            f"{folder}: expected one .npy file a tensor, such as {WORD_EMBEDDING.mindspore}.npy."
            f"{other_format(folder, 'mindspore-numpy')}"
        )
    stored = collect(files)
    num_layers = 1 + _count_blocks(stored, r"^backbone\.blocks\.(\d+)\.", folder)
    names = tensor_names(num_layers)
    tensors = {
        name.hf: stored[name.mindspore].transposed() if name.mindspore_transposed else stored[name.mindspore]
        for name in names
        if name.mindspore in stored
    }
    refuse_unknown(stored, {name.mindspore for name in names}, folder)
    refuse_missing(tensors, {name.hf: f"{name.mindspore}.npy" for name in names}, folder)
    return _from_shapes(tensors, files, folder, unsaid)


def open_megatron(folder: Path, unsaid: Unsaid) -> Source:
    """A Megatron checkpoint, `mp_rank_XX/model_optim_rng.pt` for each tensor-parallel rank.

    Args:
        folder: The folder with `latest_checkpointed_iteration.txt`, or the one with the ranks.
        unsaid: What the files do not say.

    Raises:
        ConversionError: A rank or tensor is missing, unknown, damaged or of another shape, or something has to be said.
    """
    files = [TorchFile(path, ("model", "language_model")) for path in _rank_files(folder)]
    ranks = [file.tensors() for file in files]
    num_layers = 1 + _count_blocks(ranks[0], r"^transformer / layers\.(\d+)\.", folder)
    names = tensor_names(num_layers)
    keys = {" / ".join(name.megatron): name for name in names}
    for file, rank in zip(files, ranks, strict=True):
        refuse_unknown(rank, keys, file.path)
        refuse_missing(rank, {key: key for key in keys}, file.path)
    tensors = {name.hf: _joined([rank[key] for rank in ranks], name) for key, name in keys.items()}
    _check_all_parts(tensors, ranks, folder)
    return _from_shapes(tensors, files, folder, _with_arguments(unsaid, files[0]))


def refuse_unknown(found: Iterable[str], known: Iterable[str], where: object) -> None:
    """Raises ConversionError if something was found that is not known."""
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ConversionError(
            f"{where}: holds tensors that no GPTPangu of this size has: {_some(unknown)}.{_dschat_format(unknown)}"
        )


def refuse_missing(found: Iterable[str], needed: dict[str, str], where: object) -> None:
    """Raises ConversionError if something that is needed (name -> what the format calls it) was not found."""
    missing = [label for name, label in needed.items() if name not in set(found)]
    if missing:
        raise ConversionError(f"{where}: lacks {_some(missing)}.")


def _dschat_format(names: list[str]) -> str:
    if any(name.startswith("rwtransformer.") for name in names):
        return " They are those of DeepSpeed-Chat's reward model: --from dschat-reward."
    if any(name.endswith(".lora_right_weight") for name in names):
        return " They are DeepSpeed-Chat's LoRA: --from dschat-lora."
    return ""


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _leave_out_mask_buffers(source: Source) -> None:
    buffers = [name for name in source.tensors if _MASK_BUFFER.search(name)]
    for name in buffers:
        del source.tensors[name]
    if buffers:
        source.notes.append(f"left out {len(buffers)} causal-mask buffers ({buffers[0]} ...); the model has its own")


def _decide_tying(source: Source, said_tied: bool) -> None:
    """An output head equal to the word embedding is stored once; one that differs is kept, whatever the config says."""
    head, embedding = source.tensors[LM_HEAD], source.tensors["transformer.wte.weight"]
    are_equal = head.shape == embedding.shape and torch.equal(head.read(), embedding.read())
    if said_tied and are_equal:
        del source.tensors[LM_HEAD]
    elif said_tied:
        source.notes.append(
            "lm_head.weight differs from transformer.wte.weight, though config.json does not say so: both are kept, "
            "and tie_word_embeddings is false now"
        )
    source.config.tie_word_embeddings = said_tied and are_equal


def _count_blocks(names: Iterable[str], pattern: str, where: object) -> int:
    layers = {int(match.group(1)) for name in names if (match := re.match(pattern, name))}
    gaps = sorted(set(range(max(layers, default=-1) + 1)) - layers)
    if gaps:
        raise ConversionError(f"{where}: has block {max(layers)} but lacks all tensors of block {gaps[0]}.")
    return len(layers)


def _from_shapes(tensors: dict[str, StoredTensor], files: list[TensorFile], folder: Path, unsaid: Unsaid) -> Source:
    """Reads the sizes off the tensors of an official checkpoint and takes from the user what they do not show."""
    for name in (WORD_EMBEDDING.hf, "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight"):
        if len(tensors[name].shape) != 2:
            raise ConversionError(f"{tensors[name].place}: expected a matrix; got shape {tensors[name].shape}.")
    rows, hidden_size = tensors[WORD_EMBEDDING.hf].shape
    width = tensors["transformer.h.0.mlp.c_fc.weight"].shape[0]
    named = None if unsaid.size is None else named_config(unsaid.size)
    num_heads = unsaid.num_heads or (named and named.num_heads)
    vocab_size = unsaid.vocab_size or (named and named.vocab_size)
    if not num_heads:
        raise ConversionError(
            f"{folder}: the files do not say how many attention heads the model has; say it with --num-heads N "
            f"(the hidden size is {hidden_size}) or name the model with --size {'|'.join(SIZES)}."
        )
    if not vocab_size:
        raise ConversionError(
            f"{folder}: the word embedding has {rows} rows, some of which may be padding; say how many tokens the "
            "vocabulary has with --vocab-size N (the official one: 40000)."
        )
    if vocab_size > rows:
        raise ConversionError(
            f"{folder}: the word embedding has {rows} rows, fewer than the {vocab_size} tokens of the vocabulary. "
            "Is --vocab-size right?"
        )
    found = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_layers": sum(name.endswith(".ln_1.weight") for name in tensors),
        "num_heads": num_heads,
        "max_position_embeddings": tensors["transformer.wpe.weight"].shape[0],
    }
    compare_with_user(found, unsaid, folder)
    other = {
        "intermediate_size": None if width == 4 * hidden_size else width,
        # The official weights were trained with the tanh form of GELU.
        "activation_function": "gelu_pytorch_tanh",
    }
    config = checked_config(found | other, folder)
    source = Source(config, tensors, files)
    if vocab_size < rows:
        tensors[WORD_EMBEDDING.hf] = tensors[WORD_EMBEDDING.hf].first_rows(vocab_size)
        source.notes.append(f"left out rows {vocab_size} to {rows - 1} of the word embedding, which are padding")
    return source


def _rank_files(folder: Path) -> list[Path]:
    tracker = folder / "latest_checkpointed_iteration.txt"
    if tracker.exists():
        iteration = tracker.read_text("utf-8", errors="replace").strip()
        if iteration != "release" and not iteration.isdecimal():
            raise ConversionError(f"{tracker}: must hold the number of an iteration, or 'release'; got {iteration!r}.")
        folder = folder / (iteration if iteration == "release" else f"iter_{int(iteration):07d}")
    found = {path.name: path / "model_optim_rng.pt" for path in sorted(folder.glob("mp_rank_*"))}
    if not found:
        raise ConversionError(
            f"{folder}: expected mp_rank_00/model_optim_rng.pt (and further ranks) in it."
            f"{other_format(folder, 'megatron')}"
        )
    expected = [f"mp_rank_{rank:02d}" for rank in range(len(found))]
    if list(found) != expected:
        raise ConversionError(
            f"{folder}: expected the tensor-parallel ranks mp_rank_00, mp_rank_01, ... without a gap; found "
            f"{', '.join(found)}. Pipeline-parallel checkpoints (mp_rank_00_000) have to be merged first."
        )
    missing = [path for path in found.values() if not path.exists()]
    if missing:
        raise ConversionError(f"{missing[0]}: missing.")
    return list(found.values())


def _joined(parts: list[StoredTensor], name: TensorName) -> StoredTensor:
    """One tensor from what the tensor-parallel ranks hold of it."""
    first, dim = parts[0], name.split_dim
    for part in parts[1:]:
        if part.shape != first.shape or part.dtype != first.dtype:
            raise ConversionError(
                f"{part.place}: expected {first.dtype} of shape {first.shape} as in {first.place}; got {part.dtype} "
                f"of shape {part.shape}."
            )
    if len(parts) == 1:
        return first
    if dim is None:
        return replace(first, read=lambda: _read_replicated(parts))
    shape = tuple(size * len(parts) if axis == dim else size for axis, size in enumerate(first.shape))
    return replace(first, shape=shape, read=lambda: torch.cat([part.read() for part in parts], dim=dim))


def _read_replicated(parts: list[StoredTensor]) -> torch.Tensor:
    tensor = parts[0].read()
    for part in parts[1:]:
        if not torch.equal(part.read(), tensor):
            raise ConversionError(f"{part.place}: differs from {parts[0].place}; every rank must hold the same.")
    return tensor


def _check_all_parts(tensors: dict[str, StoredTensor], ranks: list[dict], folder: Path) -> None:
    """A split bias together has as many entries as the hidden size, unless ranks are missing."""
    bias, norm = tensors["transformer.h.0.attn.q_proj.bias"], tensors["transformer.ln_f.weight"]
    if bias.shape != norm.shape and len(bias.shape) == len(norm.shape) == 1:
        needed = norm.shape[0] * len(ranks) / bias.shape[0]
        raise ConversionError(
            f"{folder}: {len(ranks)} tensor-parallel ranks hold {bias.shape[0]} of {norm.shape[0]} rows of "
            f"{bias.place.split(': ')[1]}; the checkpoint has {needed:g} ranks."
        )


def _with_arguments(unsaid: Unsaid, file: TorchFile) -> Unsaid:
    """Takes the number of heads from the command line that Megatron saved with the weights, if it did."""
    arguments = file.content().get("args")
    num_heads = getattr(arguments, "num_attention_heads", None) if isinstance(arguments, argparse.Namespace) else None
    if num_heads is None:
        return unsaid
    if unsaid.num_heads not in (None, num_heads):
        raise ConversionError(f"{file.path}: its args say {num_heads} attention heads, --num-heads {unsaid.num_heads}.")
    return replace(unsaid, num_heads=num_heads)
