"""Rows to batches: what a collator sees, and what tells one training set from another."""

import pytest
import torch
from datasets import Dataset
from tiny import make_gpt2, make_rows, plain_config
from transformers import DataCollatorForLanguageModeling

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
    assert seen == ["a", "b"]


def test_a_collator_of_transformers_is_spared_the_texts(tokenizer):
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = training_rows(make_rows(5), data_collator=collator).batch([1, 3])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_a_collator_that_packs_rows_is_refused_and_says_which(gpt2, tmp_path):
    def flatten(features):
        ids = torch.tensor([[token for feature in features for token in feature["input_ids"]]])
        return {"input_ids": ids, "labels": ids}

    dataset = Dataset.from_dict({"input_ids": [[1, 2]] * 5})
    with pytest.raises(DatasetError, match="made 1 examples of rows 0 to 1: it packs or flattens them"):
        InfluenceIndex.build(gpt2, dataset, tmp_path / "index", data_collator=flatten, batch_size=2)


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
