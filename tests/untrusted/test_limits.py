"""An index from anybody cannot make a reader take memory, disk or time that its size does not explain."""

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tampering import MODULE, REPO, edit, query, sign, upload
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceIndex
from lorif_hf.errors import IndexCorruptedError, LorifError, QueryError
from lorif_hf.querying.scan import allocate
from lorif_hf.storage.examples import SCHEMA
from lorif_hf.storage.layout import MANIFEST


TABLE = "data/train-00002.parquet"


def rewrite(folder, table=None, **options):
    """Replace the second example table; by default its own rows."""
    table = pq.read_table(folder / TABLE) if table is None else table
    pq.write_table(table, folder / TABLE, **options)
    sign(folder)


def with_column(folder, name, values, kind):
    table = pq.read_table(folder / TABLE)
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))


# Memory. One process, limited to little more than what a good index needs, opens all of these.


def huge_numbers(folder, count=2**62):
    def change(values):
        values["num_examples"] = 4 + count
        for table in ("shards", "examples"):
            values[table][1]["rows"] = count
            values[table][2]["start"] = 2 + count

    edit(folder, change)


def huge_module(folder):
    edit(folder, lambda values: values["modules"][0].update(in_features=2**60, out_features=2**60, d1=2**60, d2=2**59))


def huge_projection(folder):
    """One that fits the model, were it one of 2**40 inputs."""
    edit(folder, lambda values: values["modules"][0].update(in_features=2**40, d1=2**39))


def huge_header(folder):
    path = folder / "factors/factors-00002.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    sign(folder)


def sparse_manifest(folder):
    with open(folder / MANIFEST, "r+b") as file:
        file.truncate(300 * 2**20)


def claimed_bomb(folder):
    """Few bytes that say truly that they unpack to 400 MB."""
    rewrite(
        folder, with_column(folder, "text", ["a" * 200_000_000, "b" * 200_000_000], pa.string()), compression="zstd"
    )


def dictionary_bomb(folder, count=1000, size=2_000_000):
    """A dictionary of one 2 MB text that 1,000 rows point to: 2 GB from a file of a few KB."""
    example = pq.read_table(folder / TABLE).slice(0, 1)
    table = pa.concat_tables([example] * count)
    text = pa.array(["a" * size], pa.string())
    column = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), text)
    table = table.set_column(table.schema.get_field_index("text"), pa.field("text", column.type), column)
    pq.write_table(table, folder / TABLE, compression="gzip", dictionary_pagesize_limit=2**30, store_schema=False)
    widen(folder, count)


def widen(folder, count):
    """Make the second shard one of `count` rows, factors and all."""
    from tampering import SHARD, edit_tensors

    def change(values):
        values["num_examples"] = 4 + count
        for table in ("shards", "examples"):
            values[table][1]["rows"] = count
            values[table][2]["start"] = 2 + count

    edit(folder, change)
    edit_tensors(
        folder, SHARD, lambda t: t.update({name: x[:1].repeat(count, 1, 1) * 9 for name, x in list(t.items())})
    )


HOSTILE = [huge_numbers, huge_module, huge_projection, huge_header, sparse_manifest, claimed_bomb, dictionary_bomb]

MEASURE = """
import resource, sys, time
sys.path.insert(0, {support!r})
from tiny import make_gpt2, make_rows
from lorif_hf import InfluenceIndex
from lorif_hf.errors import LorifError
def use(folder):
    index = InfluenceIndex.from_pretrained(folder)
    index.attribute(make_gpt2(), make_rows(1), top_k=6)
use({good!r})
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.monotonic()
try:
    use({folder!r})
    outcome = "fine"
except LorifError as error:
    outcome = "ours"
except BaseException as error:
    outcome = repr(error)[:200]
print(peak() - before, time.monotonic() - start, outcome)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tamper", HOSTILE, ids=lambda tamper: tamper.__name__)
def test_nothing_is_allocated_that_the_files_do_not_hold(built, folder, tamper, pytestconfig):
    tamper(folder)
    places = {"support": str(pytestconfig.rootpath / "tests" / "support"), "good": str(built), "folder": str(folder)}
    command = [sys.executable, "-c", MEASURE.format(**places)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    grown, seconds, outcome = ran.stdout.split(maxsplit=2)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    print(f"{tamper.__name__}: an index of {size / 1e6:.1f} MB took {int(grown) / 1e6:.0f} MB, {seconds} s: {outcome}")
    assert outcome.strip() == "ours" or (tamper is dictionary_bomb and outcome.strip() == "fine")
    assert int(grown) < 150e6 and float(seconds) < 30


@pytest.mark.parametrize("count", [10**9, 10**12, 2**61, 2**62, 2**63 - 5])
@pytest.mark.parametrize("queries", [1, 4])
def test_dense_scores_of_impossibly_many_rows_are_our_error(folder, count, queries):
    huge_numbers(folder, count - 4)
    with pytest.raises((IndexCorruptedError, QueryError)):
        InfluenceIndex.from_pretrained(folder).scores(make_gpt2(), make_rows(queries))
    with pytest.raises(QueryError, match="No room for scores of shape"):
        allocate((queries, 2**50 + count))


@pytest.mark.parametrize("way", ["examples", "self_influence", "select", "verify"])
def test_impossibly_many_rows_are_our_error_every_way(folder, way):
    huge_numbers(folder)
    with pytest.raises(LorifError):
        index = InfluenceIndex.from_pretrained(folder)
        if way == "examples":
            index.examples([2**61])
        elif way == "select":
            query(index.select([5, 2**61]))
        else:
            getattr(index, way)()


# Time


@contextmanager
def at_most(seconds):
    """Interrupts even a regular expression, which looks for signals now and then."""

    def ring(number, frame):
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("pattern", ["(a+)+$", "((.+)+)+!", r"(?:(?:[a-z0-9._]+)+)+\Z!"])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_a_catastrophic_regular_expression_in_the_config_does_not_hang_a_query(folder, pattern, field):
    edit(folder, lambda values: values["config"].update({field: pattern}))
    with at_most(10):
        try:
            query(InfluenceIndex.from_pretrained(folder))
        except LorifError:
            pass


def test_a_manifest_of_many_small_values_is_refused_in_seconds(folder):
    (folder / MANIFEST).write_text('{"format_version": "1.0", "config": [' + "[]," * 3_000_000 + "[]]}")
    start = time.monotonic()
    with pytest.raises(LorifError):
        InfluenceIndex.from_pretrained(folder)
    assert time.monotonic() - start < 10


# Tables


def schema_without(name):
    return pa.schema([field for field in SCHEMA if field.name != name])


TABLES = {
    "a column less": lambda t: t.drop_columns(["loss"]),
    "a column more": lambda t: t.append_column("score", pa.array([1, 2])),  # the owner may have others
    "another name": lambda t: t.rename_columns(["row", "example_id", "evil", "num_tokens", "loss", "self_influence"]),
    "another order": lambda t: t.select(list(reversed(t.column_names))),
    "a row less": lambda t: t.slice(0, 1),
    "a row more": lambda t: pa.concat_tables([t, t.slice(0, 1)]),
    "text binary": lambda t: t.set_column(2, "text", pa.array([b"\xff", b"\x80"], pa.binary())),
    "text a list": lambda t: t.set_column(2, "text", pa.array([["a"], ["b"]])),
    "row a float": lambda t: t.set_column(0, "row", pa.array([1.5, 2.5])),
    "loss F32": lambda t: t.set_column(4, "loss", pa.array([1.5, 2.5], pa.float32())),
    "empty": lambda t: t.slice(0, 0),
    "no columns": lambda t: pa.table({}),
}


@pytest.mark.parametrize("change", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("streaming", [None, False, True])
def test_a_table_of_another_schema_is_refused(hub, folder, tmp_path, change, streaming):
    rewrite(folder, change(pq.read_table(folder / TABLE)))
    index = InfluenceIndex.from_pretrained(folder)
    if streaming is not None:
        upload(hub, folder)
        index = InfluenceIndex.from_pretrained(REPO, cache_dir=tmp_path / "cache", streaming=streaming)
    for use in (query, lambda index: index.self_influence(), lambda index: index.verify()):
        with pytest.raises(IndexCorruptedError, match="expected 2 of row, example_id") as caught:
            use(index)
        assert caught.value.file == TABLE


def test_text_that_is_not_utf8_is_our_error_or_shown(folder):
    table = pq.read_table(folder / TABLE)
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\x80"))
    rewrite(folder, table.set_column(2, "text", broken))
    with pytest.raises(IndexCorruptedError) as caught:
        query(InfluenceIndex.from_pretrained(folder))
    assert caught.value.file == TABLE


@pytest.mark.parametrize("name", ["row", "num_tokens", "loss", "self_influence", "text", "example_id"])
def test_missing_values_are_shown_or_refused(folder, name):
    rewrite(folder, with_column(folder, name, [None, None], SCHEMA.field(name).type))
    index = InfluenceIndex.from_pretrained(folder)
    try:
        assert "<table" in query(index)._repr_html_()
        assert len(index.self_influence()) == 6
    except LorifError:
        pass


def test_a_table_that_numbers_its_rows_otherwise_is_refused(folder):
    rewrite(folder, with_column(folder, "row", [777, 778], pa.int64()))
    with pytest.raises(IndexCorruptedError, match="row 2 calls itself 777"):
        query(InfluenceIndex.from_pretrained(folder))


@pytest.mark.parametrize("offset", range(0, 400, 5))
def test_a_table_damaged_and_signed_is_our_error(folder, offset):
    """Every fifth byte from the end: the footer, which no checksum guards."""
    content = bytearray((folder / TABLE).read_bytes())
    content[-1 - offset] ^= 0x55
    (folder / TABLE).write_bytes(content)
    sign(folder)
    index = InfluenceIndex.from_pretrained(folder)
    for use in (query, lambda index: index.self_influence()):
        try:
            use(index)
        except LorifError:
            pass


@pytest.mark.parametrize("offset", range(0, 400, 40))
def test_a_shard_damaged_and_signed_is_our_error_or_a_number(folder, offset):
    from tampering import SHARD

    content = bytearray((folder / SHARD).read_bytes())
    content[offset] ^= 0x55
    (folder / SHARD).write_bytes(content)
    sign(folder)
    try:
        query(InfluenceIndex.from_pretrained(folder))
    except LorifError:
        pass
    assert MODULE in json.dumps(json.loads((folder / MANIFEST).read_text()))
