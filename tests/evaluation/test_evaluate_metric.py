"""The metrics as `evaluate` opens them: what comes out is what the plain functions say."""

import subprocess
import sys

import datasets
import evaluate
import numpy as np
import pytest
import torch
import yaml

import lorif_hf
from lorif_hf.errors import EvaluationError
from lorif_hf.evaluation import (
    lds,
    lds_of_predictions,
    metric_names,
    mislabel_detection,
    retrieval,
    retrieval_of_rankings,
    tail_patch_of,
)
from lorif_hf.evaluation.publishing import METRICS


NAMES = ["lds", "mislabel_detection", "retrieval", "tail_patch"]


def load(name, **options):
    return evaluate.load(lorif_hf.metric(name), **options)


@pytest.fixture
def study():
    """(Q, N) scores, (M, Q) losses, (M, N) membership."""
    generator = np.random.default_rng(0)
    membership = generator.random((10, 30)) < 0.5
    scores = generator.normal(size=(6, 30))
    return scores, generator.normal(size=(10, 6)) - membership @ scores.T, membership


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_has_its_folder_and_a_card_for_a_space(name):
    folder = METRICS / name
    assert {path.name for path in folder.iterdir() if path.is_file()} == {f"{name}.py", "README.md"}
    _, front_matter, text = (folder / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front_matter)
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py") and {"evaluate", "metric"} <= set(card["tags"])
    assert card["title"] and card["description"] and f'evaluate.load("user/{name}"' in text
    module = load(name)
    assert module.name == name and module.module_type == "metric" and "Returns:" in module.inputs_description


def test_a_metric_that_there_is_not_is_refused_with_those_there_are():
    assert metric_names() == NAMES
    with pytest.raises(EvaluationError, match="no metric 'LDS': choose one of lds, mislabel_detection, retrieval, "):
        lorif_hf.metric("LDS")
    with pytest.raises(EvaluationError, match="There is no metric '../metrics/lds'"):
        lorif_hf.metric("../metrics/lds")


def test_lds_is_the_plain_function(study):
    scores, losses, membership = study
    expected = lds(scores, losses, membership)
    result = load("lds").compute(predictions=scores, references=losses.T, membership=membership)
    assert result == {
        "lds": expected.mean,
        "per_query": expected.per_query.tolist(),
        "query_interval": list(expected.query_interval),
        "subset_interval": list(expected.subset_interval),
        "num_constant": 0,
    }


def test_lds_takes_its_options_at_either_place(study, tmp_path):
    scores, losses, membership = study
    np.save(tmp_path / "membership.npy", membership)
    options = {"confidence": 0.5, "resamples": 50, "seed": 4}
    expected = list(lds(scores, losses, membership, **options).query_interval)
    inputs = {"predictions": torch.tensor(scores), "references": torch.tensor(losses.T)}
    late = load("lds").compute(**inputs, membership=str(tmp_path / "membership.npy"), **options)
    early = load("lds", membership=tmp_path / "membership.npy", **options).compute(**inputs)
    assert late == early and late["query_interval"] == expected
    assert load("lds", membership=~membership, seed=9).compute(**inputs, membership=membership, **options) == late


def test_lds_of_predictions_needs_no_membership(study):
    scores, losses, membership = study
    predictions = scores @ membership.T
    result = load("lds").compute(predictions=predictions, references=losses.T)
    assert result["lds"] == lds_of_predictions(predictions, losses).mean
    with pytest.raises(EvaluationError, match=r"expected shape \(30, 6\), found \(10, 6\)"):  # forgotten
        load("lds").compute(predictions=scores, references=losses.T)


def test_lds_keeps_what_is_not_a_number_and_says_what_is_ragged(study):
    scores, losses, membership = study
    constant = losses.copy()
    constant[:, 3] = 0
    result = load("lds", membership=membership).compute(predictions=scores, references=constant.T)
    assert np.isnan(result["per_query"][3]) and result["num_constant"] == 1
    ragged = losses.T.tolist()
    ragged[2].pop()
    with pytest.raises(EvaluationError, match="references must be an array; found rows of different lengths"):
        load("lds", membership=membership).compute(predictions=scores, references=ragged)
    losses[4, 1] = np.nan
    with pytest.raises(EvaluationError, match="losses must be finite, found nan at subset 4, query 1"):
        load("lds", membership=membership).compute(predictions=scores, references=losses.T)


def test_queries_can_come_one_by_one_and_in_batches(study):
    scores, losses, membership = study
    expected = lds(scores, losses, membership).mean
    module = load("lds", membership=membership)
    for _ in range(2):  # a module can be used again
        module.add_batch(predictions=scores[:4], references=losses.T[:4])
        for query in (4, 5):
            module.add(prediction=scores[query], reference=losses.T[query])
        assert module.compute()["lds"] == expected


class Width(evaluate.Metric):
    """Somebody else's metric, which knows no option of ours."""

    def _info(self):
        row = datasets.Sequence(datasets.Value("float64"))
        features = datasets.Features({"predictions": row, "references": row})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"width": len(predictions[0])}


def test_metrics_combine_with_others_where_options_come_first(study):
    scores, losses, membership = study
    both = evaluate.combine(
        {
            "here": load("lds", membership=membership),
            "elsewhere": load("lds", membership=~membership, resamples=10),
            "foreign": Width(),
        }
    )
    expected = {"here_lds": lds(scores, losses, membership).mean, "width": 30}
    expected["elsewhere_lds"] = lds(scores, losses, ~membership, resamples=10).mean
    result = both.compute(predictions=scores, references=losses.T)
    assert {key: result[key] for key in expected} == expected
    both.add_batch(predictions=scores[:1], references=losses.T[:1])
    both.add_batch(predictions=scores[1:], references=losses.T[1:])
    again = both.compute()
    assert {key: again[key] for key in expected} == expected


def test_ours_combine_by_their_paths_and_share_the_options_of_compute(study):
    scores, losses, membership = study
    both = evaluate.combine([lorif_hf.metric("lds"), lorif_hf.metric("lds")])
    result = both.compute(predictions=scores, references=losses.T, membership=membership)
    assert result["lds_0_lds"] == result["lds_1_lds"] == lds(scores, losses, membership).mean


def test_retrieval_is_the_plain_function(study):
    scores, sources = study[0], [[3], [1, 2], [0], [29, 4, 7], [5], [6]]
    expected = retrieval(scores, sources, ks=[1, 5])
    wanted = {"mrr": expected.mrr, "recall@1": expected.recall[1], "recall@5": expected.recall[5]}
    assert load("retrieval").compute(predictions=scores, references=sources, ks=[1, 5]) == wanted
    module = load("retrieval", ks=[1, 5])
    module.add_batch(predictions=scores[:2], references=sources[:2])
    module.add_batch(predictions=scores[2:], references=sources[2:])
    assert module.compute() == wanted
    rankings = np.argsort(-scores)[:, :7]
    cut = retrieval_of_rankings(rankings, sources, ks=[1, 5]).mrr
    assert load("retrieval", ranked=True, ks=[1, 5]).compute(predictions=rankings, references=sources)["mrr"] == cut


def test_mislabel_detection_is_the_plain_function(study):
    influence, mislabelled = study[0][0], study[2][0]
    expected = mislabel_detection(influence, mislabelled, fractions=[0.1, 0.25])
    wanted = {"auroc": expected.auroc, "recall@0.1": expected.recall[0.1], "recall@0.25": expected.recall[0.25]}
    inputs = {"predictions": torch.tensor(influence), "references": torch.tensor(mislabelled)}
    assert load("mislabel_detection").compute(**inputs, fractions=[0.1, 0.25]) == wanted
    assert load("mislabel_detection", fractions=[0.1, 0.25]).compute(**inputs) == wanted


def test_tail_patch_is_the_plain_function(study):
    before, after = study[0][:2]
    expected = tail_patch_of(before, after, resamples=50, seed=2)
    wanted = {
        "tail_patch": expected.mean,
        "per_query": expected.per_query.tolist(),
        "interval": list(expected.interval),
    }
    inputs = {"predictions": after, "references": before}
    assert load("tail_patch").compute(**inputs, resamples=50, seed=2) == wanted
    assert load("tail_patch", resamples=50, seed=2).compute(**inputs) == wanted


def test_a_metric_loads_where_nothing_can_be_reached(tmp_path):
    code = (
        "import socket\n"
        "def unreachable(*_, **__): raise OSError('no network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = unreachable\n"
        "import evaluate, lorif_hf\n"
        "module = evaluate.load(lorif_hf.metric('tail_patch'))\n"
        "print(module.compute(predictions=[1.0], references=[0.5])['tail_patch'])"
    )
    environment = {"HF_HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "0.5", ran.stderr
