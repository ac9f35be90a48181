"""Training sets from files, folders and the Hub: their rows in order, and every slip named."""

import datasets
import pytest
from datasets import Dataset, DatasetDict

from lorif_hf.commands.row_files import training_rows
from lorif_hf.errors import DatasetError


ROWS = [{"text": "a, b", "n": 1}, {"text": "NA", "n": 2}]


def read(path, subset=None, split=None):
    return training_rows(str(path), subset, split, None)


def test_a_text_file_has_a_row_on_each_line_that_holds_anything(tmp_path):
    (tmp_path / "ünï.txt").write_bytes("\ufeffone\r\n\r\n two\u2028two \n".encode())
    rows = read(tmp_path / "ünï.txt")
    assert rows["text"][:] == ["one", " two\u2028two "] and rows["example_id"][:] == ["line 1", "line 3"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_tables_keep_their_columns(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    written = Dataset.from_list(ROWS)
    {
        "jsonl": written.to_json,
        "json": lambda target: written.to_json(target, lines=False),
        "csv": written.to_csv,
        "parquet": written.to_parquet,
    }[suffix](path)
    assert read(path).to_list() == ROWS


def test_a_saved_dataset_is_read_and_its_split_taken(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "flat")
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "flat").to_list() == read(tmp_path / "splits").to_list() == ROWS
    assert len(read(tmp_path / "splits", split="test")) == 1
    with pytest.raises(DatasetError, match="has no split 'dev': pass --split with one of train, test"):
        read(tmp_path / "splits", split="dev")


def test_a_name_is_loaded_from_the_hub(monkeypatch):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        rows = Dataset.from_list(ROWS)
        return rows if options["split"] else DatasetDict(validation=rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(training_rows("user/rows", "en", "train[:2]", "t")) == 2
    assert asked == [(("user/rows", "en"), {"split": "train[:2]", "token": "t"})]
    assert len(training_rows("user/rows", None, None, None)) == 2  # of a single split, that


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("x.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 is no JSON object: expected columns by name"),
        ("x.jsonl", b"", "is empty: expected a file .txt"),
        ("x.csv", b"\n\n", "is empty"),
        ("x.csv", b"text\n", "holds no row below its head: there is nothing to index"),
        ("x.txt", b"\n \n", "holds no row"),
        ("x.txt", b"\xff\xfe", "is not UTF-8 (byte 0): save it as UTF-8"),
        ("x.parquet", b"not parquet", "cannot be read"),
        ("x.docx", b"x", "is no training set: expected a file .txt"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and message in str(caught.value)


def test_other_places_are_told(tmp_path, hub):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.csv")
    with pytest.raises(DatasetError, match="holds no dataset .*Expected a folder that Dataset.save_to_disk made"):
        read(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DatasetError, match="is a file: --subset and --split are of datasets on the Hub"):
        read(tmp_path / "x.txt", split="train")
    with pytest.raises(DatasetError, match="No dataset can be loaded from user/none .*check the name"):
        read("user/none")
