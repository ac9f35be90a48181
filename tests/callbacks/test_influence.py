"""The Trainer side: row i of the index is row i of the dataset, whatever the Trainer did with it."""

import hashlib

import pytest
import torch
from tiny import make_gpt2, make_rows, plain_config
from transformers import Trainer, TrainingArguments

from lorif_hf import InfluenceIndex
from lorif_hf.building import dry_run
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import (
    BuildFolderError,
    ConfigError,
    DatasetError,
    DiskFullError,
    HubAccessError,
    PublishError,
    RecordingError,
    UnsupportedModuleError,
)
from lorif_hf.recording.recorder import GradientRecorder


def collate(features):
    width = max(len(feature["input_ids"]) for feature in features)
    ids = [list(feature["input_ids"]) + [0] * (width - len(feature["input_ids"])) for feature in features]
    labels = [[*f["input_ids"], *[-100] * (width - len(f["input_ids"]))] for f in features]
    mask = [[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}


def train(tmp_path, callback, dataset, **arguments):
    model = make_gpt2()
    defaults = {
        "output_dir": str(tmp_path / "out"),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**(defaults | arguments)),
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[callback],
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("remove_unused_columns", [True, False])
@pytest.mark.parametrize("sampling", ["random", "group_by_length", "sequential"])
def test_row_i_of_the_index_is_row_i_of_the_dataset(tmp_path, remove_unused_columns, sampling):
    rows = make_rows(20)
    callback = InfluenceCallback(tmp_path / "index", config=plain_config(shard_size=7), examples=rows)
    trainer = train(
        tmp_path,
        callback,
        rows,
        gradient_accumulation_steps=2,
        remove_unused_columns=remove_unused_columns,
        train_sampling_strategy=sampling,
        seed=3,
    )
    index = InfluenceIndex.from_pretrained(tmp_path / "index")
    assert [example["example_id"] for example in index.examples(list(range(20)))] == list(rows["example_id"])
    built = InfluenceIndex.build(
        trainer.model,
        rows,
        tmp_path / "built",
        config=plain_config(shard_size=7),
        data_collator=collate,
        batch_size=3,
    )
    digests = [
        hashlib.sha256((folder / "factors" / "factors-00002.safetensors").read_bytes()).hexdigest()
        for folder in (tmp_path / "index", built.path)
    ]
    assert digests[0] == digests[1], "the factors are those of the final weights, in the dataset's order"
    for row in (0, 11, 19):
        assert int(callback.index.attribute(trainer.model, rows.select([row]), top_k=1).indices) == row


def test_the_model_is_left_as_the_training_left_it(tmp_path):
    callback = InfluenceCallback(tmp_path / "index")
    trainer = train(tmp_path, callback, make_rows(6))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert trainer.model.training
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_the_best_checkpoint_is_what_gets_indexed(tmp_path):
    callback = InfluenceCallback(tmp_path / "index")
    model, rows = make_gpt2(), make_rows(6)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        num_train_epochs=3,
        report_to="none",
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst model is the first one: the best checkpoint is not the last
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate, callbacks=[callback]
    )
    trainer.train()
    best = make_gpt2().from_pretrained(trainer.state.best_model_checkpoint)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert callback.index.attribute(best, rows.select([2]), top_k=1).scores.shape == (1, 1)


def test_a_folder_in_use_is_refused_before_training(tmp_path):
    InfluenceIndex.build(make_gpt2(), make_rows(4), tmp_path / "index")
    with pytest.raises(BuildFolderError, match="already holds an index. Choose another folder"):
        train(tmp_path, InfluenceCallback(tmp_path / "index"), make_rows(4))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(BuildFolderError, match="is not empty and holds neither an index"):
        train(tmp_path, InfluenceCallback(tmp_path / "other"), make_rows(4))


def test_an_out_of_memory_error_does_not_restart_the_training(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    begun = []

    class Counted(InfluenceCallback):
        def on_train_begin(self, *args, **kwargs):
            begun.append(1)
            super().on_train_begin(*args, **kwargs)

    def fail(self, batch, rows=None, counted=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(GradientRecorder, "record", fail)
    callback = Counted(tmp_path / "index")
    train(tmp_path, callback, make_rows(6), auto_find_batch_size=True)
    assert len(begun) == 1 and callback.index is None and isinstance(callback.error, RecordingError)
    assert "Out of memory at row 0, 1 at once" in str(callback.error)
    assert "build again on a device with more memory" in str(callback.error)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"config": plain_config(factor_rank=7)}, ConfigError, "factor_rank=7 is above the limit of module"),
        ({"config": plain_config(target_modules=["q_proj"])}, UnsupportedModuleError, "selects no module"),
        ({"examples": [{"text": "alone"}]}, DatasetError, "examples has 1 rows, the dataset 6"),
        ({"data_collator": lambda features: {"x": torch.ones(1)}}, DatasetError, "no column that GPT2LMHeadModel"),
        ({"push_to_hub": True, "repo_id": "a/b/c"}, PublishError, "is no repo id"),
        (
            {"push_to_hub": True, "repo_id": "user/x", "token": "hf_wrong"},
            HubAccessError,
            "does not accept this token",
        ),
    ],
    ids=["rank", "modules", "examples", "batch", "repo", "token"],
)
def test_what_could_only_fail_at_the_end_fails_before_training(tmp_path, hub, options, error, message):
    steps = []

    class Watching(InfluenceCallback):
        def on_step_end(self, *args, **kwargs):
            steps.append(1)

    with pytest.raises(error, match=message):
        train(tmp_path, Watching(tmp_path / "index", **options), make_rows(6))
    assert steps == []


def test_an_unfinished_build_of_an_earlier_training_does_not_cost_this_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(GradientRecorder, "record", None)
        InfluenceIndex.build(make_gpt2(seed=5), make_rows(6), tmp_path / "index")
    callback = InfluenceCallback(tmp_path / "index")
    trainer = train(tmp_path, callback, make_rows(6))
    assert callback.index.path.name.startswith("index-4-")
    assert len(callback.index.attribute(trainer.model, make_rows(6).select([1]), top_k=2).to_list()) == 2


@pytest.mark.parametrize(
    ("arguments", "own", "most"),
    [({}, {"max_tokens_per_batch": 30}, 30), ({"auto_find_batch_size": True}, {}, 16), ({}, {"batch_size": 1}, 15)],
    ids=["a token budget", "auto_find_batch_size of the Trainer", "a batch size"],
)
def test_how_many_rows_go_together(tmp_path, monkeypatch, arguments, own, most):
    """The pass has its own batches; a Trainer that finds its batch size lets the pass find its own too."""
    record, seen = GradientRecorder.record, []

    def limited(self, batch, rows=None, counted=None):
        if batch["input_ids"].numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        seen.append(batch["input_ids"].numel())
        return record(self, batch, rows, counted)

    monkeypatch.setattr(GradientRecorder, "record", limited)
    callback = InfluenceCallback(tmp_path / "index", config=plain_config(projection_factor=2), **own)
    train(tmp_path, callback, make_rows(20), **arguments)
    assert len(callback.index) == 20 and 0 < max(seen) <= most


def test_too_little_room_shows_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "machine_memory", lambda: 1000)
    with pytest.raises(ConfigError, match="This machine has 0.0 MiB of memory beside the model"):
        train(tmp_path, InfluenceCallback(tmp_path / "index"), make_rows(6))
    monkeypatch.undo()
    monkeypatch.setattr(dry_run, "free_disk", lambda path: 1000)
    with pytest.raises(DiskFullError, match=r"The index of 6 rows takes .* of whiteners and eigenvectors"):
        train(tmp_path, InfluenceCallback(tmp_path / "index"), make_rows(6))


def test_too_little_memory_for_the_curvature_shows_before_training(tmp_path):
    callback = InfluenceCallback(tmp_path / "index", config=plain_config(projection_factor=2), max_memory="1kB")
    with pytest.raises(ConfigError, match="max_memory=1000 is too small for the curvature of module"):
        train(tmp_path, callback, make_rows(6))
