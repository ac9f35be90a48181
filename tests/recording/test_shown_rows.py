"""What people see of rows: it can always be written, and belongs to the row."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorif_hf.errors import DatasetError
from lorif_hf.recording.shown_rows import ShownRows
from lorif_hf.storage.examples import write_examples


@pytest.fixture
def tokenizer():
    """One token per word "0" to "49"."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(50)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", unk_token="0")


def shown(dataset, examples=None, processing_class=None, store_text=True):
    return ShownRows(dataset, len(dataset), examples, processing_class, store_text)


def test_the_columns_that_are_shown(tokenizer):
    rows = [{"input_ids": [1, 2], "text": "a b", "id": 7}, {"input_ids": [3], "text": None, "id": None}]
    assert shown(rows).texts(0, 2) == ["a b", None] and shown(rows).example_ids(0, 2) == ["7", None]
    bare = [{"input_ids": [1, 2]}, {"input_ids": [3]}]
    assert shown(bare).texts(0, 2) == [None, None] and shown(bare).example_ids(1, 2) == [None]
    assert shown(bare, processing_class=tokenizer).texts(0, 2) == ["1 2", "3"]
    examples = [{"title": "A", "body": "bc", "example_id": "x"}, {"title": "D", "body": None, "example_id": "y"}]
    both = shown(bare, examples)
    assert both.texts(0, 2) == ["title: A\nbody: bc", "title: D"] and both.example_ids(0, 2) == ["x", "y"]
    assert shown(rows, store_text=2).texts(0, 2) == ["a ", None]
    assert shown(rows, store_text=False).texts(0, 2) == [None, None]


SURROGATES = "a \ud83d b \udc00"


@pytest.mark.parametrize("several", [False, True])
def test_halves_of_surrogate_pairs_can_be_written(tmp_path, several):
    rows = [{"input_ids": [1], "text": SURROGATES, "id": "\udfff"}, {"input_ids": [1], "text": "\U0001f600", "id": 2}]
    examples = [{"title": row["text"], "body": "x", "id": row["id"]} for row in rows] if several else None
    seen = shown(rows, examples)
    texts, ids = seen.texts(0, 2), seen.example_ids(0, 2)
    assert ids == ["\\udfff", "2"] and "a \\ud83d b \\udc00" in texts[0] and "\U0001f600" in texts[1]
    columns = {"row": [0, 1], "example_id": ids, "text": texts, "num_tokens": [1, 1], "loss": [0.0, 0.0]}
    write_examples(tmp_path / "examples.parquet", columns | {"self_influence": [0.0, 0.0]})


def test_ids_that_cannot_be_decoded_have_no_text(tokenizer, caplog):
    rows = [{"input_ids": [1, -100, 2]}, {"input_ids": [2**70]}, {"input_ids": [2**70]}, {"input_ids": None}]
    assert shown(rows, processing_class=tokenizer).texts(0, 4) == ["1 2", None, None, None]
    assert caplog.text.count("cannot be decoded") == 1 and "Row 1 cannot be decoded (OverflowError" in caplog.text


def test_rows_without_the_columns_of_the_first():
    rows = [{"input_ids": [1], "text": "a", "id": 1}, {"input_ids": [2]}, None]
    assert shown(rows).texts(0, 3) == ["a", None, None] and shown(rows).example_ids(0, 3) == ["1", None, None]


def test_examples_of_another_number_are_refused():
    with pytest.raises(DatasetError, match="examples has 1 rows, the dataset 2: they must be the same"):
        shown([{"a": 1}] * 2, [{"text": "a"}])


@pytest.mark.parametrize("examples", [iter([1]), {"text": ["a", "b"]}, 3], ids=["iterator", "dict", "number"])
def test_examples_that_are_no_rows_are_refused(examples):
    with pytest.raises(DatasetError, match="^examples is a "):
        shown([{"a": 1}] * 2, examples)


def test_examples_in_another_order_are_refused(tokenizer):
    rows = Dataset.from_dict({"input_ids": [[i, i + 1, i + 2, i + 3] for i in range(10, 40)]})
    texts = [" ".join(map(str, ids)) for ids in rows["input_ids"]]
    assert shown(rows, Dataset.from_dict({"text": texts}), tokenizer).texts(3, 4) == ["13 14 15 16"]
    with pytest.raises(DatasetError, match=r"row 0 of the dataset says '10 11 12 13', row 0 of examples says '11 12"):
        shown(rows, Dataset.from_dict({"text": texts[1:] + texts[:1]}), tokenizer)


def test_examples_as_tables_of_arrow():
    rows = Dataset.from_dict({"input_ids": [[1], [2]], "id": [3, 4]})
    seen = shown(rows, Dataset.from_dict({"text": ["a", "b"], "id": [3, 4]}).with_format("arrow"))
    assert seen.texts(0, 2) == ["a", "b"] and seen.example_ids(0, 2) == ["3", "4"]
