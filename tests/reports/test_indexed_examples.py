"""An index as a sequence of its examples."""

import pyarrow.parquet as pq
import pytest
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import IndexCorruptedError
from lorif_hf.reports import indexed_examples
from lorif_hf.storage import examples as tables


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rows = make_rows(12).add_column("source", ["wiki", None, "news"] * 4)
    folder = tmp_path_factory.mktemp("examples") / "index"
    return InfluenceIndex.build(make_gpt2(), rows, folder, config=InfluenceConfig(shard_size=5))


def test_places_slices_and_iteration_give_examples(index):
    every = index.examples(list(range(12)))
    assert list(index) == every and index[3] == every[3] and index[-1] == every[-1] and len(index) == 12
    assert index[2:5] == every[2:5] and index[::-4] == every[::-4] and index[12:] == []
    view = index.select([1, 4, 6, 11])
    assert [example["row"] for example in view] == [1, 4, 6, 11] == [view[place]["row"] for place in range(4)]
    assert [example["row"] for example in view[-2:]] == [6, 11]
    with pytest.raises(IndexError):
        view[4]
    with pytest.raises(TypeError, match=r"takes a row number or a slice, got 'text'; of a list of rows, examples\(\)"):
        index["text"]


def test_iteration_reads_in_blocks(index, monkeypatch):
    monkeypatch.setattr(indexed_examples, "ROW_GROUP", 4)
    calls, read = [], indexed_examples.read_examples

    def counted(store, manifest, rows):
        calls.append(list(rows))
        return read(store, manifest, rows)

    monkeypatch.setattr(indexed_examples, "read_examples", counted)
    assert [example["row"] for example in index] == list(range(12))
    assert calls == [[0, 1, 2, 3], [4], [5, 6, 7, 8], [9], [10, 11]]
    calls.clear()
    assert next(iter(index))["row"] == 0 and len(calls) == 1


def test_tables_hold_all_columns(index):
    frame, table = index.to_pandas(), index.to_dataset()
    assert table.to_list() == list(index) and list(frame.columns) == table.column_names == list(index[0])
    assert frame["source"].isna().sum() == 4 and frame["row"].tolist() == list(range(12))
    view = index.select([3, 5])
    assert view.to_pandas()["row"].tolist() == view.to_dataset()["row"][:] == [3, 5]
    assert view.self_influence().tolist() == frame["self_influence"].tolist()[3:6:2]


def test_a_text_that_repeats_itself_is_held_once_and_written_out_never(index, monkeypatch, tmp_path):
    shard = index.manifest.examples[0]
    table = pq.read_table(index.path / shard.file)
    assert table.num_rows == 5
    monkeypatch.setattr(tables, "_UNPACKED_ANYWAY", 10)
    monkeypatch.setattr(tables, "_MOST_UNPACKED", 0.001)
    with pytest.raises(IndexCorruptedError, match="its texts repeat themselves beyond all memory"):
        tables.table_of(index._store, index.manifest, [{"row": 0, "text": "x" * 1000}])
