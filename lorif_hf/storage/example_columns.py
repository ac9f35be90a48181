"""The columns of an example table: those that every index has, and the owner's own."""

from collections.abc import Iterator, Mapping

import pyarrow as pa


NUMBERS = ("num_tokens", "loss", "self_influence")
PLACES = ("source_row", "start", "stop")  # of a document in the dataset that packs it
DOCUMENT = "document"

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("example_id", pa.string()),
        ("text", pa.string()),
        ("num_tokens", pa.int64()),
        ("loss", pa.float64()),
        ("self_influence", pa.float64()),
    ]
)

PACKED_SCHEMA = pa.schema([*SCHEMA, *((name, pa.int64()) for name in (*PLACES, DOCUMENT))])
"""Of the documents of a packed dataset."""

KINDS = {"string": pa.string(), "bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64()}
"""What a column of the owner's may hold. Values may be absent; numbers are finite."""

MOST_OWNED = 64
"""Columns of the owner's that a table may have."""

LONGEST_NAME = 100
"""Characters of their names."""

_OF_RESULTS = {"query", "query_id", "token", "token_text", "rank", "score", "z", "copies", "pieces"}
RESERVED = {*PACKED_SCHEMA.names, *_OF_RESULTS}
"""Names that a column of the owner's cannot have: those of every table, and of a result's."""


def is_owned_name(name: object) -> bool:
    """Whether a column of the owner's may be called this."""
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable() and name not in RESERVED


def owned_fields(owned: Mapping[str, str]) -> Iterator[pa.Field]:
    """The owner's columns, by name and what they hold, as a table has them."""
    for name, kind in owned.items():
        yield pa.field(name, KINDS[kind])


def is_example_schema(schema: pa.Schema) -> bool:
    """Whether a file's columns are those of an example table, whoever wrote it."""
    names = schema.names
    base = next((base for base in (PACKED_SCHEMA, SCHEMA) if names[: len(base)] == base.names), None)
    if base is None or not pa.schema(list(schema)[: len(base)]).equals(base):
        return False
    owned = list(schema)[len(base) :]
    return (
        len(owned) <= MOST_OWNED
        and len(set(names)) == len(names)
        and all(is_owned_name(field.name) and field.type in KINDS.values() for field in owned)
    )
