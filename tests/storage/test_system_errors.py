"""What the system says, as our own errors: simulated number by number, and asked of the system itself."""

import errno
import os
import re
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from lorif_hf.errors import DiskFullError, LorifError, QueryError, StorageError
from lorif_hf.storage.files import write_atomically
from lorif_hf.storage.system_errors import system_errors


def in_python(number):
    return OSError(number, os.strerror(number))


def in_rust(number):
    return SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")


def anywhere(number):
    return Exception(f"{os.strerror(number)} (os error {number})")  # as tokenizers raises it


@pytest.mark.parametrize("told", [in_python, in_rust, anywhere])
@pytest.mark.parametrize(
    "number, message, way_out",
    [
        (errno.ENOSPC, "The disk is full", "make room"),
        (errno.EDQUOT, "Your quota of the disk is used up", "make room"),
        (errno.EFBIG, "The file is larger than the file system or `ulimit -f` allows", "raise the limit"),
    ],
)
def test_no_room_names_the_file_and_the_way_out(tmp_path, told, number, message, way_out):
    path = tmp_path / "factors-00003"
    expected = f"{message}: {path} could not be written. What was finished before it is kept; {way_out} and call again"
    with pytest.raises(DiskFullError, match=re.escape(expected)) as caught, system_errors(path):
        raise told(number)
    assert isinstance(caught.value.__cause__, Exception)


@pytest.mark.parametrize("told", [in_python, in_rust, anywhere])
@pytest.mark.parametrize(
    "number, message",
    [
        (errno.EROFS, "cannot be written: the disk is mounted read-only"),
        (errno.EACCES, "cannot be written: this user may not write there"),
        (errno.EPERM, "cannot be written: this user may not write there"),
        (errno.EIO, "could not be written: Input/output error"),
        (errno.ESTALE, "could not be written: Stale file handle"),
        (errno.ENOTDIR, "could not be written: Not a directory"),
        (errno.ENOENT, "could not be written: No such file or directory"),
        (errno.EMFILE, "could not be written: Too many open files"),
    ],
)
def test_what_the_system_refuses_names_the_file(tmp_path, told, number, message):
    with pytest.raises(StorageError, match=f"{tmp_path} {message}.*kept.* choose another folder") as caught:
        with system_errors(tmp_path):
            raise told(number)
    assert not isinstance(caught.value, DiskFullError)


@pytest.mark.parametrize(
    "error", [QueryError("x"), ValueError("(os error)"), KeyboardInterrupt(), OSError("no number")]
)
def test_what_the_system_did_not_say_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, system_errors(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_what_the_system_says_of_a_full_disk_is_understood(tmp_path):
    """The same error from a real device, by Python's own writes."""

    def write(temporary):
        with open("/dev/full", "wb") as device:
            device.write(b"0" * 100_000)

    with pytest.raises(DiskFullError, match="could not be written") as caught:
        write_atomically(tmp_path / "file", write)
    assert isinstance(caught.value.__cause__, OSError) and list(tmp_path.iterdir()) == []


WRITERS = """
import os, resource, sys
from pathlib import Path
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from lorif_hf.storage import examples, files, tokenizer
words = Tokenizer(models.WordLevel({f"word-{i}": i for i in range(20_000)}, unk_token="word-0"))
fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="word-0")
count = 20_000
columns = {"row": range(count), "example_id": map(str, range(count)), "text": [f"{i} {i * i}" for i in range(count)]}
columns |= {"num_tokens": range(count), "loss": torch.rand(count).tolist(), "self_influence": [0.0] * count}
folder = Path(sys.argv[1])
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for write in (
    lambda: files.write_bytes(folder / "bytes", bytes(400_000)),
    lambda: files.write_tensors(folder / "tensors", {"a": torch.rand(100_000)}),
    lambda: examples.write_examples(folder / "table", columns),
    lambda: tokenizer.save_processing_class(fast, folder / "tokenizer"),
):
    try:
        write()
    except Exception as error:
        print(type(error).__name__, error)
print(sorted(os.listdir(folder)))
"""


def errors_of_writers(folder, how):
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, str(folder), how], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's own numbers")
def test_every_writer_meets_a_limit_of_the_size_of_files(tmp_path):
    told = errors_of_writers(tmp_path, "limit")
    names = ["bytes", "tensors", "table", "tokenizer"]
    expected = "DiskFullError The file is larger than the file system or `ulimit -f` allows: {} could not be written."
    assert all(line.startswith(expected.format(tmp_path / name)) for line, name in zip(told, names, strict=False)), (
        told
    )
    assert told[4:] == ["[]"], "nothing of a file is left"


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "mounted"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(place)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("needs leave to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_every_writer_meets_a_full_disk(small_disk):
    told = errors_of_writers(small_disk, "disk")
    names = ["bytes", "tensors", "table", "tokenizer"]
    expected = "DiskFullError The disk is full: {} could not be written."
    for line, name in zip(told, names, strict=False):
        assert line.startswith(expected.format(small_disk / name))
    assert told[4:] == ["[]"], "nothing of a file is left"


def test_the_errors_are_caught_as_ours_and_as_pythons():
    assert issubclass(DiskFullError, StorageError) and issubclass(StorageError, (LorifError, OSError))
