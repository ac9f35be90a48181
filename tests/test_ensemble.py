"""Scores over several models: products and weights averaged apart, and the checkpoints of a training as TracIn."""

import functools

import pytest
import torch
from checkpointed import dot_products, load, logged, make_lora, train
from peft import PeftModel
from tiny import make_gpt2, make_rows
from transformers import GPT2LMHeadModel
from truth import GRADIENTS

from lorif_hf import InfluenceConfig, InfluenceEnsemble, InfluenceIndex, ensemble_scores
from lorif_hf.building.builder import IndexBuilder
from lorif_hf.errors import BuildFolderError, CheckpointError, ConfigError, IndexFormatError, QueryError


CONFIG = InfluenceConfig.trak(projection_dim=32, dtype="float32", shard_size=7)


def build(tmp_path, seed, rows=None):
    model, rows = make_gpt2(seed), make_rows(12) if rows is None else rows
    return model, InfluenceIndex.build(model, rows, tmp_path / f"index-{seed}-{len(rows)}", config=CONFIG)


def test_products_and_weights_are_averaged_apart(tmp_path):
    models, indices = zip(*(build(tmp_path, seed) for seed in range(3)), strict=True)
    queries = make_rows(4, seed=9)
    products = torch.stack(
        [index.scores(model, queries, weighted=False) for model, index in zip(models, indices, strict=True)]
    ).double()
    weights = torch.stack([index.example_weights() for index in indices]).double()
    expected = products.mean(dim=0) * weights.mean(dim=0)
    found = ensemble_scores(indices, models, queries)
    assert found.shape == (4, 12)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-9)
    mean_of_scores = torch.stack(
        [index.scores(model, queries) for model, index in zip(models, indices, strict=True)]
    ).mean(dim=0)
    assert not torch.allclose(found, mean_of_scores, rtol=1e-3)


def test_an_ensemble_of_one_is_the_index_itself(tmp_path):
    model, index = build(tmp_path, 0)
    queries = make_rows(2, seed=9)
    torch.testing.assert_close(ensemble_scores([index], [model], queries), index.scores(model, queries))
    chosen = index.select([3, 8])
    torch.testing.assert_close(
        ensemble_scores([chosen], [model], queries), index.scores(model, queries)[:, [3, 8]], rtol=1e-5, atol=1e-9
    )


def test_models_and_indices_must_belong_together(tmp_path):
    model, index = build(tmp_path, 0)
    with pytest.raises(QueryError) as caught:
        ensemble_scores([index], [model, model], make_rows(1))
    assert str(caught.value) == "Each index needs its model: got 1 indices and 2 models."
    with pytest.raises(QueryError, match="got 0 indices and 0 models"):
        ensemble_scores([], [], make_rows(1))
    other = build(tmp_path, 1, make_rows(12, seed=5))
    with pytest.raises(QueryError) as caught:
        ensemble_scores([index, other[1]], [model, other[0]], make_rows(1))
    assert str(caught.value) == (
        "The indices are of other rows: an ensemble is of one training set under several models."
    )


# Checkpoints of one training.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    return folder, train(folder)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def tracin(run, names, queries, rows, load=load):
    """sum over checkpoints of the mean learning rate x autograd's inner products."""
    folder, rates = run[0], logged(run[0] / "checkpoint-6")
    total = torch.zeros(len(queries), len(rows), dtype=torch.float64)
    for step in (2, 4, 6):
        rate = (rates[step - 1] + rates[step]) / 2
        total += rate * dot_products(load(folder / f"checkpoint-{step}"), names, queries, rows)
    return total


def relative(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


def test_the_scores_are_tracin(run, tmp_path):
    model, rows, queries = make_gpt2(seed=7), list(make_rows(8)), list(make_rows(3, seed=9))
    before, random_state = state_of(model), torch.get_rng_state()
    ensemble = InfluenceIndex.build_over(model, run[0], make_rows(8), tmp_path / "over", config=GRADIENTS)
    assert isinstance(ensemble, InfluenceEnsemble) and len(ensemble) == 8 and ensemble.steps == [2, 4, 6]
    assert same_state(model, before) and torch.equal(torch.get_rng_state(), random_state)
    names = [entry.name for entry in ensemble.indices[0].manifest.modules]
    expected = tracin(run, names, queries, rows)
    given = [{"input_ids": row["input_ids"]} for row in queries]
    scores = ensemble.scores(model, given)
    assert relative(scores, expected) < 1e-4
    assert same_state(model, before)
    by_layer = ensemble.scores(model, given, per_module=True)
    torch.testing.assert_close(torch.stack(list(by_layer.values())).sum(dim=0), scores, rtol=1e-4, atol=1e-6)
    loaded = InfluenceEnsemble.from_pretrained(tmp_path / "over", run[0])
    for other in (None, GPT2LMHeadModel.from_pretrained):
        torch.testing.assert_close(loaded.scores(other, given), scores)
    result = loaded.attribute(model, given, top_k=3)
    best = expected.topk(3)
    assert result.indices.tolist() == best.indices.tolist() and relative(result.scores, best.values) < 1e-4
    last = InfluenceIndex.from_pretrained(tmp_path / "over" / "checkpoint-6")
    direct = last.attribute(load(run[0] / "checkpoint-6"), given, top_k=1)
    assert list(result.losses) == pytest.approx(list(direct.losses)) and result.queries == direct.queries
    assert result.to_list()[0]["text"] == rows[int(best.indices[0, 0])]["text"]
    opponents = loaded.attribute(model, given, top_k=2, largest=False)
    assert opponents.indices.tolist() == expected.topk(2, largest=False).indices.tolist()
    own = tracin(run, names, rows, rows).diagonal()
    torch.testing.assert_close(loaded.self_influence(), own, rtol=1e-4, atol=1e-9)
    loaded.verify()


def test_adapters_are_loaded_over_the_base(tmp_path):
    folder = tmp_path / "out"
    trainer = train(folder, make_lora())
    model, rows = trainer.model, list(make_rows(8))
    before = state_of(model)
    ensemble = InfluenceEnsemble.build(model, folder, make_rows(8), tmp_path / "over", config=GRADIENTS)
    assert same_state(model, before)

    def load_adapter(path):
        return PeftModel.from_pretrained(make_gpt2(), path)

    names = [entry.name for entry in ensemble.indices[0].manifest.modules]
    expected = tracin((folder,), names, rows[:2], rows, load_adapter)
    scores = ensemble.scores(model, [{"input_ids": row["input_ids"]} for row in rows[:2]])
    assert relative(scores, expected) < 1e-4 and same_state(model, before)


def test_a_finished_checkpoint_is_not_recorded_again(run, tmp_path, monkeypatch):
    model, record, recorded = make_gpt2(), IndexBuilder.record, []

    def stops(self, on_shard):
        recorded.append(self.folder.name)
        if recorded[-3:] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]:
            raise KeyboardInterrupt
        return record(self, on_shard)

    monkeypatch.setattr(IndexBuilder, "record", stops)
    before = state_of(model)
    options = {"config": GRADIENTS, "weights": [1, 2.5, 0]}
    with pytest.raises(KeyboardInterrupt):
        InfluenceEnsemble.build(model, run[0], make_rows(8), tmp_path / "over", **options)
    assert same_state(model, before), "also after an error"
    with pytest.raises(IndexFormatError, match="holds no ensemble of indices"):
        InfluenceEnsemble.from_pretrained(tmp_path / "over")
    ensemble = InfluenceEnsemble.build(model, run[0], make_rows(8), tmp_path / "over", **options)
    assert recorded == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-6"]
    assert ensemble.weights == [1, 2.5, 0]
    listed = [run[0] / f"checkpoint-{step}" for step in (6, 2, 4)]
    again = InfluenceEnsemble.build(
        model, listed, make_rows(8), tmp_path / "over", config=GRADIENTS, weights=[3, 1, 2]
    )
    assert again.steps == [2, 4, 6] and again.weights == [1, 2, 3] and len(recorded) == 4
    assert InfluenceEnsemble.from_pretrained(tmp_path / "over").weights == [1, 2, 3]


def test_what_cannot_be_an_ensemble_is_refused(run, tmp_path):
    model, rows, folder = make_gpt2(), make_rows(8), tmp_path / "over"
    build = functools.partial(InfluenceEnsemble.build, model, run[0], rows, folder, config=GRADIENTS)
    with pytest.raises(CheckpointError, match=r"weights must be 3 finite numbers, .* got \[1, 2\]"):
        build(weights=[1, 2])
    with pytest.raises(CheckpointError, match="weights must be 3 finite numbers"):
        build(weights=[1, 2, float("nan")])
    with pytest.raises(ConfigError, match="repo_id is for one index: push each afterwards"):
        build(repo_id="me/x")
    with pytest.raises(ConfigError, match="needs the model, or a function"):
        InfluenceEnsemble.build("gpt2", run[0], rows, folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BuildFolderError, match=r"holds notes.txt, which is no part of an ensemble"):
        build()
    (folder / "notes.txt").unlink()
    with pytest.raises(CheckpointError, match=r"not those of this GPT2LMHeadModel: \d+ tensor\(s\) have another"):
        InfluenceEnsemble.build(make_gpt2(width=8), run[0], rows, folder, config=GRADIENTS)
    ensemble = InfluenceEnsemble.build(load, [run[0] / "checkpoint-4"], rows, folder, config=GRADIENTS, weights=[1])
    with pytest.raises(QueryError, match="The model is a str: pass the model itself, a function"):
        ensemble.scores("gpt2", rows)
    with pytest.raises(QueryError, match="top_k must be an integer"):
        ensemble.attribute(model, rows, top_k=0)
    loaded = InfluenceEnsemble.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="does not know where they are: InfluenceEnsemble.from_pretrained"):
        loaded.scores(model, rows)
    with pytest.raises(CheckpointError, match=r"of the checkpoints of steps 4; given are those of steps 2, 4, 6"):
        InfluenceEnsemble.from_pretrained(folder, run[0])
