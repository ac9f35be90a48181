"""Indices of streams: what they hold, how often a stream is read, and what the Trainer has seen of it."""

import pytest
import torch
from datasets import Dataset, interleave_datasets
from digests import digests
from streams import Counted, Loose
from tiny import make_gpt2, make_rows, plain_config
from trainings import ARGUMENTS, make_llama
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments
from truth import GRADIENTS, relative_error

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building import example_tables
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import BuildFolderError, DatasetError
from lorif_hf.recording import rows as training_rows
from lorif_hf.recording import streamed_rows
from lorif_hf.recording.recorder import GradientRecorder


WHITENED = InfluenceConfig(factor_rank=2, shard_size=40)


def texts_of(index):
    return [(row["example_id"], row["text"]) for row in index.examples(list(range(len(index))))]


def same_factors(one, other):
    return [shard.sha256 for shard in one.manifest.shards] == [shard.sha256 for shard in other.manifest.shards]


@pytest.mark.parametrize("options", [{}, {"max_tokens_per_batch": 60}], ids=["rows", "tokens"])
def test_an_index_of_a_stream_is_that_of_its_rows(tmp_path, options, monkeypatch):
    """And the stream is read four times."""
    for module, name in ((streamed_rows, "_HELD"), (streamed_rows, "RECENT"), (training_rows, "RECENT")):
        monkeypatch.setattr(module, name, 40)
    monkeypatch.setattr(example_tables, "_TOGETHER", 20)
    model, rows = make_gpt2(), make_rows(100)
    stream = Counted(130, rows=rows)
    index = InfluenceIndex.build(model, stream, tmp_path / "a", config=WHITENED, examples_seen=100, **options)
    assert stream.read == [40, 32, 100, 100, 100, 100]
    whole = InfluenceIndex.build(model, rows, tmp_path / "b", config=WHITENED, **options)
    assert len(index) == 100 and texts_of(index) == texts_of(whole)
    assert index.manifest.dataset["fingerprint"] == whole.manifest.dataset["fingerprint"]
    if not options:
        assert same_factors(index, whole)
    queries = make_rows(3, seed=9)
    torch.testing.assert_close(index.scores(model, queries), whole.scores(model, queries), rtol=1e-4, atol=1e-6)
    assert int(index.attribute(model, rows.select([87]), top_k=1).indices) == 87


@pytest.mark.parametrize("name", ["interleaved", "filtered"])
def test_an_index_of_a_stream_is_what_autograd_says(tmp_path, name):
    stream = make_rows(24).to_iterable_dataset(num_shards=3)
    stream = {
        "interleaved": interleave_datasets([stream, make_rows(9, seed=4).to_iterable_dataset()], seed=2).shuffle(1),
        "filtered": stream.filter(lambda row: len(row["input_ids"]) > 6),
    }[name]
    model, rows = make_gpt2(), list(stream.take(10))
    index = InfluenceIndex.build(model, stream, tmp_path / "index", config=GRADIENTS, examples_seen=10)
    assert relative_error(index, model, [{"input_ids": row["input_ids"]} for row in rows]) < 1e-4
    assert texts_of(index) == [(row["example_id"], row["text"]) for row in rows]


def test_a_build_goes_on_from_the_last_whole_shard(tmp_path, monkeypatch):
    model, config, rows = make_gpt2(), plain_config(shard_size=50), make_rows(130)
    record, seen = GradientRecorder.record, []

    def stops(self, batch, rows=None, counted=None):
        seen.extend(rows)
        if 113 in rows:
            raise KeyboardInterrupt
        return record(self, batch, rows, counted)

    options = {"config": config, "examples_seen": 130, "check": False}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GradientRecorder, "record", stops)
        InfluenceIndex.build(model, Counted(150, rows=rows), tmp_path / "index", **options)
    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(GradientRecorder, "record", lambda self, *args: (seen.extend(args[1]), record(self, *args))[1])
        with pytest.raises(BuildFolderError, match="unfinished build of another model, dataset or config"):
            InfluenceIndex.build(model, rows.shuffle(seed=1).to_iterable_dataset(), tmp_path / "index", **options)
        index = InfluenceIndex.build(model, Counted(150, rows=rows), tmp_path / "index", **options)
    assert sorted(seen) == list(range(100, 130))
    whole = InfluenceIndex.build(model, rows.to_iterable_dataset(num_shards=2), tmp_path / "whole", **options)
    assert digests(index.path) == digests(whole.path)


def test_what_is_shown_instead_may_go_on_behind_the_stream(tmp_path):
    model, stream = make_gpt2(), Counted(20, rows=make_rows(20).remove_columns("text"))
    shown = make_rows(20)
    index = InfluenceIndex.build(model, stream, tmp_path / "a", examples=shown, examples_seen=12)
    assert texts_of(index) == list(zip(shown["example_id"], shown["text"], strict=True))[:12]
    with pytest.raises(DatasetError, match="examples has 8 rows, the dataset 12: they must be the same"):
        InfluenceIndex.build(model, stream, tmp_path / "b", examples=shown.select(range(8)), examples_seen=12)
    with pytest.raises(DatasetError, match="examples is a Counted, which has no length"):
        InfluenceIndex.build(model, stream, tmp_path / "b", examples=stream, examples_seen=12)


def test_a_stream_of_unknown_length_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="Pass examples_seen="):
        InfluenceIndex.build(make_gpt2(), make_rows(9).to_iterable_dataset(), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def collate(features):
    width = max(len(feature["input_ids"]) for feature in features)
    ids = torch.tensor([list(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    return {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100), "attention_mask": (ids != 0).long()}


def train(tmp_path, stream, callback, cls=Trainer, **arguments):
    defaults = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    trainer = cls(
        model=make_gpt2(),
        args=TrainingArguments(**(defaults | arguments)),
        train_dataset=stream,
        data_collator=collate,
        callbacks=[callback],
    )
    trainer.train()
    return trainer


class Noting(Trainer):
    """Notes the first token of each row that it trains on, and how long the row is."""

    def training_step(self, model, inputs, *args, **kwargs):
        rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        self.__dict__.setdefault("seen", []).extend(tuple(ids[: sum(mask)]) for ids, mask in rows)
        return super().training_step(model, inputs, *args, **kwargs)


STEPS = {
    "fewer steps than the stream": {"max_steps": 3, "gradient_accumulation_steps": 2},
    "a part of a batch at its end": {"max_steps": 8},
    "workers": {"max_steps": 5, "dataloader_num_workers": 2},
    "workers, twice through": {"max_steps": 12, "dataloader_num_workers": 2},
}


@pytest.mark.parametrize("arguments", STEPS.values(), ids=STEPS)
def test_the_rows_are_those_that_were_trained_on(tmp_path, arguments):
    rows = make_rows(30)
    stream = rows.to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=4)
    callback = InfluenceCallback(tmp_path / "index", config=plain_config(shard_size=7), raise_errors=True)
    trainer = train(tmp_path, stream, callback, Noting, **arguments)
    token_of = {name: tuple(ids) for name, ids in zip(rows["example_id"], rows["input_ids"], strict=True)}
    recorded = [token_of[name] for name, _ in texts_of(callback.index)]
    first_epoch = list(dict.fromkeys(trainer.seen))
    assert recorded == first_epoch[: len(recorded)] and set(recorded) == set(trainer.seen)
    expected = min(30, len(trainer.seen))
    assert len(recorded) == expected
    ids = list(token_of.values())
    query = rows.select([ids.index(recorded[4])])
    assert int(callback.index.attribute(trainer.model, query, top_k=1).indices) == 4


def test_the_training_is_the_same_with_and_without_the_callback(tmp_path):
    def weights(callback):
        stream = make_rows(30).to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=4)
        trainer = train(tmp_path, stream, callback, max_steps=12)
        return torch.cat([weight.flatten() for weight in trainer.model.parameters()]), torch.get_rng_state()

    callback = InfluenceCallback(tmp_path / "index", config=plain_config(), raise_errors=True)
    for one, other in zip(weights(callback), weights(InfluenceCallback.__mro__[1]()), strict=True):
        assert torch.equal(one, other)


def test_how_many_rows_can_be_said(tmp_path):
    callback = InfluenceCallback(tmp_path / "index", config=plain_config(), raise_errors=True, examples_seen=5)
    train(tmp_path, make_rows(30).to_iterable_dataset(), callback, max_steps=3)
    assert len(callback.index) == 5


def test_what_cannot_be_indexed_is_refused_before_training(tmp_path):
    steps = []

    class Watching(InfluenceCallback):
        def on_step_end(self, *args, **kwargs):
            steps.append(1)

    stream = make_rows(30).to_iterable_dataset()
    wrong = {
        "The stream ended after 30 rows, and 31 were to be read": (stream, {"examples_seen": 31}, {}),
        "is a Loose that is": (Loose(range(99)), {}, {}),
        "dataloader_in_order=False": (stream, {}, {"dataloader_num_workers": 2, "dataloader_in_order": False}),
        "examples has 3 rows, the dataset 12": (stream, {"examples": make_rows(3)}, {}),
        "examples_seen is for streams": (make_rows(30), {"examples_seen": 3}, {}),
    }
    for message, (dataset, options, arguments) in wrong.items():
        with pytest.raises(DatasetError, match=message):
            train(tmp_path, dataset, Watching(tmp_path / "index", **options), max_steps=3, **arguments)
    assert steps == []


PACKED = {"input_ids": [[5, 6, 7, 8, 9, 3], [4, 4, 2], [9, 8, 7, 6, 1]] * 8, "seq_lengths": [[4, 2], [3], [2, 3]] * 8}


def test_a_packed_stream_is_indexed_by_its_documents(tmp_path):
    model, rows = make_llama(), Dataset.from_dict(PACKED)
    index = InfluenceIndex.build(model, Counted(30, rows=rows), tmp_path / "a", config=GRADIENTS, examples_seen=24)
    whole = InfluenceIndex.build(model, rows, tmp_path / "b", config=GRADIENTS)
    assert len(index) == 5 * 8 and same_factors(index, whole) and index.examples([39]) == whole.examples([39])


@pytest.mark.parametrize("steps", [4, 9])
def test_a_packed_stream_that_was_trained_on(tmp_path, steps):
    """24 rows, of which the training sees 16, or all and some again."""
    callback = InfluenceCallback(tmp_path / "index", config=GRADIENTS, raise_errors=True)
    args = TrainingArguments(str(tmp_path / "out"), **{**ARGUMENTS, "max_steps": steps})
    stream = Dataset.from_dict(PACKED).to_iterable_dataset()
    collator = DataCollatorWithFlattening()
    Trainer(make_llama(), args, train_dataset=stream, data_collator=collator, callbacks=[callback]).train()
    held = [row["source_row"] for row in callback.index.examples(list(range(len(callback.index))))]
    assert sorted(set(held)) == list(range(16 if steps == 4 else 24))
