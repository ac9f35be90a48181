"""What is written of each row at the end of a build."""

import pyarrow.parquet as pq
import torch
from tiny import make_gpt2, make_rows

from lorif_hf.building.example_tables import ACTIVE, silent_layers, write_example_tables
from lorif_hf.building.owned_columns import OwnedColumns
from lorif_hf.recording.rows import TrainingRows
from lorif_hf.storage.layout import ModuleEntry
from lorif_hf.tasks import CausalLM


def test_a_table_for_each_shard(tmp_path):
    rows = TrainingRows(make_rows(5), make_gpt2(), CausalLM())
    ranges = [(0, 3), (3, 5)]
    tables = [
        {"losses": torch.arange(start, stop).double(), "num_tokens": torch.arange(start, stop) + 2}
        for start, stop in ranges
    ]
    shards = write_example_tables(tmp_path, rows, ranges, tables, torch.arange(5).double() / 2, OwnedColumns(rows))
    assert [(shard.start, shard.rows) for shard in shards] == [(0, 3), (3, 2)]
    second = pq.read_table(tmp_path / shards[1].file).to_pylist()
    assert second[0] == {
        "row": 3,
        "example_id": "row-3",
        "text": "text 3",
        "num_tokens": 5,
        "loss": 3.0,
        "self_influence": 1.5,
    }


def test_silent_layers_are_those_that_no_shard_speaks_of():
    entries = [ModuleEntry(name, "linear", 1, 1, 1, 1, "") for name in "abc"]
    tables = [{ACTIVE: torch.tensor(active, dtype=torch.uint8)} for active in ([1, 0, 0], [0, 0, 1])]
    assert silent_layers(tables, entries) == {"b": "its gradient is zero in every row"}
    nothing = [{ACTIVE: torch.zeros(3, dtype=torch.uint8)}]
    assert silent_layers(nothing, entries) == {}  # an index of nothing at all would be none
