"""Whole or absent: atomic writes, checksums, and safetensors files read by memory map."""

import hashlib
import json
import math
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import IndexCorruptedError
from .layout import FileEntry, TensorEntry, inside
from .system_errors import system_errors


DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_HASHES = "sha256"  # key of the tensors' hashes in a file's metadata
_MAX_HEADER = 100_000_000  # safetensors' own limit


def temporary_name(name: str) -> str:
    """What a file or folder is called until it is whole: no other thread or process takes the same name."""
    begun = name.encode()[:200].decode(errors="ignore")  # a system allows 255 bytes
    return f"{begun}.{os.getpid()}-{threading.get_native_id()}.tmp"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, sync it and rename it to `path`: a reader sees all of it or nothing.

    Raises:
        [`~lorif_hf.errors.DiskFullError`]: there was no room; nothing of the file is left.
        [`~lorif_hf.errors.StorageError`]: the system refused it for another reason.
    """
    temporary = path.with_name(temporary_name(path.name))
    with system_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            with suppress(OSError):  # where there is none, or a disk that takes nothing: the first error is told
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file whose metadata holds each tensor's SHA-256; equal tensors give equal bytes."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # One entry with all hashes: safetensors itself writes several entries in any order.
    hashes = {name: hashlib.sha256(tensor_bytes(tensor)).hexdigest() for name, tensor in contiguous.items()}
    metadata = {_HASHES: json.dumps(hashes, sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))


def tensor_bytes(tensor: Tensor) -> Any:
    """The bytes of a contiguous tensor, as a safetensors file holds them."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""


def file_entry(folder: Path, file: str) -> FileEntry:
    """Size and SHA-256 of a file that was just written."""
    path = folder / file
    entry = FileEntry(file, path.stat().st_size, file_sha256(path))
    _remember(path, entry)
    return entry


def tensor_entry(folder: Path, file: str) -> TensorEntry:
    """The same of a safetensors file, with the hash of its header."""
    entry = file_entry(folder, file)
    return TensorEntry(entry.file, entry.bytes, entry.sha256, header_sha256(folder / file))


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class TensorSpan:
    """Where a tensor lies in its file: `begin` to `end` in bytes from the file's start; its hash where declared."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int
    sha256: str | None = None


def parse_header(file: str, size: int, head: bytes) -> Mapping[str, TensorSpan]:
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
        hashes = json.loads(declared.pop("__metadata__", {}).get(_HASHES, "{}"))
        spans = {name: _span(item, 8 + length, hashes.get(name)) for name, item in declared.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IndexCorruptedError(file, f"its header is not one of safetensors ({error})") from error
    position = 8 + length
    for name, span in sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)):
        size_declared = math.prod(span.shape) * span.dtype.itemsize
        if span.begin != position or span.end - span.begin != size_declared or span.end > size:
            raise IndexCorruptedError(
                file, f"tensor '{name}' of shape {span.shape} claims bytes {span.begin} to {span.end} of {size}"
            )
        position = span.end
    if position != size:
        raise IndexCorruptedError(file, f"its tensors end at byte {position}, the file at {size}")
    return MappingProxyType(spans)


# Every query opens its shards anew: parsing took a good part of what one of a small index takes.
_parsed_header = lru_cache(maxsize=32)(parse_header)


def header_length(file: str, size: int, head: bytes) -> int:
    """Length of a safetensors header from the file's first 8 bytes."""
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > _MAX_HEADER or 8 + length > size:
        raise IndexCorruptedError(file, f"it has {size} bytes, its header claims {length}")
    return length


def read_head(path: Path) -> bytes:
    """A safetensors file's first bytes: the header's length and the header, where the file holds one."""
    with open(path, "rb") as file:
        head = file.read(8)
        return head + file.read(min(int.from_bytes(head, "little"), path.stat().st_size, _MAX_HEADER))


def header_sha256(path: Path) -> str:
    """Hash of a safetensors file's length of header and header."""
    return hashlib.sha256(read_head(path)).hexdigest()


def is_intact(path: Path) -> bool:
    """Whether a safetensors file of ours is there and each of its tensors has the hash that its header declares."""
    try:
        content = path.read_bytes()
        spans = parse_header(path.name, len(content), content)
    except (OSError, IndexCorruptedError):
        return False
    view = memoryview(content)
    return all(hashlib.sha256(view[span.begin : span.end]).hexdigest() == span.sha256 for span in spans.values())


def _span(item: Any, offset: int, sha256: str | None) -> TensorSpan:
    shape, (begin, end) = item["shape"], item["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise ValueError("a shape or offset is not a natural number")
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)):
        raise ValueError("the hash of a tensor is none")
    return TensorSpan(DTYPES[item["dtype"]], tuple(shape), offset + begin, offset + end, sha256)


class TensorReader:
    """The tensors of one safetensors file, wherever its bytes come from.

    Args:
        file (`str`): its name, for errors.
        spans (`Mapping[str, TensorSpan]`): what its header declares, checked.
    """

    def __init__(self, file: str, spans: Mapping[str, TensorSpan]):
        self.file = file
        self.spans = spans

    def prefetch(self, names: Sequence[str]) -> None:
        """Get whole tensors at once, where that is cheaper than one by one."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor."""
        span = self.span(name)
        shape, begin, end = span.shape, span.begin, span.end
        if shape:
            stop = shape[0] if stop is None else min(stop, shape[0])
            row = (end - begin) // max(1, shape[0])
            begin, end, shape = begin + start * row, begin + stop * row, (stop - start, *shape[1:])
        if begin == end:  # frombuffer takes no empty buffer
            return torch.empty(shape, dtype=span.dtype)
        return torch.frombuffer(self._piece(name, begin, end), dtype=span.dtype).view(shape)

    def runs(self, names: Iterable[str]) -> list[list[str]]:
        """Names of tensors that hold anything, in the file's order, neighbours together."""
        runs: list[list[str]] = []
        for name in sorted(names, key=lambda name: self.span(name).begin):
            if runs and self.span(runs[-1][-1]).end == self.span(name).begin:
                runs[-1].append(name)
            elif self.span(name).end > self.span(name).begin:
                runs.append([name])
        return runs

    def span(self, name: str) -> TensorSpan:
        if name not in self.spans:
            raise IndexCorruptedError(self.file, f"it has no tensor '{name}'")
        return self.spans[name]

    def _piece(self, name: str, begin: int, end: int) -> np.ndarray:
        """Bytes `begin` to `end` of the file, which lie inside tensor `name`."""
        raise NotImplementedError


class TensorFile(TensorReader):
    """A file on disk, verified against its manifest once and then read by memory map, without a copy."""

    def __init__(self, folder: Path, entry: FileEntry):
        path = verified(folder, entry)
        super().__init__(entry.file, _parsed_header(entry.file, entry.bytes, read_head(path)))
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)

    def prefetch(self, names: Sequence[str]) -> None:
        """Have the tensors' pages read and mapped, so that a thread that reads ahead waits for the disk, and no other.

        torch touches the pages, for it lets the other threads run meanwhile.
        """
        runs = [(self.span(run[0]).begin, self.span(run[-1]).end) for run in self.runs(names)]
        for begin, end in runs if hasattr(mmap, "MADV_WILLNEED") else ():  # in one request, not page by page
            page = begin // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, end - page)
        for begin, end in runs:
            torch.from_numpy(self._bytes[begin : end : mmap.PAGESIZE]).sum()

    def _piece(self, name: str, begin: int, end: int) -> np.ndarray:
        return self._bytes[begin:end]


_verified: dict[tuple[str, str], tuple[int, int]] = {}


def verified(folder: Path, entry: FileEntry, again: bool = False) -> Path:
    """The path of a file whose size and SHA-256 are what the manifest says; hashed once per process and version.

    Args:
        folder (`Path`): the index.
        entry (`FileEntry`): what its manifest says of the file.
        again (`bool`, *optional*, defaults to `False`): hash it also where its size and time are those of a file that
            was hashed before.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: names the file.
    """
    try:
        path = inside(folder, entry.file)
        status = path.stat()
        if not path.is_file():
            raise IndexCorruptedError(entry.file, "it is not a file")
        if status.st_size != entry.bytes:
            raise IndexCorruptedError(entry.file, f"it has {status.st_size} bytes, the manifest says {entry.bytes}")
        if again or _verified.get((str(path.resolve()), entry.sha256)) != (status.st_size, status.st_mtime_ns):
            _verified.pop((str(path.resolve()), entry.sha256), None)
            held, said = file_sha256(path), entry.sha256
            if held != said:
                raise IndexCorruptedError(
                    entry.file, f"its SHA-256 is {held[:12]}..., the manifest says {said[:12]}..."
                )
            _remember(path, entry)
    except FileNotFoundError:
        raise IndexCorruptedError(entry.file, "it is missing") from None
    except (OSError, RuntimeError) as error:  # a link to itself, a name too long, a file where a folder should be
        raise IndexCorruptedError(entry.file, f"it cannot be opened or read ({error})") from None
    return path


def _remember(path: Path, entry: FileEntry) -> None:
    status = path.stat()
    _verified[str(path.resolve()), entry.sha256] = (status.st_size, status.st_mtime_ns)


def sync(path: Path) -> None:
    """Have the system bring a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
