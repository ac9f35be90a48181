"""The score that stays with an index: it may come from anybody."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from lorif_hf.errors import IndexCorruptedError
from lorif_hf.storage.layout import LDS
from lorif_hf.storage.measured_lds import LDSRecord, read_lds, write_lds
from lorif_hf.storage.store import LocalStore


RECORD = LDSRecord(0.5, 0.95, 0.4, 0.6, None, None, 3, 50, 2, 0.9, None, "b" * 64)
MANIFEST = SimpleNamespace(build="b" * 64)


def test_a_score_comes_back_for_the_index_that_was_measured(tmp_path):
    store = LocalStore(tmp_path)
    assert read_lds(store, MANIFEST) is None
    write_lds(store, RECORD)
    assert read_lds(store, MANIFEST) == RECORD
    assert read_lds(store, SimpleNamespace(build="c" * 64)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is not JSON"),
        ("[" * 60_000, "it is not JSON"),
        ("[]", "it must have the fields mean, confidence"),
        ("{}", "it must have the fields mean, confidence"),
        (" " * 70_000, "it has over 65,536 bytes"),
        (json.dumps(asdict(RECORD) | {"mean": None}), "'mean' cannot be 'None'"),
        (json.dumps(asdict(RECORD) | {"mean": float("nan")}), "'mean' cannot be 'nan'"),
        (json.dumps(asdict(RECORD) | {"mean": 1.5}), "'mean' cannot be '1.5'"),
        (json.dumps(asdict(RECORD) | {"query_low": True}), "'query_low' cannot be 'True'"),
        (json.dumps(asdict(RECORD) | {"num_queries": 0}), "'num_queries' cannot be '0'"),
        (json.dumps(asdict(RECORD) | {"num_subsets": 2**63}), "'num_subsets' cannot be"),
        (json.dumps(asdict(RECORD) | {"bank": 3}), "'bank' cannot be '3'"),
        (json.dumps(asdict(RECORD) | {"build": None}), "'build' cannot be 'None'"),
    ],
)
def test_an_impossible_score_is_refused(tmp_path, text, message):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / LDS).write_text(text)
    with pytest.raises(IndexCorruptedError, match=f"evaluation/lds.json: {message}"):
        read_lds(LocalStore(tmp_path), MANIFEST)


def test_a_field_of_a_later_version_is_ignored(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / LDS).write_text(json.dumps(asdict(RECORD) | {"more": [1]}))
    assert read_lds(LocalStore(tmp_path), MANIFEST) == RECORD
