"""Which rows go through the model together, and that nothing of it shows in what is stored."""

import pytest
import torch
from datasets import Dataset
from every_task import blenderbot
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.algebra.projection import TwoSidedProjection
from lorif_hf.algebra.whitening import SecondMoments
from lorif_hf.building import recording_pass
from lorif_hf.building.options import BuildOptions
from lorif_hf.building.recording_pass import RecordingPass
from lorif_hf.codecs import PackedCodec
from lorif_hf.curvature.encoding import Encoder
from lorif_hf.errors import ConfigError, DatasetError, RecordingError
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.recording.rows import TrainingRows
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective


CONFIG = plain_config(projection_factor=2, dtype="float32", shard_size=8)


def factors(index):
    """Every stored tensor of an index, by shard and name."""
    return [
        part
        for shard in index.manifest.shards
        for parts in index._queried.reader.load(shard, index.manifest.modules).values()
        for part in parts.values()
    ]


def test_row_order_is_restored(tmp_path):
    model, rows = make_gpt2(), make_rows(20)
    assert len({len(ids) for ids in rows["input_ids"]}) > 5
    one = InfluenceIndex.build(model, rows, tmp_path / "one", config=CONFIG, batch_size=1)
    other = InfluenceIndex.build(model, rows, tmp_path / "other", config=CONFIG, max_tokens_per_batch=40)
    for left, right in zip(factors(one), factors(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)
    for alone, together in zip(one.examples(range(20)), other.examples(range(20)), strict=True):
        assert alone["num_tokens"] == together["num_tokens"] and alone["example_id"] == together["example_id"]
        assert alone["loss"] == pytest.approx(together["loss"], rel=1e-5)
        assert alone["self_influence"] == pytest.approx(together["self_influence"], rel=1e-3)


def test_a_budget_bounds_the_tokens_of_every_forward_pass(tmp_path, monkeypatch):
    record, seen = GradientRecorder.record, []

    def watched(self, batch, rows=None, counted=None):
        seen.append(batch["input_ids"].numel())
        return record(self, batch, rows, counted)

    monkeypatch.setattr(GradientRecorder, "record", watched)
    InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "index", config=CONFIG, max_tokens_per_batch=40)
    assert max(seen) <= 40 and len(seen) < 20


def small_machine(monkeypatch, most):
    """A machine on which only so many rows fit; gives the sizes that were tried."""
    record, tried = GradientRecorder.record, []

    def limited(self, batch, rows=None, counted=None):
        tried.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return record(self, batch, rows, counted)

    monkeypatch.setattr(GradientRecorder, "record", limited)
    return tried


@pytest.mark.parametrize("config", [CONFIG, InfluenceConfig(shard_size=8, factor_rank=2)], ids=["paper", "default"])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path, monkeypatch, caplog, config):
    model, rows = make_gpt2(), make_rows(20)
    whole = InfluenceIndex.build(model, rows, tmp_path / "whole", config=config, batch_size=2)
    tried = small_machine(monkeypatch, 2)
    found = InfluenceIndex.build(
        model, rows, tmp_path / "found", config=config, batch_size=8, auto_find_batch_size=True
    )
    assert tried[:3] == [8, 4, 2] and tried.count(8) == tried.count(4) == 1  # what did not fit is not tried again
    assert "Out of memory with 8 rows at once: going on with half as many" in caplog.text
    losses = [[example["loss"] for example in index.examples(range(20))] for index in (whole, found)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("where", [0, 3, 7])
def test_memory_that_ends_halfway_through_a_backward_pass_counts_no_token_twice(monkeypatch, where):
    """The layers before the `where`-th have the batch in their moments already when it is halved."""
    model, rows = make_gpt2(), make_rows(20)
    expected = moments_of(model, rows, BuildOptions(5))
    of, calls = SecondMoments.of, []

    def limited(moments, inputs, output_gradients):
        calls.append(len(inputs))
        if len(inputs) > 3 and calls.count(len(inputs)) > where:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return of(moments, inputs, output_gradients)

    monkeypatch.setattr(SecondMoments, "of", limited)
    found = moments_of(model, rows, BuildOptions(10, auto=True))
    assert calls.count(10) == where + 1 and 5 in calls and 3 in calls
    for name, one in expected.items():
        assert found[name].tokens == one.tokens > 0
        torch.testing.assert_close(found[name].inputs, one.inputs, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found[name].outputs, one.outputs, rtol=1e-4, atol=1e-7)


def moments_of(model, rows, batching):
    modules = tracked_modules(model)
    moments = {one.name: SecondMoments.zeros(*one.matrix_shape) for one in modules}
    whole = {one.name: TwoSidedProjection(None, None) for one in modules}
    training = TrainingRows(rows, model, task_of(model))
    with GradientRecorder(model, modules, whole, LossObjective(task_of(model)), moments) as recorder:
        for _ in RecordingPass(training, batching).run(recorder, range(len(rows))):
            pass
    return moments


def test_where_not_even_one_row_fits_the_row_is_named(tmp_path, monkeypatch):
    small_machine(monkeypatch, 0)
    with pytest.raises(RecordingError, match="Out of memory at row 0, 1 at once.* on a device with more memory"):
        InfluenceIndex.build(
            make_gpt2(), make_rows(4), tmp_path / "index", config=CONFIG, batch_size=4, auto_find_batch_size=True
        )


def test_rows_without_tokens_have_no_budget(tmp_path):
    rows = Dataset.from_dict({"inputs_embeds": [[[0.0] * 12] * 3] * 4, "labels": [[1, 2, 3]] * 4})
    with pytest.raises(DatasetError, match="counts the tokens in column 'input_ids'; the dataset has inputs_embeds"):
        InfluenceIndex.build(make_gpt2(), rows, tmp_path / "index", config=CONFIG, max_tokens_per_batch=40)


@pytest.mark.parametrize("budget", [0, -1, 2.5, "8", True])
def test_an_impossible_budget_is_refused(tmp_path, budget):
    with pytest.raises(ConfigError, match="max_tokens_per_batch must be an integer of at least 1"):
        InfluenceIndex.build(make_gpt2(), make_rows(4), tmp_path / "index", max_tokens_per_batch=budget)


@pytest.mark.parametrize("tokens", [(7, 4), (4, 7), (4, 4)], ids=["of the decoder", "of the encoder", "of both"])
def test_as_many_rows_as_tokens_are_recorded_in_halves(tmp_path, tokens):
    """Positions 0 to 3 could be one of each of four rows: nothing is guessed, and the pass goes on all the same."""
    config = InfluenceConfig.grad_dot(target_modules="all", projection_factor=1, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            name: torch.randint(3, 30, (n,), generator=generator).tolist()
            for name, n in zip(("input_ids", "labels"), pair, strict=True)
        }
        for pair in [(5, 6), (6, 5), (7, 7), (6, 6), *4 * [tokens]]
    ]
    together = InfluenceIndex.build(blenderbot(), rows, tmp_path / "4", config=config, batch_size=4)
    apart = InfluenceIndex.build(blenderbot(), rows, tmp_path / "1", config=config, batch_size=1)
    assert not together.manifest.alone
    for held, expected in zip(factors(together), factors(apart), strict=True):
        torch.testing.assert_close(held, expected, rtol=1e-4, atol=1e-5)
    scores = together.scores(blenderbot(), rows[4:], batch_size=4)
    torch.testing.assert_close(scores, apart.scores(blenderbot(), rows[4:], batch_size=1), rtol=1e-4, atol=1e-4)


ENCODING = {
    "encoding": (Encoder, "encode"),
    "packing": (PackedCodec, "encode"),
    "crossing": (recording_pass, "on_cpu"),
    "the last step": (recording_pass, "squared_norms"),
}


def small_encoder(monkeypatch, place, most, after=0):
    """A machine on which more than `most` rows are recorded, but not encoded: all but the first `after` steps fail.
    Gives how many rows were to be encoded each time."""
    owner, name = ENCODING[place]
    step, record, recorded, failed = getattr(owner, name), GradientRecorder.record, [], []

    def watched(self, batch, rows=None, counted=None):
        recorded.append(len(rows))
        return record(self, batch, rows, counted)

    def limited(*args):
        if recorded and recorded[-1] > most:
            failed.append(recorded[-1])
            if len(failed) > after:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return step(*args)

    monkeypatch.setattr(GradientRecorder, "record", watched)
    monkeypatch.setattr(owner, name, limited)
    return failed


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("place", ENCODING)
def test_what_does_not_fit_when_it_is_encoded_is_halved_too(tmp_path, monkeypatch, caplog, place, after):
    config = InfluenceConfig(shard_size=8, factor_rank=2)
    whole = InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "whole", config=config, batch_size=2)
    failed = small_encoder(monkeypatch, place, 2, after)
    found = InfluenceIndex.build(
        make_gpt2(), make_rows(20), tmp_path / "found", config=config, batch_size=8, auto_find_batch_size=True
    )
    assert failed == [8] * (after + 1) + [4]  # what did not fit is not tried again
    assert "Out of memory with 8 rows at once: going on with half as many" in caplog.text
    for ours, expected in zip(found.examples(range(20)), whole.examples(range(20)), strict=True):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert ours["self_influence"] == pytest.approx(expected["self_influence"], rel=1e-3)


@pytest.mark.parametrize("place", ENCODING)
def test_memory_that_ends_while_rows_are_encoded_says_what_to_set(tmp_path, monkeypatch, place):
    config = InfluenceConfig(shard_size=8, factor_rank=2)
    small_encoder(monkeypatch, place, 2)
    with pytest.raises(RecordingError, match="Out of memory at rows 0 to 3, 4 at once.* smaller batch_size"):
        InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "index", config=config, batch_size=4, check=False)
    with pytest.raises(RecordingError, match="Out of memory at row 0, 1 at once.* higher projection_factor"):
        small_encoder(monkeypatch, place, 0)
        InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "index", config=config, batch_size=1, check=False)


def test_another_error_while_rows_are_encoded_is_none_of_the_models(tmp_path, monkeypatch):
    def broken(*args):
        raise IndexError("a bug")

    monkeypatch.setattr(Encoder, "encode", broken)
    with pytest.raises(IndexError, match="^a bug$"):
        InfluenceIndex.build(make_gpt2(), make_rows(4), tmp_path / "index", config=CONFIG, check=False)


def test_gradients_are_let_go_of_before_the_next_rows_are_recorded(gpt2, rows):
    modules = tracked_modules(gpt2)
    projections = {tracked.name: TwoSidedProjection(None, None) for tracked in modules}
    training, seen = TrainingRows(rows, gpt2, task_of(gpt2)), []
    with GradientRecorder(gpt2, modules, projections, LossObjective(task_of(gpt2))) as recorder:
        passing = RecordingPass(training, BuildOptions(4))
        for _, _, recording in passing.run(
            recorder, range(8), lambda rows, tokens, made: seen.append(len(made.gradients))
        ):
            assert recording.gradients == {} and len(recording.losses) == 4
    assert seen == [len(modules)] * 2
