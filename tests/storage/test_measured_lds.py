"""The score that stays with an index: it may come from anybody."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from lorif_hf.errors import IndexCorruptedError
from lorif_hf.storage.layout import LDS, signed_json
from lorif_hf.storage.measured_lds import LDSRecord, read_lds, write_lds
from lorif_hf.storage.store import LocalStore


OWN_HASH = "record_sha256"
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
        (signed_json(asdict(RECORD) | {"mean": None}, OWN_HASH), "'mean' cannot be 'None'"),
        (json.dumps(asdict(RECORD) | {"mean": float("nan")}), "its record_sha256 is another, or there is none"),
        (json.dumps(asdict(RECORD)), "its record_sha256 is another, or there is none: evaluate the index again"),
        (json.dumps(asdict(RECORD) | {OWN_HASH: "0" * 64}), "its record_sha256 is another"),
        (json.dumps(asdict(RECORD) | {OWN_HASH: [3]}), "its record_sha256 is another"),
        (signed_json(asdict(RECORD) | {"mean": 1.5}, OWN_HASH), "'mean' cannot be '1.5'"),
        (signed_json(asdict(RECORD) | {"query_low": True}, OWN_HASH), "'query_low' cannot be 'True'"),
        (signed_json(asdict(RECORD) | {"num_queries": 0}, OWN_HASH), "'num_queries' cannot be '0'"),
        (signed_json(asdict(RECORD) | {"num_subsets": 2**63}, OWN_HASH), "'num_subsets' cannot be"),
        (signed_json(asdict(RECORD) | {"bank": 3}, OWN_HASH), "'bank' cannot be '3'"),
        (signed_json(asdict(RECORD) | {"build": None}, OWN_HASH), "'build' cannot be 'None'"),
    ],
)
def test_an_impossible_score_is_refused(tmp_path, text, message):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / LDS).write_text(text)
    with pytest.raises(IndexCorruptedError, match=f"evaluation/lds.json: {message}"):
        read_lds(LocalStore(tmp_path), MANIFEST)


def test_a_field_of_a_later_version_is_ignored(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / LDS).write_text(signed_json(asdict(RECORD) | {"more": [1]}, OWN_HASH))
    assert read_lds(LocalStore(tmp_path), MANIFEST) == RECORD


def test_every_flipped_bit_of_the_file_is_found(tmp_path):
    store = LocalStore(tmp_path)
    write_lds(store, RECORD)
    content = (tmp_path / LDS).read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / LDS).write_bytes(flipped)
        with pytest.raises(IndexCorruptedError, match=LDS):
            read_lds(store, MANIFEST)
