"""Streams as rows with numbers: what comes out, how often they are read, and which are refused."""

import functools
import random

import numpy as np
import pytest
import torch
from datasets import Dataset, interleave_datasets
from datasets import IterableDataset as HubStream
from streams import Counted, Loose, OneShot, Sharded, Sized
from torch.utils.data import DataLoader, IterableDataset

from lorif_hf.errors import DatasetError
from lorif_hf.recording.fingerprint import by_value
from lorif_hf.recording.row_access import read_rows, readable
from lorif_hf.recording.streamed_rows import StreamedRows, is_stream, numbered, trained_rows


def table(count=40):
    return Dataset.from_dict(
        {"input_ids": [[i, i + 1] for i in range(count)], "text": [f"text {i}" for i in range(count)]}
    )


def streams():
    """Streams as `datasets` has them."""
    shards, other = table().to_iterable_dataset(num_shards=4), table(30).to_iterable_dataset()
    return {
        "one shard": other,
        "four shards": shards,
        "shuffled in a buffer": shards.shuffle(seed=3, buffer_size=7),
        "interleaved": interleave_datasets([shards, other], probabilities=[0.3, 0.7], seed=5),
        "mapped, filtered and cut": shards.map(lambda row: {"labels": row["input_ids"]})
        .filter(lambda row: row["input_ids"][0] % 3)
        .skip(2)
        .take(20),
        "from a function": HubStream.from_generator(lambda: ({"input_ids": [i]} for i in range(50))),
        "split among nodes": shards.shard(2, 1),
    }


@pytest.mark.parametrize("name", streams())
def test_row_i_is_item_i_of_the_stream(name):
    stream = streams()[name]
    expected = list(stream)
    rows = numbered(stream, len(expected))
    assert readable(rows) == (rows, len(expected))
    assert read_rows(rows, range(len(expected))) == expected
    assert read_rows(rows, [9, 2, 5]) == [expected[9], expected[2], expected[5]]
    assert len(numbered(stream, 4)) == 4 and read_rows(numbered(stream, 4), range(4)) == expected[:4]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_is_that_of_the_first_epoch_and_the_epoch_is_what_it_was(workers):
    stream = table().to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=7)
    expected = [row for batch in DataLoader(stream, 3, num_workers=workers, collate_fn=list) for row in batch]
    stream.set_epoch(2)
    assert list(stream) != expected
    rows = trained_rows(stream, 3, 5, workers)
    assert read_rows(rows, range(15)) == expected[:15]
    rows.close()
    assert stream.epoch == 2


def test_a_stream_is_read_forward():
    stream = Counted(1000)
    rows = numbered(stream, 900)
    assert stream.read == [256, 32], "its first rows, and some of them again"
    for start in range(0, 900, 50):
        read_rows(rows, range(start, start + 50))
        read_rows(rows, [start + 7, start + 3])
    assert stream.read[2:] == [900]
    read_rows(rows, [0, 255, 700, 650])
    assert stream.read[2:] == [900], "what was held and what came last"
    read_rows(rows, [300, 600])
    assert stream.read[2:] == [900, 601]


def test_what_a_worker_reads_is_numbered_as_it_comes():
    """Two shards side by side, in batches of 4; the last batches are smaller, and the next epoch begins again."""
    whole = [{"input_ids": [i]} for i in [*range(0, 8, 2), *range(1, 8, 2), 8, 9]]
    stream = Sharded(10)
    for batches, expected in ((2, whole[:8]), (3, whole[:9]), (4, whole), (7, whole)):
        rows = trained_rows(stream, 4, batches, workers=2)
        assert rows.reads_to(0, len(rows)) == len(expected) and read_rows(rows, range(len(rows))) == expected
    assert read_rows(trained_rows(stream, 4, 7, workers=2, examples_seen=9), range(9)) == whole[:9]


def test_a_stream_that_may_end_earlier_says_where_it_ended():
    short = trained_rows(Counted(10), 4, 5)
    assert len(short) == 10 and not short.at_most, "the first rows show it"
    rows = trained_rows(Counted(500), 4, 200)
    assert len(rows) == 800 and rows.reads_to(400, 450) == 800
    assert rows.reads_to(450, 550) == 500 and len(rows) == 500
    assert len(trained_rows(Sized(500), 4, 200)) == 500


@pytest.mark.parametrize("count", [3, 300])
def test_a_stream_that_ends_too_early_is_refused(count):
    message = rf"The stream ended after {count} rows, and 400 were to be read. Pass examples_seen={count}"
    with pytest.raises(DatasetError, match=message):
        read_rows(numbered(Counted(count), 400), range(400))


def test_an_empty_stream_is_refused():
    with pytest.raises(DatasetError, match="The stream is empty, and 4 rows were to be read"):
        numbered(Counted(0), 4)
    assert len(trained_rows(Counted(0), 4, 2)) == 0


class Drawn(IterableDataset):
    """Rows whose order, or values, come from somewhere else each time."""

    def __init__(self, draw, count=20):
        self.draw, self.count = draw, count

    def __iter__(self):
        order = list(range(self.count))
        self.draw(order)
        yield from ({"input_ids": [i]} for i in order)


GENERATOR = np.random.default_rng(0)


SHUFFLES = {
    "random": random.shuffle,
    "numpy": np.random.shuffle,
    "a generator": GENERATOR.shuffle,
    "an own generator": random.Random(3).shuffle,
}
# Two rows that the system shuffles have one order by chance.
ANEW = [(2, name) for name in SHUFFLES] + [(20, name) for name in (*SHUFFLES, "the system")]


@pytest.mark.parametrize(("count", "name"), ANEW)
def test_a_stream_that_shuffles_anew_is_refused(count, name):
    draw = SHUFFLES.get(name, random.SystemRandom().shuffle)
    state = random.getstate(), torch.get_rng_state().tolist(), by_value(np.random.get_state()[1])
    with pytest.raises(DatasetError, match=r"is a Drawn that is another one each time it is read: row \d+ differs"):
        numbered(Drawn(draw, count), count)
    assert state == (random.getstate(), torch.get_rng_state().tolist(), by_value(np.random.get_state()[1]))


def test_a_stream_that_draws_its_values_is_refused():
    drawn = HubStream.from_generator(lambda: ({"input_ids": [random.randrange(10**6)]} for _ in range(9)))
    with pytest.raises(DatasetError, match="row 0 differs between two readings.*data_collator"):
        numbered(drawn, 9)


def test_a_stream_that_shuffles_with_its_own_seed_is_taken_and_left_as_it_was():
    class Seeded(IterableDataset):
        def __init__(self):
            self.random = random.Random(5)

        def __iter__(self):
            self.random.seed(1)
            order = list(range(500))
            self.random.shuffle(order)
            yield from ({"input_ids": [i]} for i in order)

    stream = Seeded()
    state = stream.random.getstate()
    rows = numbered(stream, 500)
    assert stream.random.getstate() == state
    assert read_rows(rows, range(500)) == list(stream)


def test_a_row_that_changes_later_is_named():
    stream = Counted(600)
    rows = numbered(stream, 600)
    read_rows(rows, range(600))
    stream.changed = 300
    with pytest.raises(DatasetError, match="Row 300 of the stream is another than when it was read before"):
        read_rows(rows, range(600))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter([{"a": 1}]), "is a list_iterator, which is used up once it is read.*begins anew each time"),
        (({"a": i} for i in range(3)), "is a generator, which is used up"),
        (map(dict, [[]]), "is a map, which is used up"),
        (OneShot(range(9)), "is a OneShot that goes on where it stopped"),
        (Loose(range(9)), "is a Loose that is (used up once it is read|another one each time)"),
        (Loose(range(400)), "is a Loose that is another one each time it is read: row 0 differs"),
        (DataLoader(table(3)), r"is a DataLoader, whose items are batches, not rows. Pass loader.dataset"),
    ],
    ids=["iterator", "generator", "map", "one iterator", "short", "long", "loader"],
)
def test_what_cannot_be_read_twice_is_refused(dataset, message):
    with pytest.raises(DatasetError, match=message):
        numbered(dataset, 5)


def test_the_number_of_rows_must_be_known():
    with pytest.raises(DatasetError, match=r"is a IterableDataset, a stream without a length.*Pass examples_seen="):
        numbered(table().to_iterable_dataset())
    assert len(numbered(Sized(7))) == 7 and len(numbered(Sized(7), 3)) == 3
    with pytest.raises(DatasetError, match="The stream ended after 7 rows, and 9 were to be read"):
        numbered(Sized(7), 9)
    for wrong in (0, -1, 2.0, True, "4"):
        with pytest.raises(DatasetError, match=f"examples_seen must be an integer of at least 1, got {wrong!r}"):
            numbered(Counted(7), wrong)
    with pytest.raises(DatasetError, match=r"examples_seen is for streams, and the dataset is a Dataset.*select"):
        numbered(table(), 5)


def test_what_is_a_stream():
    for dataset in (table(), [{}], {}, {1}, "text", np.ones(3), numbered(Counted(3), 3), Dataset.from_dict({})):
        assert not is_stream(dataset) and numbered(dataset) is dataset
    for dataset in (Counted(3), Sized(3), table().to_iterable_dataset(), iter([]), zip([], strict=True)):
        assert is_stream(dataset)


@pytest.mark.parametrize("row", [2, 280])
def test_a_row_that_cannot_be_read_is_named(row):
    stream = Counted(400, fails=row)
    with pytest.raises(DatasetError, match=rf"Row {row} of the dataset could not be read \(ValueError: broken\)"):
        read_rows(numbered(stream, 400), range(400))


def test_what_a_stream_knows_of_itself():
    assert numbered(table().to_iterable_dataset(), 3).info is not None
    assert numbered(Counted(3), 3).info is None, "its own attribute of that name is another thing"
    assert isinstance(numbered(functools.partial(Counted)(3), 3), StreamedRows)
