"""What is kept of an owner's columns, and what is not."""

import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building.owned_columns import LONGEST_VALUE, OwnedColumns
from lorif_hf.recording.rows import TrainingRows
from lorif_hf.tasks.causal_lm import CausalLM


IDS = [[1, 2, 3], [4, 5], [6, 7, 8]]


def owned(dataset, examples=None, store_text=True):
    columns = OwnedColumns(
        TrainingRows(dataset, make_gpt2(), CausalLM(), None, examples=examples, store_text=store_text)
    )
    return columns.kinds, columns.values(0, len(dataset))


def test_plain_values_of_a_dataset_are_kept_as_its_features_say():
    features = Features(
        {
            "input_ids": [Value("int64")],
            "text": Value("string"),
            "label": ClassLabel(names=["bad", "good"]),
            "source": Value("large_string"),
            "year": Value("uint16"),
            "weight": Value("float32"),
            "ok": Value("bool"),
            "when": Value("timestamp[s]"),
            "tags": [Value("string")],
        }
    )
    columns = {
        "label": [1, 0, None],
        "source": ["a", None, "b" * 999],
        "year": [1, 2, None],
        "weight": [0.5, np.nan, 2],
    }
    columns |= {"ok": [True, None, False], "when": [None] * 3, "tags": [["a"], [], []], "text": ["x", "y", "z"]}
    kinds, values = owned(Dataset.from_dict({"input_ids": IDS, **columns}, features=features))
    assert kinds == {"label": "string", "source": "string", "year": "int64", "weight": "float64", "ok": "bool"}
    assert values == {
        "label": ["good", "bad", None],
        "source": ["a", None, "b" * LONGEST_VALUE],
        "year": [1, 2, None],
        "weight": [0.5, None, 2.0],
        "ok": [True, None, False],
    }


def test_of_other_rows_the_first_ones_tell(caplog):
    rows = [
        {
            "input_ids": IDS[0],
            "year": 1,
            "size": 1,
            "mixed": 1,
            "source": "a",
            "list": [1],
            "text": "t",
            "ok": np.True_,
        },
        {"input_ids": IDS[1], "year": np.int64(2), "size": 0.5, "mixed": "b", "source": None},
        {"input_ids": IDS[2], "year": None, "size": None, "source": "\ud800", "late": 1},
    ]
    kinds, values = owned(rows)
    assert kinds == {"year": "int64", "size": "float64", "source": "string", "ok": "bool", "late": "int64"}
    assert values["year"] == [1, 2, None] and values["size"] == [1.0, 0.5, None] and values["late"] == [None, None, 1]
    assert values["source"] == ["a", None, "\\ud800"] and values["ok"] == [True, None, None]
    many = [{"input_ids": [1, 2], "n": 1} for _ in range(20)] + [
        {"input_ids": [1], "n": "x"},
        {"input_ids": [1], "n": 2**70},
    ]
    with caplog.at_level(logging.WARNING):
        assert owned(many)[1]["n"][-3:] == [1, None, None]
    assert caplog.text.count("Column 'n' holds 'x' among values of type int64: it is left out.") == 1


def test_names_of_tables_and_of_results_are_left_out_with_a_word(caplog):
    rows = Dataset.from_dict(
        {"input_ids": IDS, "score": [1.0] * 3, "id": [1, 2, 3], "position_ids": [1, 2, 3], "__x": [1] * 3}
    )
    with caplog.at_level(logging.WARNING):
        assert owned(rows)[0] == {}
    assert "The column 'score' is not kept in the index" in caplog.text and "Rename it" in caplog.text


def test_no_more_columns_than_a_table_may_have(caplog):
    rows = Dataset.from_dict({"input_ids": IDS, **{f"c{number}": [1, 2, 3] for number in range(70)}})
    with caplog.at_level(logging.WARNING):
        assert list(owned(rows)[0]) == [f"c{number}" for number in range(64)]
    assert "Of 70 columns the first 64 are kept" in caplog.text


def test_texts_are_hidden_where_the_owner_hides_them():
    rows = Dataset.from_dict({"input_ids": IDS, "text": ["a"] * 3, "title": ["secret"] * 3, "year": [1, 2, 3]})
    assert owned(rows, store_text=False)[0] == {"year": "int64"}
    assert owned(rows, store_text=2)[1]["title"] == ["se"] * 3
    given = Dataset.from_dict({"text": ["a", "b", "c"], "source": ["wiki"] * 3})
    assert owned(rows, given, store_text=False)[0] == {"source": "string"}  # asked for by name
    titles = Dataset.from_dict({"title": ["a", "b", "c"], "year": [1, 2, 3]})
    assert owned(rows, titles, store_text=False)[0] == {"year": "int64"}  # the title is the text
    assert owned(rows, titles)[0] == {"title": "string", "year": "int64"}


def test_an_index_has_them_in_its_examples_and_another_column_is_another_build(tmp_path):
    rows = make_rows(12).add_column("source", ["wiki", None, "news"] * 4).add_column("year", list(range(12)))
    config = InfluenceConfig(shard_size=5)
    index = InfluenceIndex.build(make_gpt2(), rows, tmp_path / "index", config=config)
    index.verify()
    assert index[4] == index.examples([4])[0] and index[4]["source"] is None and index[11]["year"] == 11
    assert list(index[0])[-2:] == ["source", "year"]
    with pytest.raises(FileExistsError, match="another model, dataset or config"):
        InfluenceIndex.build(make_gpt2(), rows.remove_columns("year"), tmp_path / "index", config=config)
