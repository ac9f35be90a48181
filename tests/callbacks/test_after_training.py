"""Whatever goes wrong after the last step: `train()` returns, the model can be saved, and the index goes on."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import make_gpt2, make_rows
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments
from truth import GRADIENTS

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building import builder
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import DatasetError, DiskFullError, RecordingError
from lorif_hf.recording.recorder import GradientRecorder


CONFIG = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32", shard_size=6)


def collate(features):
    width = max(len(feature["input_ids"]) for feature in features)
    ids = torch.tensor([feature["input_ids"] + [0] * (width - len(feature["input_ids"])) for feature in features])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def train(tmp_path, callback, data_collator=collate):
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=make_gpt2(),
        args=arguments,
        train_dataset=make_rows(20),
        data_collator=data_collator,
        callbacks=[callback],
    )
    trainer.train()
    return trainer


def recorded_rows(monkeypatch):
    """The rows that are recorded from now on."""
    record, rows = GradientRecorder.record, []

    def noted(self, batch, batch_rows=None, counted=None):
        rows.extend(batch_rows)
        return record(self, batch, batch_rows, counted)

    monkeypatch.setattr(GradientRecorder, "record", noted)
    return rows


def full_disk(monkeypatch):
    write, written = builder.write_shard, []

    def limited(path, *args):
        if len(written) == 2:
            raise DiskFullError(f"{path} did not fit on the disk")
        written.append(path)
        return write(path, *args)

    monkeypatch.setattr(builder, "write_shard", limited)


class Fails:
    """A collator that fails at a row of the last shard, but not while the first batches are looked at or trained."""

    def __init__(self):
        self._broken = False

    def __call__(self, features):
        if self._broken and any(feature["input_ids"] == make_rows(20)[19]["input_ids"] for feature in features):
            raise ValueError("the picture of row 19 is gone")
        return collate(features)


class Panic(BaseException):
    """As pyo3's PanicException: not an Exception."""


def panic(self):
    raise Panic


@pytest.mark.parametrize("trouble", ["a full disk", "a collator that fails in the last shard", "any error", "a panic"])
def test_train_returns_and_the_pass_goes_on(tmp_path, monkeypatch, caplog, trouble):
    collator = Fails()

    class Breaking(InfluenceCallback):
        def on_train_end(self, *args, **kwargs):
            with monkeypatch.context() as patch:
                if trouble == "a full disk":
                    full_disk(patch)
                elif trouble == "any error":
                    patch.setattr(builder.IndexBuilder, "_fit_all", lambda self: 1 / 0)
                elif trouble == "a panic":
                    patch.setattr(builder.IndexBuilder, "_fit_all", panic)
                else:
                    collator._broken = True
                super().on_train_end(*args, **kwargs)

    callback = Breaking(tmp_path / "index", config=CONFIG)
    with caplog.at_level(logging.ERROR):
        trainer = train(tmp_path, callback, collator)
    errors = {"a full disk": DiskFullError, "any error": ZeroDivisionError, "a panic": Panic}
    expected = errors.get(trouble, DatasetError)
    assert isinstance(callback.error, expected) and callback.index is None
    assert "Traceback" in caplog.text and "To go on: callback.record()" in caplog.text
    trainer.save_model(str(tmp_path / "model"))
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    collator._broken = False
    rows = recorded_rows(monkeypatch)
    index = callback.record()
    assert callback.index is index and callback.error is None and len(index) == 20
    # Of four shards of at most six rows, those that were whole are not recorded again.
    assert rows == {"a full disk": [*range(12, 20)], "any error": [], "a panic": []}.get(trouble, [18, 19])
    assert int(index.attribute(saved, make_rows(20).select([19]), top_k=1).indices) == 19
    with pytest.raises(RecordingError, match="there is nothing to record"):
        callback.record()


def test_the_same_training_again_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch)
        first = InfluenceCallback(tmp_path / "index", config=CONFIG)
        train(tmp_path, first)
    assert isinstance(first.error, DiskFullError)
    rows = recorded_rows(monkeypatch)
    again = InfluenceCallback(tmp_path / "index", config=CONFIG)
    train(tmp_path, again)
    assert rows == [*range(12, 20)] and again.index.path == tmp_path / "index"


def test_build_with_the_same_arguments_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch)
        callback = InfluenceCallback(tmp_path / "index", config=CONFIG)
        trainer = train(tmp_path, callback)
    rows = recorded_rows(monkeypatch)
    dataset = trainer.get_train_dataloader().dataset
    index = InfluenceIndex.build(
        trainer.model,
        dataset,
        tmp_path / "index",
        config=CONFIG,
        data_collator=collate,
        examples=trainer.train_dataset,
    )
    assert rows == [*range(12, 20)] and len(index) == 20


def test_errors_are_raised_for_who_wants_them(tmp_path, monkeypatch):
    class Breaking(InfluenceCallback):
        def on_train_end(self, *args, **kwargs):
            full_disk(monkeypatch)
            super().on_train_end(*args, **kwargs)

    callback = Breaking(tmp_path / "index", config=CONFIG, raise_errors=True)
    with pytest.raises(DiskFullError, match="did not fit"):
        train(tmp_path, callback)
    assert isinstance(callback.error, DiskFullError)


def test_a_gradient_that_is_not_finite_does_not_cost_the_training(tmp_path, caplog):
    class Poisoned(InfluenceCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
            super().on_train_end(args, state, control, model=model, **kwargs)

    callback = Poisoned(tmp_path / "index", config=GRADIENTS)
    train(tmp_path, callback)
    assert type(callback.error).__name__ == "NonFiniteGradientError" and "is NaN or infinite" in caplog.text


_TRAINING = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
import test_after_training as tests
from lorif_hf.building import builder
from lorif_hf.callbacks import InfluenceCallback

write = builder.write_shard
def slow(path, *args):
    write(path, *args)
    if len(sys.argv) > 2:
        time.sleep(60)
builder.write_shard = slow
callback = InfluenceCallback(Path(sys.argv[1]) / "index", config=tests.CONFIG)
trainer = tests.train(Path(sys.argv[1]), callback)
trainer.save_model(str(Path(sys.argv[1]) / "model"))
print("done", callback.error, len(callback.index))
"""


def test_a_killed_pass_goes_on_when_the_training_runs_again(tmp_path):
    here = Path(__file__).resolve().parent
    script = tmp_path / "training.py"
    script.write_text(_TRAINING.format(paths=[str(here), str(here.parent / "support")]))
    command = [sys.executable, str(script), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "slowly"], env=environment, stderr=subprocess.PIPE)
    first = tmp_path / "index" / "factors" / "factors-00001.safetensors"
    waited = time.monotonic()
    while not first.exists() and process.poll() is None and time.monotonic() - waited < 300:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert first.exists(), errors.decode()
    kept = first.read_bytes(), first.stat().st_mtime_ns
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert "done None 20" in done.stdout, done.stderr
    assert (first.read_bytes(), first.stat().st_mtime_ns) == kept
    assert (tmp_path / "model" / "model.safetensors").exists()
