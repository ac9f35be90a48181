"""Values as bytes: equal ones in two processes, whatever they are made of."""

import datetime
import decimal
import enum
import json
import pathlib
import uuid
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from PIL import Image
from processes import printed_twice

from lorif_hf.recording.fingerprint import by_value, row_bytes


class Plain:
    pass


class Speaking:
    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return f"Speaking({self.value})"


class Addressed(Speaking):
    def __repr__(self):
        return f"<Addressed {self.value} at {id(self):#x}>"


class Broken(Plain):
    def __repr__(self):
        raise RuntimeError("no")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Point:
    x: int
    owner: object = field(default_factory=Plain)


Pair = namedtuple("Pair", ["a", "b"])


FOLDER = pathlib.Path(__file__).parent


def image(mode="RGB", colour=3):
    return Image.new(mode, (3, 2), colour)


def circle():
    values = [1]
    values.append(values)
    return values


UTC = datetime.UTC
DIFFERENT = [
    # Values, each of which is another than the rest of its line.
    (lambda: 1, lambda: 2, lambda: 1.5, lambda: None, lambda: float("nan"), lambda: "1", lambda: [1]),
    (lambda: 2**80, lambda: 2**80 + 1, lambda: -(2**63)),
    (lambda: b"ab", lambda: bytearray(b"ac"), lambda: memoryview(b"ad")),
    (lambda: "\ud800", lambda: "\udfff", lambda: "?"),
    (lambda: np.arange(6).reshape(2, 3), lambda: np.arange(6).reshape(3, 2), lambda: np.arange(6)),
    (lambda: np.array([Plain(), 1], object), lambda: np.array([Plain(), 2], object)),
    (lambda: np.array("2026-01-01", "datetime64[ns]"), lambda: np.array("2026-01-02", "datetime64[ns]")),
    (lambda: torch.arange(3).bfloat16(), lambda: torch.arange(4).bfloat16(), lambda: torch.tensor(7)),
    (lambda: torch.eye(3).to_sparse(), lambda: torch.zeros(3, 3).to_sparse()),
    (lambda: torch.ones(2, device="meta"), lambda: torch.ones(3, device="meta")),
    (lambda: datetime.datetime(2026, 1, 1), lambda: datetime.datetime(2026, 1, 1, tzinfo=UTC), lambda: 20260101),
    (lambda: datetime.date(2026, 1, 1), lambda: datetime.time(1), lambda: datetime.timedelta(1)),
    (lambda: pandas.Timestamp("2026-01-01"), lambda: pandas.Timestamp("2026-01-02")),
    (lambda: decimal.Decimal("1.10"), lambda: decimal.Decimal("1.1"), lambda: Fraction(1, 3), lambda: 2j),
    (lambda: uuid.UUID(int=1), lambda: uuid.UUID(int=2), lambda: pathlib.PurePosixPath("/a"), lambda: range(3)),
    (lambda: Colour.RED, lambda: Colour.BLUE),
    (lambda: {"b": 1, "a": 2}, lambda: {"b": 1}, lambda: {"b": {"a": 2}}, lambda: UserDict(b=3)),
    (lambda: {1: "a", "x": 2}, lambda: {1: "a", "x": 3}, lambda: {(1, 2): 3}, lambda: {None: 1, 2: 1}),
    (lambda: {"alpha", "beta", "gamma"}, lambda: {"alpha", "beta"}, lambda: frozenset([1, "1"]), lambda: {(1, "a")}),
    (lambda: Pair(1, 2), lambda: Pair(1, 3)),
    (lambda: Point(1), lambda: Point(2), Plain, lambda: Speaking(1), lambda: Speaking(2)),
    (image, lambda: image(colour=4), lambda: image("L"), lambda: image("P"), lambda: image().resize((2, 3))),
    (lambda: pyarrow.array([1, 2]), lambda: pyarrow.array([1, 3]), lambda: pyarrow.scalar(5)),
    (lambda: pandas.Series([1, 2]), lambda: pandas.Series([1, 3])),
    (lambda: Addressed(1), Broken, lambda: Plain, lambda: torch.float32, lambda: by_value),
    (circle, lambda: [circle(), 1]),
    (lambda: slice(1, 2), lambda: ..., lambda: np.float32, lambda: np.dtype("f4"), lambda: torch.device("cpu")),
]


@pytest.mark.parametrize("line", range(len(DIFFERENT)))
def test_equal_values_have_equal_bytes_and_others_have_not(line):
    values = [by_value(make()) for make in DIFFERENT[line]]
    assert values == [by_value(make()) for make in DIFFERENT[line]]
    assert len(set(values)) == len(values)


def every_value():
    return json.dumps([by_value(make()).decode() for line in DIFFERENT for make in line])


def test_two_processes_have_the_same_bytes():
    printed = printed_twice("import test_fingerprint; print(test_fingerprint.every_value())", FOLDER)
    assert printed[0] == printed[1] and len(printed[0]) > 1000


@pytest.mark.parametrize(
    "alike",
    [
        [[1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), np.array([1, 2], np.int16), pyarrow.array([1, 2])],
        [1, np.int64(1), np.uint8(1), torch.tensor(1)],
        [True, np.bool_(True), torch.tensor(True)],
        [{"a": 1, "b": 2}, OrderedDict(b=2, a=1), UserDict(b=2, a=1)],
        [b"ab", bytearray(b"ab"), memoryview(b"ab")],
        [[[1.5], [2.5]], np.array([[1.5], [2.5]], np.float32), torch.tensor([[1.5], [2.5]]).half()],
    ],
    ids=lambda alike: type(alike[0]).__name__,
)
def test_the_same_numbers_are_the_same_in_whatever_they_lie(alike):
    assert len({by_value(value) for value in alike}) == 1


def test_what_an_address_alone_tells_apart_counts_by_its_class():
    assert by_value(Plain()) == by_value(Plain()) != by_value(Speaking(1))
    assert by_value(Addressed(1)) == by_value(Addressed(2))
    assert by_value([{"a": (Plain(), 1)}]) == by_value([{"a": (Plain(), 1)}])


def test_a_row_and_what_the_model_takes_of_it():
    row = {"text": "a", "input_ids": np.array([1, 2]), "when": datetime.date(2026, 1, 1)}
    whole, taken = row_bytes(row, {"input_ids", "labels"})
    assert whole == b'{"input_ids": [1, 2], "text": "a", "when": "2026-01-01"}'
    assert taken == b'{"input_ids": [1, 2]}'
    assert row_bytes({"input_ids": [1, 2]}, {"input_ids"}) == (taken, taken)
    assert row_bytes({"text": "a"}, {"input_ids"}) == (b'{"text": "a"}',) * 2
    assert row_bytes([1, Plain()], {"input_ids"})[0] == by_value([1, Plain()])
    assert row_bytes(row, set())[0] == by_value(row)
