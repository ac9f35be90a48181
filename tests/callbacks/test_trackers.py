"""The figures of an index reach the trackers whose run is still open, and a tracker that fails costs nothing."""

from dataclasses import replace

import pytest
import torch
from tiny import make_gpt2, make_rows, plain_config
from transformers import Trainer, TrainerCallback, TrainingArguments

from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.callbacks.trackers import figures_of, report
from lorif_hf.coverage import Coverage


class Tracker(TrainerCallback):
    """As those of `report_to`."""

    def __init__(self):
        self.told, self.state = [], []

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        assert model is not None
        self.told.append(dict(logs))
        logs.clear()  # it may do with them what it likes

    def on_train_end(self, args, state, control, **kwargs):
        self.state.append("ended")


class MLflowCallback(Tracker):
    pass


class Broken(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "influence/rows" in logs:
            raise ConnectionError("the tracker is gone")


def collate(features):
    ids = torch.tensor([row["input_ids"][:3] for row in features])
    return {"input_ids": ids, "labels": ids}


@pytest.fixture
def train(tmp_path):
    def trained(*callbacks, **options):
        callback = InfluenceCallback(tmp_path / "index", config=plain_config(projection_factor=2), **options)
        arguments = TrainingArguments(
            str(tmp_path / "out"),
            max_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        rows = make_rows(6).filter(lambda row: len(row["input_ids"]) >= 3)
        trainer = Trainer(make_gpt2(), arguments, collate, train_dataset=rows, callbacks=[*callbacks, callback])
        trainer.train()
        return trainer, callback

    return trained


def test_trackers_and_the_log_of_the_training_have_the_figures(train):
    tracker, over = Tracker(), MLflowCallback()
    trainer, callback = train(Broken(), tracker, over)
    assert callback.error is None
    figures = tracker.told[-1]
    assert figures.keys() == {f"influence/{n}" for n in ("rows", "bytes_per_example", "seconds", "coverage")}
    assert figures["influence/rows"] == len(callback.index)
    assert figures["influence/bytes_per_example"] == callback.index.bytes_per_example
    assert figures["influence/coverage"] == callback.index.coverage.share and figures["influence/seconds"] > 0
    assert trainer.state.log_history[-1] == {**figures, "step": 1}
    assert not any("influence/rows" in logs for logs in over.told), "its run has ended"


def test_a_tracker_that_fails_is_named(train, caplog):
    _, callback = train(Broken())
    assert callback.error is None and callback.index is not None
    assert (
        "Broken was not told the figures of the influence index (ConnectionError: the tracker is gone)" in caplog.text
    )


def test_an_index_without_a_known_coverage_has_no_such_figure(train):
    trainer, callback = train()
    callback.index.manifest = replace(callback.index.manifest, coverage=Coverage())
    figures = figures_of(callback.index, 2.0)
    report(trainer, figures)
    assert trainer.state.log_history[-1] == {**figures, "step": 1} and "influence/coverage" not in figures


def test_the_card_that_the_trainer_writes_is_not_disturbed(train, tmp_path):
    trainer, _ = train()
    trainer.create_model_card()
    assert "influence" not in (tmp_path / "out" / "README.md").read_text()
