"""Which columns a table of examples may have."""

import pyarrow as pa
import pytest

from lorif_hf.storage.example_columns import (
    LONGEST_NAME,
    MOST_OWNED,
    PACKED_SCHEMA,
    RESERVED,
    SCHEMA,
    is_example_schema,
    is_owned_name,
    owned_fields,
)


@pytest.mark.parametrize("base", [SCHEMA, PACKED_SCHEMA], ids=["plain", "packed"])
def test_the_owners_columns_stand_behind_those_of_every_table(base):
    owned = {"source": "string", "year": "int64", "toxicity": "float64", "ok": "bool", "名": "string"}
    assert is_example_schema(base) and is_example_schema(pa.schema([*base, *owned_fields(owned)]))
    many = {f"c{number}": "bool" for number in range(MOST_OWNED + 1)}
    assert not is_example_schema(pa.schema([*base, *owned_fields(many)]))
    for field in (
        pa.field("row", pa.int64()),
        pa.field("score", pa.float64()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("blob", pa.binary()),
        pa.field("small", pa.int32()),
        pa.field("a\x1bb", pa.string()),
    ):
        assert not is_example_schema(pa.schema([*base, field])), field
    assert not is_example_schema(pa.schema([*owned_fields(owned), *base]))
    assert not is_example_schema(pa.schema([*base, *owned_fields(owned), *owned_fields({"year": "bool"})]))


def test_names_that_mean_something_else_or_act_on_a_terminal_are_none():
    assert not any(map(is_owned_name, RESERVED))
    assert [name for name in ("source", "", "x" * LONGEST_NAME, "x" * 101, "a\nb", 7) if is_owned_name(name)] == [
        "source",
        "x" * LONGEST_NAME,
    ]
