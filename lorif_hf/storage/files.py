"""Whole or absent: atomic writes, checksums, and safetensors files read by memory map."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import IndexCorruptedError
from .layout import FileEntry, inside


DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64}
_MAX_HEADER = 100_000_000  # safetensors' own limit


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, sync it and rename it to `path`: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: _discard(temporary.write_text(text, encoding="utf-8")))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; equal tensors give equal bytes."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, dict(metadata or {})))


def file_entry(folder: Path, file: str) -> FileEntry:
    """Size and SHA-256 of a file that was just written."""
    path = folder / file
    entry = FileEntry(file, path.stat().st_size, file_sha256(path))
    _remember(path, entry)
    return entry


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class TensorSpan:
    """Where a tensor lies in its file: `begin` to `end` in bytes from the file's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(file: str, size: int, head: bytes) -> dict[str, TensorSpan]:
    """The tensors of a safetensors file, each declaration checked against the file's size.

    Args:
        file (`str`): its name, for errors.
        size (`int`): its size in bytes.
        head (`bytes`): at least its first 8 bytes and the header that they announce.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: before anything is allocated.
    """
    length = header_length(file, size, head[:8])
    try:
        declared = json.loads(head[8 : 8 + length])
        spans = {name: _span(item, 8 + length) for name, item in declared.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IndexCorruptedError(file, f"its header is not one of safetensors ({error})") from error
    position = 8 + length
    for name, span in sorted(spans.items(), key=lambda item: item[1].begin):
        numbers = 1
        for extent in span.shape:
            numbers *= extent
        if span.begin != position or span.end - span.begin != numbers * span.dtype.itemsize or span.end > size:
            raise IndexCorruptedError(
                file, f"tensor '{name}' of shape {span.shape} claims bytes {span.begin} to {span.end} of {size}"
            )
        position = span.end
    if position != size:
        raise IndexCorruptedError(file, f"its tensors end at byte {position}, the file at {size}")
    return spans


def header_length(file: str, size: int, head: bytes) -> int:
    """Length of a safetensors header from the file's first 8 bytes."""
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > _MAX_HEADER or 8 + length > size:
        raise IndexCorruptedError(file, f"it has {size} bytes, its header claims {length}")
    return length


def _span(item: Any, offset: int) -> TensorSpan:
    shape, (begin, end) = item["shape"], item["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise ValueError("a shape or offset is not a natural number")
    return TensorSpan(DTYPES[item["dtype"]], tuple(shape), offset + begin, offset + end)


class TensorFile:
    """A safetensors file of an index, verified against its manifest once and then read by memory map."""

    def __init__(self, folder: Path, entry: FileEntry):
        path = verified(folder, entry)
        with open(path, "rb") as file:
            head = file.read(8)
            head += file.read(header_length(entry.file, entry.bytes, head))
        self.file = entry.file
        self.spans = parse_header(entry.file, entry.bytes, head)
        self._bytes = np.memmap(path, dtype=np.uint8, mode="c")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor, without a copy. Nothing is read before it is used."""
        span = self.span(name)
        if not span.shape:
            return _as_tensor(self._bytes[span.begin : span.end], span.dtype, ())
        stop = span.shape[0] if stop is None else min(stop, span.shape[0])
        row = (span.end - span.begin) // max(1, span.shape[0])
        piece = self._bytes[span.begin + start * row : span.begin + stop * row]
        return _as_tensor(piece, span.dtype, (stop - start, *span.shape[1:]))

    def span(self, name: str) -> TensorSpan:
        if name not in self.spans:
            raise IndexCorruptedError(self.file, f"it has no tensor '{name}'")
        return self.spans[name]


def _as_tensor(piece: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if piece.size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(piece, dtype=dtype).view(shape)


_verified: dict[tuple[str, str], tuple[int, int]] = {}


def verified(folder: Path, entry: FileEntry) -> Path:
    """The path of a file whose size and SHA-256 are what the manifest says; hashed once per process and version.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: names the file.
    """
    try:
        path = inside(folder, entry.file)
        status = path.stat()
        if not path.is_file():
            raise IndexCorruptedError(entry.file, "it is not a file")
    except FileNotFoundError:
        raise IndexCorruptedError(entry.file, "it is missing") from None
    except (OSError, RuntimeError) as error:  # a link to itself, a name too long, a file where a folder should be
        raise IndexCorruptedError(entry.file, f"it cannot be opened ({error})") from None
    if status.st_size != entry.bytes:
        raise IndexCorruptedError(entry.file, f"it has {status.st_size} bytes, the manifest says {entry.bytes}")
    if _verified.get((str(path.resolve()), entry.sha256)) != (status.st_size, status.st_mtime_ns):
        found = file_sha256(path)
        if found != entry.sha256:
            raise IndexCorruptedError(
                entry.file, f"its SHA-256 is {found[:12]}..., the manifest says {entry.sha256[:12]}..."
            )
        _remember(path, entry)
    return path


def _remember(path: Path, entry: FileEntry) -> None:
    status = path.stat()
    _verified[str(path.resolve()), entry.sha256] = (status.st_size, status.st_mtime_ns)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _discard(_: object) -> None:
    return None
