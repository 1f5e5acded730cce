"""Tensors that lie in a file until they are needed: torch pickles, safetensors, numpy files."""

import argparse
import json
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class ConversionError(ValueError):
    """A checkpoint that is not what it should be, or cannot be what was asked for."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, read when it is needed.

    Attributes:
        shape: Its shape.
        dtype: Its element type.
        place: File and name, for messages.
        read: Reads it. The memory may be a read-only map of the file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    place: str
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def transposed(self) -> "StoredTensor":
        return replace(self, shape=self.shape[::-1], read=lambda: self.read().T.contiguous())

    def first_rows(self, count: int) -> "StoredTensor":
        return replace(self, shape=(count, *self.shape[1:]), read=lambda: self.read()[:count])


class TensorFile(Protocol):
    """A file of tensors. `release` gives its memory back; the file opens again when it is read again."""

    path: Path

    def tensors(self) -> dict[str, StoredTensor]: ...

    def release(self) -> None: ...


class TorchFile:
    """A file that `torch.save` wrote; mapped, not read. Only tensors and plain containers are unpickled.

    Args:
        path: The file.
        keys: Where the tensors lie in the saved object, for instance ("model", "language_model").
    """

    def __init__(self, path: Path, keys: tuple[str, ...] = ()) -> None:
        self.path = path
        self.keys = keys
        self._content: Any = None

    def content(self) -> Any:
        """The saved object.

        Raises:
            ConversionError: The file is damaged, or would run code.
        """
        if self._content is None:
            # Megatron keeps its command line beside the weights, in a class that holds attributes and nothing else.
            with torch.serialization.safe_globals([argparse.Namespace]):
                self._content = _load_pickle(self.path)
        return self._content

    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name; keys of nested dictionaries are joined by " / ".

        Raises:
            ConversionError: The file is damaged, would run code, or holds something else than tensors.
        """
        node = self.content()
        for key in self.keys:
            if not isinstance(node, dict) or key not in node:
                held = sorted(map(str, node)) if isinstance(node, dict) else type(node).__name__
                raise ConversionError(f"{self.path}: no {' / '.join(self.keys)} in it; it holds {held}.")
            node = node[key]
        if not isinstance(node, dict):
            raise ConversionError(f"{self.path}: expected a dictionary of tensors; got {type(node).__name__}.")
        return {" / ".join(map(str, keys)): self._stored(keys, leaf) for keys, leaf in _leaves(node)}

    def _stored(self, keys: tuple[str, ...], leaf: Any) -> StoredTensor:
        place = f"{self.path}: {' / '.join(map(str, keys))}"
        if not isinstance(leaf, Tensor):
            raise ConversionError(f"{place}: expected a tensor; got {type(leaf).__name__}.")
        if leaf.layout != torch.strided or leaf.device.type != "cpu" or leaf.is_quantized:
            raise ConversionError(
                f"{place}: expected a dense tensor with its data; got {leaf.layout} on the device {leaf.device}."
            )

        def read() -> Tensor:
            node = self.content()
            for key in (*self.keys, *keys):
                node = node[key]
            return node.detach()

        return StoredTensor(tuple(leaf.shape), leaf.dtype, place, read)

    def release(self) -> None:
        self._content = None


class SafetensorsFile:
    """A safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None

    def _open(self) -> Any:
        if self._handle is None:
            _refuse_no_weights(self.path)
            try:
                self._handle = safe_open(self.path, framework="pt")
            except SafetensorError as error:
                raise ConversionError(f"{self.path}: truncated or damaged ({error}). Copy it again.") from error
        return self._handle

    def tensors(self) -> dict[str, StoredTensor]:
        handle = self._open()
        return {
            # An empty slice tells the element type without reading.
            name: StoredTensor(
                tuple(handle.get_slice(name).get_shape()),
                handle.get_slice(name)[:0].dtype
                if handle.get_slice(name).get_shape()
                else handle.get_tensor(name).dtype,
                f"{self.path}: {name}",
                lambda name=name: self._open().get_tensor(name),
            )
            for name in handle.keys()  # noqa: SIM118 (a safetensors handle is no mapping)
        }

    def release(self) -> None:
        self._handle = None


class NumpyFile:
    """A `.npy` file of one tensor, named like the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _array(self) -> np.ndarray:
        try:
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ConversionError(f"{self.path}: no complete numpy file ({error}). Copy it again.") from error

    def tensors(self) -> dict[str, StoredTensor]:
        array = self._array()
        try:
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        except (TypeError, ValueError) as error:
            raise ConversionError(
                f"{self.path}: expected numbers in this machine's byte order; got numpy's {array.dtype.str!r}. Save it "
                "again with array.astype('float32')."
            ) from error
        # A copy, as torch has no read-only tensors.
        read = lambda: torch.from_numpy(np.array(self._array()))  # noqa: E731
        return {self.path.stem: StoredTensor(array.shape, dtype, str(self.path), read)}

    def release(self) -> None:
        """Nothing is kept open."""


def find_model_files(folder: Path) -> tuple[list[TensorFile], list[Path]]:
    """The weight files of a folder in HF format, one or several, in the order that transformers prefers.

    Returns:
        The files, and what else in the folder holds weights under a name that transformers knows.

    Raises:
        ConversionError: There are none, the index is damaged, or a file that it names is missing.
    """
    openers = {
        "model.safetensors": SafetensorsFile,
        "model.safetensors.index.json": SafetensorsFile,
        "pytorch_model.bin": TorchFile,
        "pytorch_model.bin.index.json": TorchFile,
    }
    found = [folder / name for name in openers if (folder / name).is_file()]
    if not found:
        raise ConversionError(
            f"{folder}: expected model.safetensors or pytorch_model.bin, or an index of either; found "
            f"{', '.join(sorted(path.name for path in folder.iterdir())) or 'an empty folder'}."
        )
    taken, *others = found
    opener = openers[taken.name]
    paths = _indexed_files(taken) if taken.suffix == ".json" else [taken]
    return [opener(path) for path in paths], others


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConversionError(f"{index}: 'weight_map' must give the file of each tensor; got {str(weight_map)[:60]}.")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConversionError(f"{index}: names {', '.join(missing)}, which the folder does not hold.")
    return [index.parent / name for name in names]


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConversionError: It is damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: must be a JSON file in UTF-8; {error}. Copy it again.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: must hold one JSON object; got {type(content).__name__}.")
    return content


def collect(files: Iterable[TensorFile]) -> dict[str, StoredTensor]:
    """The tensors of several files in one dictionary.

    Raises:
        ConversionError: Two files hold a tensor of one name.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in file.tensors().items():
            if name in tensors:
                raise ConversionError(f"{name}: stands in two files, {tensors[name].place} and {tensor.place}.")
            tensors[name] = tensor
    return tensors


def _leaves(node: dict, keys: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*keys, key))
        else:
            yield (*keys, key), value


def _load_pickle(path: Path) -> Any:
    _refuse_no_weights(path)
    try:
        try:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as error:
            # Files from before torch 1.6 are no zip archives and cannot be mapped.
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch the protection off.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"it names {named.group(1)}" if named else "or is damaged"
        raise ConversionError(
            f"{path}: not loaded, because it holds more than tensors and plain containers and could run code "
            f"({found}). Save only the tensors in it, on a machine where you trust it."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ConversionError(f"{path}: truncated or damaged ({_first_line(error)}). Copy it again.") from error


def _refuse_no_weights(path: Path) -> None:
    """Names the two files that a download most often leaves in the place of weights."""
    with path.open("rb") as file:
        start = file.read(40)
    if not start:
        raise ConversionError(f"{path}: the file is empty. Copy it again.")
    if start.startswith(b"version https://git-lfs"):
        raise ConversionError(f"{path}: a pointer of Git LFS, not the weights; fetch them with `git lfs pull`.")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
