import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open

from lorif_hf.errors import IndexCorruptedError, StorageError
from lorif_hf.storage import files
from lorif_hf.storage.files import TensorFile, file_entry, parse_header, verified, write_atomically, write_tensors
from lorif_hf.storage.layout import FileEntry


NAME = "factors/x.safetensors"


@pytest.fixture(autouse=True)
def forget_verified_files(monkeypatch):
    monkeypatch.setattr(files, "_verified", {})


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(7, 3, 2, generator=generator, dtype=torch.float64)
    return {
        "f64": wide,
        "f32": wide.float(),
        "bf16": wide.bfloat16(),
        "f16": wide.half(),
        "i64": torch.randint(-(2**62), 2**62, (7, 5), generator=generator),
        "scalar": torch.tensor(3.25, dtype=torch.float64),
        "one row": wide[:1].float(),
        "no rows": torch.empty(0, 4),
        "no columns": torch.empty(7, 0),
        "not contiguous": wide.float().transpose(0, 2),
    }


@pytest.fixture
def written(tmp_path, tensors):
    write_tensors(tmp_path / NAME, tensors)
    return tmp_path


def test_reading_equals_safetensors_own_reader(written, tensors):
    file = TensorFile(written, file_entry(written, NAME))
    with safe_open(written / NAME, "pt") as reference:
        assert set(file.spans) == set(reference.keys()) == set(tensors)
        for name, tensor in tensors.items():
            found = file.read(name)
            assert found.dtype == tensor.dtype and found.shape == tensor.shape
            assert torch.equal(found, reference.get_tensor(name)) and torch.equal(found, tensor)


@pytest.mark.parametrize("name", ["f64", "f32", "bf16", "f16", "i64", "no columns"])
@pytest.mark.parametrize("start, stop", [(0, 7), (0, 1), (6, 7), (2, 5), (3, 3), (4, None), (5, 100), (7, 7)])
def test_a_range_of_rows_equals_a_slice(written, tensors, name, start, stop):
    found = TensorFile(written, file_entry(written, NAME)).read(name, start, stop)
    assert found.dtype == tensors[name].dtype and torch.equal(found, tensors[name][start:stop])


def test_changing_what_was_read_does_not_change_the_file(written, tensors):
    before = (written / NAME).read_bytes()
    file = TensorFile(written, file_entry(written, NAME))
    file.read("f32").zero_()
    del file
    assert (written / NAME).read_bytes() == before


def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path, tensors):
    write_tensors(tmp_path / "a", tensors)
    write_tensors(tmp_path / "b", dict(reversed(tensors.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_metadata_is_kept_and_is_no_tensor(tmp_path):
    write_tensors(tmp_path / "a", {"x": torch.ones(2)})
    expected = hashlib.sha256(torch.ones(2).numpy().tobytes()).hexdigest()
    with safe_open(tmp_path / "a", "pt") as reference:
        assert json.loads(reference.metadata()["sha256"]) == {"x": expected}
    assert TensorFile(tmp_path, file_entry(tmp_path, "a")).span("x").sha256 == expected
    assert list(TensorFile(tmp_path, file_entry(tmp_path, "a")).spans) == ["x"]


def test_a_tensor_that_is_not_there_is_named(written):
    with pytest.raises(IndexCorruptedError, match=rf"{NAME}: it has no tensor 'missing'"):
        TensorFile(written, file_entry(written, NAME)).read("missing")


@pytest.mark.parametrize("partly", [True, False], ids=["after some bytes", "before any byte"])
@pytest.mark.parametrize("old", [b"old", None], ids=["over an old file", "no file yet"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path, old, partly, error):
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    if old is not None:
        path.write_bytes(old)

    def fail(temporary):
        if partly:
            temporary.write_bytes(b"half of it")
        raise error("no space left")

    with pytest.raises(error, match="no space left"):
        write_atomically(path, fail)
    assert [file.name for file in path.parent.iterdir()] == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


def test_a_written_file_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for content in ("first and long", "second"):
        files.write_text(path, content)
        assert path.read_text() == content and list(path.parent.iterdir()) == [path]


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files.os, "fsync", lambda *_: order.append("sync"))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    files.write_text(tmp_path / "file", "x")
    assert order[:2] == ["sync", "rename"]


DAMAGES = {
    "truncated by one byte": lambda data: data[:-1],
    "truncated inside its header": lambda data: data[:30],
    "truncated to seven bytes": lambda data: data[:7],
    "empty": lambda data: b"",
    "a byte appended": lambda data: data + b"\0",
    "the header's length huge": lambda data: (2**63).to_bytes(8, "little") + data[8:],
    "the header a byte longer than the file": lambda data: (len(data) - 7).to_bytes(8, "little") + data[8:],
    "the header's length zero": lambda data: bytes(8) + data[8:],
    "the header not JSON": lambda data: data[:8] + b"x" + data[9:],
    "the header not UTF-8": lambda data: data[:10] + b"\xff\xfe" + data[12:],
    "another dtype": lambda data: data.replace(b'"F32"', b'"F33"', 1),
    "another shape": lambda data: data.replace(b'"shape":[7,5]', b'"shape":[9,5]', 1),
    "not safetensors": lambda data: b"<html>404</html>" * 20,
}


@pytest.mark.parametrize("vouched", [False, True], ids=["unnoticed by the manifest", "vouched for by the manifest"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named(written, damage, vouched):
    entry, data = file_entry(written, NAME), (written / NAME).read_bytes()
    assert damage(data) != data
    (written / NAME).write_bytes(damage(data))
    files._verified.clear()
    if vouched:
        entry = file_entry(written, NAME)
    with pytest.raises(IndexCorruptedError, match=rf"^{NAME}: .*restore or download it again, or rebuild") as caught:
        TensorFile(written, entry)
    assert caught.value.file == NAME


@pytest.mark.parametrize("where", [0, 8, 20, 0.5, -1], ids=str)
def test_one_flipped_byte_is_noticed(written, where):
    entry, data = file_entry(written, NAME), bytearray((written / NAME).read_bytes())
    data[int(where * len(data)) if isinstance(where, float) else where] ^= 1
    (written / NAME).write_bytes(data)
    files._verified.clear()
    with pytest.raises(IndexCorruptedError, match=r"its SHA-256 is [0-9a-f]{12}\.\.\., the manifest says"):
        TensorFile(written, entry)


def parse(header, data=16):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header("some/file", 8 + len(head) + data, len(head).to_bytes(8, "little") + head)


def item(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD_HEADERS = {
    "no dtype": {"a": {"shape": [4], "data_offsets": [0, 16]}},
    "an unknown dtype": {"a": item("F8_E4M3", (16,))},
    "a negative offset": {"a": item(offsets=(-16, 0))},
    "an offset that is a float": {"a": item(offsets=(0, 16.0))},
    "a negative extent": {"a": item(shape=(-2, -2))},
    "an extent that is true": {"a": item(shape=(4, True))},
    "a shape that is a number": {"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
    "a shape larger than the data": {"a": item(shape=(5,), offsets=(0, 20))},
    "a shape larger than its bytes": {"a": item(shape=(5,))},
    "a shape beyond 64 bits": {"a": item(shape=(2**40, 2**40))},
    "overlapping tensors": {"a": item(shape=(3,), offsets=(0, 12)), "b": item(shape=(2,), offsets=(8, 16))},
    "a hole": {"a": item(shape=(1,), offsets=(0, 4)), "b": item(shape=(2,), offsets=(8, 16))},
    "bytes left over": {"a": item(shape=(3,), offsets=(0, 12))},
    "nested without end": b"[" * 200_000,
    "an offset of 4300 digits": b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,' + b"9" * 4300 + b"]}}",
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_an_impossible_header_is_refused_before_anything_is_read(header):
    with pytest.raises(IndexCorruptedError, match=r"^some/file: "):
        parse(header)


def test_a_header_beyond_safetensors_own_limit_is_never_read():
    with pytest.raises(IndexCorruptedError, match=rf"^some/file: it has {2**40} bytes, its header claims {2**30}\."):
        files.header_length("some/file", 2**40, (2**30).to_bytes(8, "little"))


def test_tensors_may_be_declared_in_any_order():
    spans = parse({"b": item(shape=(2,), offsets=(8, 16)), "a": item("F64", (1,), (0, 8))})
    assert spans["b"].begin - spans["a"].begin == 8 and spans["a"].shape == (1,)


GONE = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a dangling link": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "in a folder that is a file": lambda path: (path.parent.rmdir(), path.parent.write_text("x")),
}


@pytest.mark.parametrize("change", GONE.values(), ids=GONE)
def test_a_file_that_is_no_longer_there_is_named(written, change):
    entry = file_entry(written, NAME)
    (written / NAME).unlink()
    change(written / NAME)
    size = (written / NAME).stat().st_size if (written / NAME).is_dir() else entry.bytes
    with pytest.raises(IndexCorruptedError, match=rf"^{NAME}: "):
        verified(written, FileEntry(NAME, size, entry.sha256))


def test_a_name_too_long_for_a_file_is_named(tmp_path):
    with pytest.raises(IndexCorruptedError, match=r"'aaaa.*is not a plain path"):
        verified(tmp_path, FileEntry("a" * 300, 1, "0" * 64))


def test_a_file_is_hashed_once_and_again_after_it_changed(written, monkeypatch):
    entry, hashed = file_entry(written, NAME), []
    files._verified.clear()
    real = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: hashed.append(path) or real(path))
    for _ in range(3):
        verified(written, entry)
    assert len(hashed) == 1
    data = bytearray((written / NAME).read_bytes())
    data[-1] ^= 1
    (written / NAME).write_bytes(data)
    os.utime(written / NAME, ns=(0, 0))
    with pytest.raises(IndexCorruptedError, match="SHA-256"):
        verified(written, entry)


def test_a_file_that_was_hashed_before_is_hashed_again_where_that_is_asked(written):
    """Also where neither its size nor its time tells of a change."""
    entry = file_entry(written, NAME)
    before = (written / NAME).stat()
    data = bytearray((written / NAME).read_bytes())
    data[-1] ^= 1
    (written / NAME).write_bytes(data)
    os.utime(written / NAME, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert verified(written, entry) == written / NAME
    for again in (True, False):  # and then nobody believes what was hashed before
        with pytest.raises(IndexCorruptedError, match="SHA-256"):
            verified(written, entry, again=again)


def test_two_threads_write_the_same_file_whole(tmp_path):
    """As two queries do that keep the same streamed tensor."""
    contents = [bytes([i]) * 200_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            list(pool.map(lambda content: files.write_bytes(tmp_path / "file", content), contents))
            assert (tmp_path / "file").read_bytes() in contents and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127])
def test_a_long_name_has_a_shorter_one_until_it_is_whole(tmp_path, name):
    files.write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_made_is_our_own_error(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(StorageError, match=f"{tmp_path}/x/y could not be written: (File exists|Not a directory)"):
        files.write_text(tmp_path / "x" / "y", "z")


def test_whatever_the_system_says_is_our_own_error_and_leaves_nothing(tmp_path):
    def write(temporary):
        temporary.write_bytes(b"half")
        raise OSError(5, "Input/output error")

    with pytest.raises(StorageError, match=f"{tmp_path}/file could not be written: Input/output error"):
        files.write_atomically(tmp_path / "file", write)
    assert list(tmp_path.iterdir()) == []
