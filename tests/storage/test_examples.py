import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorif_hf.errors import IndexCorruptedError
from lorif_hf.storage import examples, files
from lorif_hf.storage.examples import (
    SCHEMA,
    check_examples,
    read_column,
    read_documents,
    read_examples,
    write_examples,
)
from lorif_hf.storage.files import file_entry
from lorif_hf.storage.layout import Manifest, Shard, TensorEntry, example_file
from lorif_hf.storage.store import LocalStore


SIZES = [7, 1, 12]


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    monkeypatch.setattr(examples, "ROW_GROUP", 3)
    monkeypatch.setattr(files, "_verified", {})


def columns_of(start, rows):
    row_ids = range(start, start + rows)
    return {
        "row": list(row_ids),
        "example_id": [None if i % 5 == 0 else f"id-{i}" for i in row_ids],
        "text": [f"text {i} é 你好 🙂" for i in row_ids],
        "num_tokens": [i * 10 for i in row_ids],
        "loss": [i / 7 for i in row_ids],
        "self_influence": [i / 3 for i in row_ids],
    }


def expected_row(i):
    return {name: column[0] for name, column in columns_of(i, 1).items()}


def manifest_of(folder, sizes):
    shards, start = [], 0
    for i, rows in enumerate(sizes):
        entry = file_entry(folder, example_file(i))
        shards.append(Shard(entry.file, entry.bytes, entry.sha256, start, rows))
        start += rows
    return Manifest({}, "", {}, start, [], [], shards, TensorEntry("c", 0, "0" * 64, "0" * 64), "")


@pytest.fixture
def manifest(tmp_path):
    for i, rows in enumerate(SIZES):
        write_examples(tmp_path / example_file(i), columns_of(sum(SIZES[:i]), rows))
    return manifest_of(tmp_path, SIZES)


def test_a_shard_has_several_row_groups(tmp_path, manifest):
    with pq.ParquetFile(tmp_path / manifest.examples[2].file) as file:
        assert file.num_row_groups == 4 and file.metadata.num_rows == 12


@pytest.mark.parametrize("seed", range(10))
def test_rows_come_back_in_the_order_asked_also_twice(tmp_path, manifest, seed):
    chooser = random.Random(seed)
    rows = [chooser.randrange(sum(SIZES)) for _ in range(chooser.randint(1, 40))]
    assert read_examples(LocalStore(tmp_path), manifest, rows) == [expected_row(i) for i in rows]


@pytest.mark.parametrize("rows", [[], [0], [19], [6, 7, 8], [2, 3], list(range(20)), list(range(19, -1, -1)), [7] * 9])
def test_rows_at_the_edges_of_shards_and_row_groups(tmp_path, manifest, rows):
    assert read_examples(LocalStore(tmp_path), manifest, rows) == [expected_row(i) for i in rows]
    assert read_examples(LocalStore(tmp_path), manifest, np.array(rows, dtype=np.int64)) == [
        expected_row(i) for i in rows
    ]


def test_only_the_files_that_hold_the_rows_are_read(tmp_path, manifest):
    (tmp_path / example_file(0)).unlink()
    assert read_examples(LocalStore(tmp_path), manifest, [8]) == [expected_row(8)]
    with pytest.raises(IndexCorruptedError, match=f"{example_file(0)}: it is missing"):
        read_examples(LocalStore(tmp_path), manifest, [8, 6])


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_column_is_whole_and_in_row_order(tmp_path, manifest, name):
    assert read_column(LocalStore(tmp_path), manifest, name).tolist() == columns_of(0, 20)[name]


def test_a_whole_table_is_checked_row_group_by_row_group(tmp_path, manifest):
    for shard in manifest.examples:
        check_examples(LocalStore(tmp_path), shard)


@pytest.mark.parametrize("row", range(7))
@pytest.mark.parametrize(
    "column, value", [("loss", float("nan")), ("self_influence", None), ("row", 99), ("row", None)]
)
def test_a_wrong_number_is_found_in_every_row(tmp_path, row, column, value):
    columns = columns_of(0, 7)
    columns[column][row] = value
    write_examples(tmp_path / example_file(0), columns)
    with pytest.raises(IndexCorruptedError, match=f"{example_file(0)}: row {row} calls itself"):
        check_examples(LocalStore(tmp_path), manifest_of(tmp_path, [7]).examples[0])


def test_no_text_is_kept_apart_from_an_empty_one(tmp_path):
    write_examples(tmp_path / example_file(0), {**columns_of(0, 2), "text": [None, ""]})
    first, second = read_examples(LocalStore(tmp_path), manifest_of(tmp_path, [2]), [0, 1])
    assert (first["text"], second["text"]) == (None, "")


@pytest.mark.parametrize("column", ["loss", "self_influence", "num_tokens", "row"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 777])
def test_numbers_that_no_build_writes_are_refused(tmp_path, column, value):
    if (value == 777 and column != "row") or (column in ("row", "num_tokens") and isinstance(value, float)):
        pytest.skip("a number that the column may hold, or cannot")
    columns = columns_of(0, 2)
    columns[column] = [value, columns[column][1]]
    write_examples(tmp_path / example_file(0), columns)
    manifest = manifest_of(tmp_path, [2])
    with pytest.raises(IndexCorruptedError, match="row 0 calls itself .* or holds no finite numbers"):
        read_examples(LocalStore(tmp_path), manifest, [0])
    assert read_examples(LocalStore(tmp_path), manifest, [1]) == [expected_row(1)]


def packed(start, rows):
    """Documents of four tokens, two in each row of the dataset; some of them are pieces of a known one."""
    row_ids = range(start, start + rows)
    places = {"source_row": [i // 2 for i in row_ids], "start": [i % 2 * 4 for i in row_ids]}
    numbers = [None if i % 3 == 0 else i // 3 for i in row_ids]
    return {**columns_of(start, rows), **places, "stop": [i % 2 * 4 + 4 for i in row_ids], "document": numbers}


def test_documents_of_packed_rows_stand_beside_plain_rows(tmp_path):
    write_examples(tmp_path / example_file(0), columns_of(0, 4))
    write_examples(tmp_path / example_file(1), packed(4, 4))
    manifest, store = manifest_of(tmp_path, [4, 4]), LocalStore(tmp_path)
    expected = {name: column[1] for name, column in packed(4, 4).items()}
    assert read_examples(store, manifest, [1, 5]) == [expected_row(1), expected]
    np.testing.assert_array_equal(read_documents(store, manifest), [np.nan] * 4 + [1, 1, np.nan, 2])
    assert read_column(store, manifest, "row").tolist() == list(range(8))
    for shard in manifest.examples:
        check_examples(store, shard)


@pytest.mark.parametrize(
    "column, value",
    [("source_row", -1), ("source_row", None), ("start", -1), ("start", 8), ("stop", None), ("document", -1)],
)
def test_a_document_that_is_nowhere_is_refused(tmp_path, column, value):
    columns = packed(0, 4)
    columns[column][1] = value
    write_examples(tmp_path / example_file(0), columns)
    manifest = manifest_of(tmp_path, [4])
    with pytest.raises(IndexCorruptedError, match=r"row 1 is tokens .* to .* of row .* of its dataset, document"):
        read_examples(LocalStore(tmp_path), manifest, [1])
    with pytest.raises(IndexCorruptedError, match=r"row 1 is tokens .* to .* of row .* of its dataset, document"):
        check_examples(LocalStore(tmp_path), manifest.examples[0])
    assert read_examples(LocalStore(tmp_path), manifest, [2])[0]["start"] == 0


def test_equal_columns_give_equal_bytes(tmp_path):
    columns = columns_of(0, 10)
    write_examples(tmp_path / "a", columns)
    write_examples(tmp_path / "b", dict(reversed(columns.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_columns_may_be_arrays(tmp_path):
    columns = {name: np.array(column, dtype=object) for name, column in columns_of(0, 5).items()}
    columns["row"], columns["loss"] = np.arange(5), np.arange(5) / 7
    write_examples(tmp_path / example_file(0), columns)
    assert read_examples(LocalStore(tmp_path), manifest_of(tmp_path, [5]), [4, 0]) == [
        expected_row(4),
        expected_row(0),
    ]


@pytest.mark.parametrize("problem", ["a short column", "a wrong type", "a missing column"])
def test_columns_that_make_no_table_leave_no_file(tmp_path, problem):
    columns = columns_of(0, 3)
    if problem == "a missing column":
        del columns["loss"]
    else:
        columns["loss"] = [1.0] if problem == "a short column" else ["a", "b", "c"]
    with pytest.raises((pa.ArrowInvalid, KeyError)):
        write_examples(tmp_path / "a", columns)
    assert list(tmp_path.iterdir()) == []


def table(rows=4):
    return pa.table(columns_of(0, rows), schema=SCHEMA)


WRONG_TABLES = {
    "a missing column": table().drop_columns(["loss"]),
    "another column": table().append_column("score", pa.array(range(4))),
    "a renamed column": table().rename_columns(["index", *SCHEMA.names[1:]]),
    "another order": table().select(list(reversed(SCHEMA.names))),
    "another type": table().set_column(3, "num_tokens", pa.array(range(4), pa.int32())),
    "a row too few": table(3),
    "a row too many": table(5),
    "no row": table(0),
}


@pytest.mark.parametrize("wrong", WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_a_table_of_another_kind_is_refused(tmp_path, wrong):
    (tmp_path / "data").mkdir()
    pq.write_table(wrong, tmp_path / example_file(0))
    manifest = manifest_of(tmp_path, [4])
    for read in (
        lambda: read_examples(LocalStore(tmp_path), manifest, [1]),
        lambda: read_column(LocalStore(tmp_path), manifest, "text"),
    ):
        with pytest.raises(
            IndexCorruptedError, match=rf"it has {len(wrong)} rows of .*; expected 4 of row, example_id"
        ):
            read()


GARBAGE = {
    "empty": b"",
    "text": b"<html>404</html>",
    "only the magic": b"PAR1PAR1",
    "no footer": b"PAR1" + b"\0" * 100,
    "a footer beyond the file": b"PAR1" + b"\0" * 100 + b"\xff\xff\xff\x7fPAR1",
    "a footer of noise": b"PAR1" + b"\xff" * 100 + (50).to_bytes(4, "little") + b"PAR1",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_a_file_that_is_no_parquet_is_named(tmp_path, data):
    (tmp_path / "data").mkdir()
    (tmp_path / example_file(0)).write_bytes(data)
    with pytest.raises(IndexCorruptedError, match=f"{example_file(0)}: it is no Parquet file"):
        read_examples(LocalStore(tmp_path), manifest_of(tmp_path, [4]), [0])


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"\0"], ids=["truncated", "appended"])
def test_a_damaged_file_is_named(tmp_path, manifest, damage):
    path = tmp_path / example_file(1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IndexCorruptedError, match=rf"{example_file(1)}: it has \d+ bytes, the manifest says"):
        read_examples(LocalStore(tmp_path), manifest, [7])
