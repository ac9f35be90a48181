"""A bank may come from anybody: each impossible value is an error before anything is allocated for it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lorif_hf.errors import EvaluationError
from lorif_hf.evaluation.retraining import bank_files
from lorif_hf.evaluation.retraining.bank_files import (
    parse_info,
    read_queries,
    read_runs,
    runs_columns,
    write_queries,
    write_runs,
)


MEMBERSHIP = torch.tensor([[True] * 5 + [False] * 6, [False] * 6 + [True] * 5])
LOSSES = torch.arange(12.0, dtype=torch.float64).reshape(3, 2, 2) / 7
SEEDS = [4, 5, 6]
ENTRY = {"bytes": 1, "sha256": "0"}
INFO = {
    "format_version": "1.0",
    "num_examples": 11,
    "num_queries": 2,
    "num_subsets": 2,
    "subset_size": 5,
    "seeds": SEEDS,
    "queries": "0" * 64,
    "objective": {"name": "causal-lm"},
    "dataset": {"fingerprint": "1" * 64},
    "model": {"model_class": "GPT2LMHeadModel", "parameters": {"w": [2, 3]}},
    "training": {},
    "files": {"data/runs.parquet": ENTRY, "data/queries.parquet": ENTRY},
}


def columns(**changed):
    return runs_columns(MEMBERSHIP, LOSSES, SEEDS) | changed


def test_runs_come_back():
    membership, losses = read_runs(write_runs(columns()), INFO)
    assert torch.equal(membership, MEMBERSHIP) and torch.equal(losses, LOSSES)
    assert write_runs(columns()) == write_runs(columns())


def test_info_comes_back():
    info, files = parse_info(json.dumps(INFO))
    assert info == {name: value for name, value in INFO.items() if name != "files"} and files == INFO["files"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "it has no format_version"),
        ("{}", "it has no format_version"),
        (json.dumps(INFO | {"num_examples": float("nan")}), "it holds NaN"),
        (json.dumps(INFO | {"format_version": "2.0"}), "format version '2.0'; this lorif-hf reads 1.x. Install a new"),
        (json.dumps(INFO | {"num_examples": 2**40}), "'num_examples' must be a natural number"),
        (json.dumps(INFO | {"num_queries": 0}), "'num_queries' must be a natural number"),
        (json.dumps(INFO | {"num_subsets": True}), "'num_subsets' must be a natural number"),
        (json.dumps(INFO | {"num_subsets": 1}), "it has no proper subsets"),
        (json.dumps(INFO | {"subset_size": 11}), "it has no proper subsets"),
        (json.dumps(INFO | {"seeds": []}), "'seeds' must be a list of different natural numbers"),
        (json.dumps(INFO | {"seeds": [1, 1]}), "'seeds' must be"),
        (json.dumps(INFO | {"seeds": [[1]]}), "'seeds' must be"),
        (json.dumps(INFO | {"queries": 1}), "'queries' must be a fingerprint"),
        (json.dumps(INFO | {"dataset": {}}), "'dataset' must hold a fingerprint"),
        (json.dumps(INFO | {"model": {}}), "'model' must hold the model_class"),
        (
            json.dumps(INFO | {"model": {"model_class": "x", "parameters": {"w": 1}}}),
            "must hold the shapes of the",
        ),
        (json.dumps(INFO | {"training": []}), "'training' must be a JSON object"),
        (json.dumps(INFO | {"files": {}}), "'files' must hold the size and hash of data/runs.parquet"),
    ],
)
def test_impossible_info_is_refused(text, message):
    with pytest.raises(EvaluationError, match=message):
        parse_info(text)


PACKED = columns()["membership"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subset": [0, 0, 1, 1, 1, 1]}, "row 2 is of {'subset': 1, 'seed': 6.* expected {'subset': 0, 'seed': 6"),
        ({"seed": [5, 4, 6, 4, 5, 6]}, "row 0 is of .*'seed': 5"),
        ({"num_examples": [5] * 5 + [4]}, "row 5 is of .*'num_examples': 4"),
        ({"num_examples": [None] * 6}, "row 0 is of .*'num_examples': None"),
        ({"membership": [b"\xf8"] * 6}, "the membership of row 0 is not that of 11 training rows"),
        ({"membership": [*PACKED[:5], PACKED[5] * 50]}, "the membership of row 5 is not that of 11 training rows"),
        ({"membership": [None] * 6}, "the membership of row 0 is not that of 11 training rows"),
        ({"membership": [b"\xff\x00"] * 6}, "the membership of row 0 is not that of one subset of 5 rows"),
        ({"membership": [PACKED[0], *PACKED[2:], PACKED[5]]}, "the membership of row 2 is not that of one subset"),
        ({"losses": [[1.0]] * 6}, "row 0 does not have the losses of 2 queries"),
        ({"losses": [None] * 6}, "row 0 does not have the losses of 2 queries"),
        ({"losses": [[1.0, float("nan")]] * 6}, "the losses of row 0 are not all finite numbers"),
        ({"losses": [[1.0, None]] * 6}, "the losses of row 0 are not all finite numbers"),
    ],
)
def test_impossible_runs_are_refused(changed, message):
    with pytest.raises(EvaluationError, match=f"data/runs.parquet: {message}"):
        read_runs(write_runs(columns(**changed)), INFO)


def test_tables_that_are_none_or_others_are_refused():
    for content in (b"", b"PAR1", b"x" * 100, write_runs(columns())[:-9]):
        with pytest.raises(EvaluationError, match="data/runs.parquet: it is no Parquet file"):
            read_runs(content, INFO)
    with pytest.raises(EvaluationError, match="its columns are a, not subset, seed, num_examples, membership, losses"):
        read_runs(write_queries([{"a": 1}] * 6), INFO)
    with pytest.raises(EvaluationError, match="it has 6 rows, bank.json says 9"):
        read_runs(write_runs(columns()), INFO | {"num_subsets": 3})


def test_sizes_that_the_file_cannot_account_for_are_refused_before_they_are_allocated():
    for huge in ({"num_examples": 2**39}, {"num_queries": 2**39}):
        with pytest.raises(EvaluationError, match="bytes cannot hold runs of"):
            read_runs(write_runs(columns()), INFO | huge)
    sink = pa.BufferOutputStream()
    zeros = pa.array([b"\0" * 5_000_000] * 6, pa.binary())
    pq.write_table(
        pa.table(columns(membership=zeros), schema=bank_files._SCHEMA), sink, compression="zstd", use_dictionary=False
    )
    with pytest.raises(EvaluationError, match="bytes claim to unpack to 3"):
        read_runs(sink.getvalue().to_pybytes(), INFO)


def test_queries_come_back_whatever_numbers_they_are_made_of():
    features = [{"ids": [1, 2], "label": 0, "pixels": [[0.5, 0.25]]}, {"ids": [3], "label": 1, "pixels": [[1.0, 2.0]]}]
    read = read_queries(write_queries(features), 2)
    assert [{key: value.tolist() for key, value in feature.items()} for feature in read] == features
    assert read[0]["pixels"].dtype == torch.float32 and read[0]["ids"].dtype == torch.int64


@pytest.mark.parametrize("values", [["text"], [[[1], [2, 3]]], [None], [{"a": 1}]])
def test_queries_that_are_no_numbers_are_refused(values):
    with pytest.raises(EvaluationError, match="data/queries.parquet: query 0 is not made of numbers"):
        read_queries(write_queries([{"ids": value} for value in values]), 1)
    with pytest.raises(EvaluationError, match="data/queries.parquet: it has 1 rows, bank.json says 2"):
        read_queries(write_queries([{"ids": value} for value in values]), 2)


def test_the_first_row_is_the_highest_bit():
    assert np.frombuffer(PACKED[0], np.uint8).tolist() == [0b11111000, 0]
