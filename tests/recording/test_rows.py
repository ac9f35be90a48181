"""Rows to batches: what a collator sees, and what tells one training set from another."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import make_gpt2, make_rows, plain_config
from torch.utils.data import IterableDataset
from transformers import DataCollatorForLanguageModeling, default_data_collator

from lorif_hf import InfluenceIndex
from lorif_hf.errors import BuildFolderError, DatasetError
from lorif_hf.recording.rows import TrainingRows
from lorif_hf.storage.files import TensorFile
from lorif_hf.tasks import CausalLM


CONFIG = plain_config(projection_factor=2, shard_size=6)


def training_rows(dataset, **options):
    return TrainingRows(dataset, make_gpt2(), CausalLM(), **options)


def completion_only(features):
    """As TRL trains on completions: labels only where the mask says so."""
    ids = torch.tensor([feature["input_ids"] for feature in features])
    mask = torch.tensor([feature["completion_mask"] for feature in features])
    return {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100)}


def test_a_collator_of_ones_own_sees_every_column(tmp_path):
    dataset = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 2, "completion_mask": [[0, 0, 1, 1], [0, 0, 0, 1]]})
    index = InfluenceIndex.build(make_gpt2(), dataset, tmp_path / "index", data_collator=completion_only)
    whole = InfluenceIndex.build(make_gpt2(), dataset, tmp_path / "whole")
    losses = [example["loss"] for example in index.examples([0, 1])]
    assert losses[0] > losses[1] and losses[0] < whole.examples([0])[0]["loss"]


def test_a_collator_that_tokenizes_gets_the_text():
    seen = []

    def tokenize(features):
        seen.extend(feature["text"] for feature in features)
        ids = torch.ones(len(features), 3, dtype=torch.long)
        return {"input_ids": ids, "labels": ids}

    rows = training_rows(Dataset.from_dict({"text": ["a", "b"]}), data_collator=tokenize)
    assert rows.batch([0, 1])["input_ids"].shape == (2, 3)
    assert set(seen) == {"a", "b"} and seen[-2:] == ["a", "b"]


def test_a_collator_of_transformers_is_spared_the_texts(tokenizer):
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = training_rows(make_rows(5), data_collator=collator).batch([1, 3])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_a_collator_that_packs_rows_is_told_and_has_them_alone(gpt2, tmp_path, caplog):
    def flatten(features):  # with a token between them, so that nobody finds them
        ids = torch.tensor([[token for feature in features for token in [7, *feature["input_ids"]]]])
        return {"input_ids": ids, "labels": ids}

    dataset = Dataset.from_dict({"input_ids": [[1, 2]] * 5})
    index = InfluenceIndex.build(gpt2, dataset, tmp_path / "index", data_collator=flatten, batch_size=2)
    assert "made 1 examples of 3 rows: it packs or flattens them" in caplog.text
    assert index.manifest.alone and len(index) == 5
    with pytest.raises(DatasetError, match="made 1 examples of rows 0 to 1: it packs or flattens them"):
        InfluenceIndex.build(gpt2, dataset, tmp_path / "other", data_collator=flatten, batch_size=2, check=False)


def test_rows_that_see_each_other_in_a_flattened_batch_go_alone(gpt2, tmp_path, caplog):
    def flatten(features):
        ids = torch.tensor([[token for feature in features for token in feature["input_ids"]]])
        return {"input_ids": ids, "labels": ids}

    dataset = Dataset.from_dict({"input_ids": [[1, 2]] * 5})
    index = InfluenceIndex.build(gpt2, dataset, tmp_path / "index", data_collator=flatten, batch_size=2)
    assert "Objective 'causal-lm' is not what was trained: the loss of row 4" in caplog.text
    assert index.manifest.alone and len(index) == 5


def one(model, batch):
    return CausalLM().losses(model, batch | {"labels": batch["input_ids"]})


def twice(model, batch):
    return 2 * one(model, batch)


@pytest.mark.parametrize("change", ["row", "objective", "collator"])
def test_another_row_objective_or_collator_is_another_build(gpt2, tmp_path, change):
    """600 rows, of which row 301 differs: none is taken for another's index."""
    ids = [[1, 2, 3]] * 600
    call = {"objective": one}
    InfluenceIndex.build(gpt2, Dataset.from_dict({"input_ids": ids}), tmp_path / "index", batch_size=64, **call)
    if change == "row":
        ids = [*ids[:301], [1, 2, 4], *ids[302:]]
    elif change == "objective":
        call = {"objective": twice}
    else:
        call["data_collator"] = lambda features: {"input_ids": torch.tensor([f["input_ids"] for f in features])}
    with pytest.raises(BuildFolderError, match="an index of another model, dataset or config"):
        InfluenceIndex.build(gpt2, Dataset.from_dict({"input_ids": ids}), tmp_path / "index", batch_size=64, **call)


def test_a_shard_that_was_damaged_is_recorded_again(gpt2, tmp_path, monkeypatch):
    from lorif_hf.curvature import low_rank

    rows = make_rows(20)
    whole = InfluenceIndex.build(gpt2, rows, tmp_path / "whole", config=CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(low_rank, "fit", None)
        with pytest.raises(TypeError):
            InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    path = tmp_path / "index" / whole.manifest.shards[1].file
    span = TensorFile(whole.path, whole.manifest.shards[1]).span("transformer.h.1.mlp.c_fc.v")
    content = bytearray(path.read_bytes())
    content[span.begin] ^= 1
    path.write_bytes(content)
    again = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    assert again.manifest == whole.manifest


def test_labels_all_minus_100_are_noticed_across_small_shards(gpt2, tmp_path):
    dataset = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 40, "labels": [[-100] * 3] * 40})
    with pytest.raises(DatasetError, match="None of the first 40 rows has a target"):
        InfluenceIndex.build(gpt2, dataset, tmp_path / "index", config=plain_config(shard_size=10))


def test_a_row_that_the_model_cannot_take_is_named(gpt2, tmp_path):
    dataset = Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 999]]})
    with pytest.raises(DatasetError, match="cannot take row 1 .* a token is outside its vocabulary"):
        InfluenceIndex.build(gpt2, dataset, tmp_path / "index", batch_size=1)


def test_rows_have_one_fingerprint_however_they_are_shown_or_collated(tokenizer):
    """It tells whether an index and a bank of retrained models are of the same rows."""
    rows = make_rows(5)
    known = training_rows(rows).source()["fingerprint"]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    same = [
        training_rows(rows.remove_columns(["text", "example_id"]), data_collator=collator, examples=rows),
        training_rows([{"input_ids": row} for row in rows["input_ids"]], store_text=False),
    ]
    assert {one.source()["fingerprint"] for one in same} == {known}
    assert len({known, *(one.fingerprint() for one in same)}) == 3
    for other in (
        rows.select([1, 0, 2, 3, 4]),
        rows.select(range(4)),
        rows.add_column("labels", rows["input_ids"][:]),
    ):
        assert training_rows(other).source()["fingerprint"] != known


class Plain:
    pass


def objects():
    """Rows with what has no JSON, and a column of objects that only their address tells apart."""
    return [
        {"input_ids": np.array([1, 2, i]), "seen": {f"tag{i}", "b"}, "who": Plain(), "raw": bytes([i])}
        for i in range(4)
    ]


def test_a_column_of_objects_does_not_keep_a_build_from_going_on(gpt2, tmp_path):
    index = InfluenceIndex.build(gpt2, objects(), tmp_path / "index", config=CONFIG)
    again = InfluenceIndex.build(gpt2, objects(), tmp_path / "index", config=CONFIG)
    assert again.manifest == index.manifest
    with pytest.raises(BuildFolderError):
        InfluenceIndex.build(gpt2, objects()[::-1], tmp_path / "index", config=CONFIG)


def test_equal_rows_have_one_fingerprint_in_two_processes():
    code = "import test_rows; print(test_rows.training_rows(test_rows.objects()).fingerprint())"
    path, folder = os.pathsep.join(sys.path), os.path.dirname(__file__)
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1 and len(printed.pop().strip()) == 64


@pytest.mark.parametrize("form", [None, "arrow", "numpy", "torch", "pandas"])
def test_the_format_of_a_dataset_changes_neither_batches_nor_the_fingerprint(form):
    rows = make_rows(5)
    plain, other = training_rows(rows), training_rows(rows.with_format(form))
    assert other.source()["fingerprint"] == plain.source()["fingerprint"]
    for key, value in plain.batch([0, 3, 4]).items():
        assert torch.equal(other.batch([0, 3, 4])[key], value) and torch.equal(
            other.batch([2])[key], plain.batch([2])[key]
        )
    assert other.texts(1, 3) == plain.texts(1, 3) and other.example_ids(1, 3) == plain.example_ids(1, 3)
    other.check()


def test_a_transform_that_draws_has_one_fingerprint_and_leaves_no_trace():
    def noise(rows):
        return {"input_ids": [[1 + random.randrange(40), int(torch.randint(1, 40, ()))] for _ in rows["x"]]}

    dataset = Dataset.from_dict({"x": list(range(70))}).with_transform(noise)
    state, other = random.getstate(), torch.get_rng_state()
    first = training_rows(dataset).fingerprint()
    assert random.getstate() == state and torch.equal(torch.get_rng_state(), other)
    assert training_rows(dataset).fingerprint() == first


def ids_as(dtype):
    return [{"input_ids": np.array([1, 2, 3]).astype(dtype)}, {"input_ids": np.array([4, 5]).astype(dtype)}]


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "uint16", "int32", "uint32", "uint64"])
def test_ids_of_every_whole_dtype(dtype):
    batch = training_rows(ids_as(dtype)).batch([0, 1])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]] and batch["labels"].dtype == torch.int64
    made = training_rows(
        [{**row, "labels": row["input_ids"]} for row in ids_as(dtype)[:1]], data_collator=default_data_collator
    ).batch([0])
    assert all(value.dtype == torch.int64 for value in made.values())


@pytest.mark.parametrize("collator", [False, True])
def test_an_empty_row_alone_is_padding_without_a_target(tokenizer, gpt2, collator):
    dataset = Dataset.from_dict({"input_ids": [[], [1, 2], []]})
    options = {"data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False)} if collator else {}
    rows = training_rows(dataset, processing_class=tokenizer, **options)
    for numbers in ([0], [2], [0, 2]):
        batch = rows.batch(numbers)
        assert batch["input_ids"].shape == (len(numbers), 1) and bool((batch["labels"] == -100).all())
        assert CausalLM().losses(gpt2, batch).tolist() == [0.0] * len(numbers)
    rows.check()


def test_empty_rows_at_batch_size_one(gpt2, tmp_path):
    dataset = Dataset.from_dict({"input_ids": [[], [1, 2, 3], [], [4, 5, 6, 7]]})
    indices = [
        InfluenceIndex.build(gpt2, dataset, tmp_path / f"by-{size}", config=CONFIG, batch_size=size) for size in (1, 4)
    ]
    losses = [[example["loss"] for example in index.examples(range(4))] for index in indices]
    assert losses[0] == pytest.approx(losses[1]) and losses[0][0] == losses[0][2] == 0.0


def good(i):
    return {"input_ids": [1, 2, 3 + i % 7], "labels": [1, 2, 3]}


REFUSED = {
    "a row that is None": (None, "Row 9 is None: expected a dict"),
    "a tuple": (([1, 2], 1), "Row 9 is a tuple: expected a dict of columns"),
    "labels of None": ({"input_ids": [1, 2], "labels": None}, r"Row 9 has no value in column 'labels' \(None\)"),
    "no labels": ({"input_ids": [1, 2]}, "Row 9 has no value in column 'labels'"),
    "a None among tokens": (
        {"input_ids": [1, None], "labels": [1, 2]},
        r"Column 'input_ids' of row 9 holds \[1, None",
    ),
    "a text for tokens": ({"input_ids": "abc", "labels": [1, 2]}, "Column 'input_ids' of row 9 holds 'abc'"),
    "a token out of range": ({"input_ids": [1, 99], "labels": [1, 2]}, r"row 9 \(99 in column 'input_ids'\)"),
    "a label out of range": ({"input_ids": [1, 2], "labels": [1, 99]}, r"row 9 \(99 in column 'labels'\)"),
    "a negative label": ({"input_ids": [1, 2], "labels": [1, -3]}, r"row 9 \(-3 in column 'labels'\)"),
    "fewer labels": ({"input_ids": [1, 2], "labels": [1]}, "Row 9 has 2 tokens in column 'input_ids' and 1 values"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("size", [1, 4])
def test_a_row_that_cannot_be_measured_is_named_at_the_dry_run_and_when_it_comes(kind, size):
    row, message = REFUSED[kind]
    rows = training_rows([row if i == 9 else good(i) for i in range(12)])
    rows.batch([0, 1])
    with pytest.raises(DatasetError, match=message):
        rows.batch(range(9, 9 + size) if size == 1 else [8, 9, 10, 11])
    with pytest.raises(DatasetError, match=message):
        rows.check()


def test_a_first_row_unlike_all_others_is_named():
    with pytest.raises(DatasetError, match="Row 0 has no value in column 'labels'.*row 1 has one"):
        training_rows([{"input_ids": [1, 2]}, good(1), good(2)]).check()
    with pytest.raises(DatasetError, match="Row 0 is None"):
        training_rows([None, good(1)]).check()


def test_rows_that_a_collator_of_ones_own_takes_need_be_no_dicts():
    def collate(features):
        return {"input_ids": torch.stack(features), "labels": torch.stack(features)}

    rows = training_rows([torch.tensor([1, 2, i]) for i in range(5)], data_collator=collate)
    assert rows.batch([1, 3])["input_ids"].tolist() == [[1, 2, 1], [1, 2, 3]]
    rows.check()
    assert len(rows.fingerprint()) == 64


def test_the_row_at_which_a_collator_fails_is_named():
    def collate(features):
        return {"input_ids": torch.tensor([[1, feature["needed"]] for feature in features]), "labels": torch.ones(1)}

    rows = training_rows([{"needed": 1} if i != 5 else {} for i in range(8)], data_collator=collate)
    with pytest.raises(DatasetError, match=r"Row 5 could not be collated by .*collate \(KeyError: 'needed'\)"):
        rows.check()


def test_a_row_that_cannot_be_read_is_named():
    class Broken(list):
        def __getitem__(self, row):
            if row == 6:
                raise OSError("truncated file")
            return super().__getitem__(row)

    rows = training_rows(Broken(good(i) for i in range(8)))
    for read in (rows.check, rows.fingerprint, lambda: rows.lengths(range(8)), lambda: rows.batch([5, 6])):
        with pytest.raises(DatasetError, match=r"Row 6 of the dataset could not be read \(OSError: truncated file\)"):
            read()


def test_a_stream_with_a_length_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

        def __len__(self):
            return 3

    with pytest.raises(DatasetError, match="is a Stream, which can only be read in order"):
        training_rows(Stream())


def test_the_lengths_of_rows():
    assert training_rows([good(0), {**good(1), "input_ids": [1]}]).lengths([1, 0]) == [1, 3]
    with pytest.raises(DatasetError, match="Row 1 has no value in column 'input_ids'"):
        training_rows([good(0), {"input_ids": None}]).lengths([1])


def test_the_check_covers_the_first_and_the_last_row_and_not_all(monkeypatch):
    read = []

    class Watched(list):
        def __getitem__(self, row):
            read.append(row)
            return super().__getitem__(row)

    training_rows(Watched(good(i) for i in range(5000))).check()
    assert {0, 4999} <= set(read) and len(set(read)) < 100


def masking(features):
    ids = torch.tensor([feature["input_ids"] for feature in features])
    return {"input_ids": ids.masked_fill(torch.rand(ids.shape) < 0.5, 7), "labels": ids}


def test_a_collator_that_draws_is_seen_and_leaves_no_trace(tokenizer):
    dataset = [good(i) for i in range(6)]
    rows = training_rows(dataset, data_collator=masking)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert rows.draws_random is True
    rows.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert training_rows(dataset).draws_random is False

    tokenizer.mask_token = tokenizer.convert_ids_to_tokens(7)
    seeded = DataCollatorForLanguageModeling(tokenizer, seed=3, mask_replace_prob=1.0, random_replace_prob=0.0)
    tokens = Dataset.from_dict({"input_ids": [[8, 9, 10, 11] * 4] * 3})
    assert training_rows(tokens, data_collator=seeded).draws_random is True
    assert seeded.generator is None


def test_halves_of_surrogate_pairs_are_written(gpt2, tmp_path):
    """As json.loads makes them of a cut text."""
    rows = [{"input_ids": [1, 2, i], "text": f"cut \ud83d {i}", "id": f"\udc00{i}"} for i in range(3)]
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    example = index.examples([1])[0]
    assert (example["text"], example["example_id"]) == ("cut \\ud83d 1", "\\udc001")
