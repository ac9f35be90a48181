"""Retraining: subsets, losses, going on after a crash, and every way a bank is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import IterableDataset
from filelock import FileLock
from retrained import QUERIES, ROWS, SMALL, Interrupted, bank_bytes, make_bank, make_trainer
from tiny import make_gpt2

from lorif_hf.errors import EvaluationError, QueryError
from lorif_hf.evaluation.retraining.bank import RetrainBank
from lorif_hf.evaluation.retraining.retrain import draw_subsets, retrain
from lorif_hf.tasks.causal_lm import CausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished bank."""
    path = tmp_path_factory.mktemp("retrained") / "bank"
    make_bank(path)
    return path


@pytest.fixture
def untrained(monkeypatch):
    """Any training fails the test."""
    from lorif_hf.evaluation.retraining.runs import RetrainJob

    monkeypatch.setattr(RetrainJob, "run", lambda self, run: pytest.fail("a run was done"))


def loss_of(model, ids):
    ids = torch.tensor([ids])
    with torch.no_grad():
        return float(CausalLM().losses(model.eval(), {"input_ids": ids, "labels": ids}))


def test_the_bank_holds_the_losses_of_models_trained_on_the_subsets(folder):
    """Each by hand: no batches of queries, no padding."""
    bank = RetrainBank.from_pretrained(folder)
    assert bank.membership.shape == (3, 12) and bank.membership.sum(dim=1).tolist() == [6, 6, 6]
    assert bank.losses_by_seed.shape == (2, 3, 3) and bank.losses_by_seed.dtype == torch.float64
    assert bank.seeds == [0, 1] and torch.equal(bank.losses, bank.losses_by_seed.mean(dim=0))
    for subset, seed in ((0, 0), (2, 1)):
        trainer = make_trainer(ROWS.select(bank.membership[subset].nonzero()[:, 0].tolist()), seed)
        trainer.train()
        expected = [loss_of(trainer.model, row["input_ids"]) for row in QUERIES]
        torch.testing.assert_close(bank.losses_by_seed[seed, subset].float(), torch.tensor(expected))
    assert len({tuple(row) for row in bank.losses_by_seed.flatten(0, 1).tolist()}) == 6


def test_a_finished_bank_is_loaded_and_not_trained_again(folder, untrained):
    before = bank_bytes(folder)
    assert set(before) == {"README.md", "bank.json", "data/runs.parquet", "data/queries.parquet"}
    again = make_bank(folder)
    assert torch.equal(again.losses, RetrainBank.from_pretrained(folder).losses) and bank_bytes(folder) == before


def test_what_a_failed_run_leaves_is_gone_on_with(folder, tmp_path):
    path = tmp_path / "bank"
    message = (
        r"Run 4 of 6 \(subset 1, seed 1\) failed with ValueError: bad luck. The finished runs are kept: call retr"
    )
    with pytest.raises(EvaluationError, match=message):
        make_bank(path, Interrupted(tmp_path, 4, "raise"))
    staged = path / ".lorif-build"
    runs = sorted(file.name for file in staged.glob("run-*"))
    assert runs == [f"run-{number:05d}-of-00006.safetensors" for number in (1, 2, 3)]
    with pytest.raises(EvaluationError, match="holds no bank: expected a folder with bank.json.* calling retrain"):
        RetrainBank.from_pretrained(path)
    (staged / runs[0]).write_bytes(b"")
    content = bytearray((staged / runs[1]).read_bytes())
    content[-1] ^= 1
    (staged / runs[1]).write_bytes(content)
    (staged / "run-00005-of-00006.safetensors.77.tmp").write_bytes(b"half")
    make_bank(path, Interrupted(tmp_path, 99, "raise"))
    assert len(list(tmp_path.glob("training-*"))) == 4 + 5  # the two damaged ones and the three missing ones
    assert bank_bytes(path) == bank_bytes(folder)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from retrained import Interrupted, make_bank
make_bank({path!r}, Interrupted({count!r}, 4, "kill"))
"""


@pytest.mark.slow
def test_after_kill_9_the_bank_ends_with_the_same_bytes(folder, tmp_path):
    path, tests = tmp_path / "bank", str(Path(__file__).parents[2] / "support")
    script = KILLED.format(tests=tests, path=str(path), count=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    assert len(list((path / ".lorif-build").glob("run-*"))) == 3 and not (path / "bank.json").exists()
    make_bank(path)
    assert bank_bytes(path) == bank_bytes(folder)


def other_trainer(train_dataset, seed):
    return make_trainer(train_dataset, seed, learning_rate=1e-3)


def other_model(train_dataset, seed):
    return make_trainer(train_dataset, seed, model=make_gpt2(seed=1))


OTHERS = {
    "dataset": {"dataset": ROWS.select(range(11, -1, -1))},
    "queries": {"queries": QUERIES.select([1, 0, 2])},
    "training": {"make_trainer": other_trainer},
    "model": {"make_trainer": other_model},
    "fraction, subset_size, subsets": {"fraction": 0.25},
    "seeds": {"seeds": 1},
    "seed, seeds, subsets": {"seed": 1},
    "num_subsets, subsets": {"num_subsets": 2},
    "objective, queries": {"objective": lambda model, batch: CausalLM().losses(model, batch)},
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("different", OTHERS)
def test_the_bank_of_other_settings_is_refused(folder, tmp_path, untrained, different, finished):
    call = {"make_trainer": make_trainer, "dataset": ROWS, "queries": QUERIES, "path": folder} | SMALL
    if not finished:
        call["path"] = tmp_path / "bank"
        with pytest.raises(pytest.fail.Exception):
            retrain(**call)
    message = f"bank holds a bank of other settings: {different} differ.s.. Choose another folder, or call retrain"
    with pytest.raises(EvaluationError, match=message):
        retrain(**(call | OTHERS[different]))


def test_rows_are_the_same_however_they_are_shown(folder, untrained):
    """Columns for people are none of the model's."""
    retrain(make_trainer, ROWS.remove_columns("text"), QUERIES, folder, **SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_subsets": 1}, "num_subsets must be an integer of at least 2, got 1"),
        ({"num_subsets": 2.0}, "num_subsets must be an integer of at least 2, got 2.0"),
        ({"seeds": 0}, "seeds must be an integer of at least 1, got 0"),
        ({"num_processes": 0}, "num_processes must be an integer of at least 1, got 0"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"fraction": 0.04}, "fraction=0.04 of 12 rows makes subsets of 0 rows; expected at least 1 and at most 11"),
        ({"fraction": 0.97}, "fraction=0.97 of 12 rows makes subsets of 12 rows; expected at least 1 and at most 11"),
        ({"fraction": 1}, "fraction=1 of 12 rows makes subsets of 0 rows"),
        ({"fraction": float("nan")}, "fraction=nan of 12 rows makes subsets of 0 rows"),
        ({"fraction": "half"}, "fraction='half' of 12 rows"),
    ],
)
def test_settings_that_make_no_bank_are_refused(tmp_path, untrained, options, message):
    with pytest.raises(EvaluationError, match=message):
        make_bank(tmp_path / "bank", **options)
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("count, fraction, size", [(2, 0.5, 1), (12, 0.05, 1), (12, 0.95, 11), (5, 0.5, 2)])
def test_subsets_are_drawn_without_replacement(count, fraction, size):
    drawn = draw_subsets(count, 40, fraction, 3)
    assert drawn.shape == (40, count) and (drawn.sum(axis=1) == size).all() and drawn.any(axis=0).all()
    assert np.array_equal(draw_subsets(count, 7, fraction, 3), drawn[:7])
    assert not np.array_equal(draw_subsets(count, 40, fraction, 4), drawn)


def test_one_query_two_subsets_one_seed(tmp_path):
    bank = make_bank(tmp_path / "bank", num_subsets=2, seeds=1, fraction=0.9, seed=5)
    assert bank.losses.shape == (2, 3) and bank.seeds == [5]
    with pytest.raises(EvaluationError, match="Seeds can be compared from two on, this bank has one: retrain with se"):
        bank.seed_agreement()
    single = retrain(make_trainer, ROWS, {"input_ids": [1, 2, 3]}, tmp_path / "one", num_subsets=2, seeds=1)
    assert single.losses.shape == (2, 1) and "not measured: one seed" in (tmp_path / "one" / "README.md").read_text()


def test_a_text_is_measured_as_an_index_measures_it(tmp_path, tokenizer):
    queries = ["1 2 3", ("4 5", " 6 7 8")]
    bank = retrain(make_trainer, ROWS, queries, tmp_path / "bank", processing_class=tokenizer, num_subsets=2, seeds=1)
    assert bank.queries[1]["input_ids"].tolist() == [4, 5, 6, 7, 8]
    assert bank.queries[1]["labels"].tolist() == [-100, -100, 6, 7, 8]
    with pytest.raises(QueryError, match="Query 0 is text, but the index holds no tokenizer"):
        retrain(make_trainer, ROWS, queries, tmp_path / "other", num_subsets=2)


def test_a_dataset_that_is_no_dataset_of_datasets(tmp_path, folder):
    """Rows in a list: the same fingerprint, the same subsets."""
    rows = [{"input_ids": row["input_ids"]} for row in ROWS]
    arguments = {"remove_unused_columns": False}
    bank = retrain(
        lambda train, seed: make_trainer(train, seed, **arguments), rows, QUERIES, tmp_path / "bank", **SMALL
    )
    assert torch.equal(bank.losses, RetrainBank.from_pretrained(folder).losses)


def test_a_stream_has_no_subsets(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    with pytest.raises(EvaluationError, match="A IterableDataset has no length, so no subset of it can be drawn"):
        retrain(make_trainer, stream, QUERIES, tmp_path / "bank")


def test_folders_that_are_not_free(tmp_path, untrained):
    (tmp_path / "file").touch()
    with pytest.raises(EvaluationError, match="file is a file; a bank needs a folder"):
        make_bank(tmp_path / "file")
    with pytest.raises(EvaluationError, match="is not empty and holds no bank of retrained models. Choose another"):
        make_bank(tmp_path)
    (tmp_path / "bank" / ".lorif-build").mkdir(parents=True)
    with (
        FileLock(tmp_path / "bank" / ".lorif-build" / "lock"),
        pytest.raises(
            EvaluationError, match="Another process is retraining in .*bank: wait for it, or choose another"
        ),
    ):
        make_bank(tmp_path / "bank")


def test_queries_of_another_length_are_no_bank_of_these(tmp_path):
    with pytest.raises(QueryError, match="Query 0 has 17 tokens, the model takes at most 16"):
        retrain(make_trainer, ROWS, {"input_ids": list(range(17))}, tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
