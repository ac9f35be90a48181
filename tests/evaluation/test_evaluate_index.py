"""The score of an index against a bank: the same as by hand, for the bank's own queries only."""

import json

import pytest
import torch
from retrained import QUERIES, ROWS, make_bank, make_trainer
from tiny import make_gpt2, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.errors import EvaluationError, IndexCorruptedError, ModelMismatchError, PublishError
from lorif_hf.evaluation.evaluate_index import evaluate_lds, lds_record
from lorif_hf.evaluation.lds import LDSResult, lds
from lorif_hf.evaluation.retraining.bank import RetrainBank
from lorif_hf.evaluation.retraining.retrain import retrain
from lorif_hf.storage.layout import signed
from lorif_hf.tasks.causal_lm import CausalLM


REPO = "user/scored-index"
CONFIG = plain_config(projection_factor=2)


def own_loss(model, batch):
    return CausalLM().losses(model, batch | {"labels": batch["input_ids"]})


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_bank(tmp_path_factory.mktemp("banks") / "bank")


@pytest.fixture
def index(tmp_path):
    return InfluenceIndex.build(make_gpt2(), ROWS, tmp_path / "index", config=CONFIG)


def test_the_score_is_that_of_the_dense_scores(bank, index, tmp_path):
    expected = lds(index.scores(make_gpt2(), QUERIES), bank.losses, bank.membership, confidence=0.9, seed=3)
    make_gpt2().save_pretrained(tmp_path / "model")
    for model in (make_gpt2(), str(tmp_path / "model")):
        for queries in (None, QUERIES):
            result = evaluate_lds(index, bank, model, queries, confidence=0.9, seed=3)
            assert result.mean == expected.mean and result.query_interval == expected.query_interval
            assert (result.per_query == expected.per_query).all() and result.confidence == 0.9


def test_other_queries_or_another_order_are_refused(bank, index):
    order = "The queries are the bank's in another order, first at query 1: pass them in the order that retrain() got"
    for queries, message in (
        (QUERIES.select([0, 2, 1]), order),
        (QUERIES.select([0]), "The bank has losses of 3 queries, 1 were given: pass the queries that retrain() got"),
        (ROWS.select(range(3)), "3 of the 3 queries are not the bank's, first query 0: pass the queries"),
    ):
        with pytest.raises(EvaluationError) as caught:
            evaluate_lds(index, bank, make_gpt2(), queries)
        assert str(caught.value).startswith(message)


def test_index_and_model_must_be_the_banks(bank, index):
    with pytest.raises(EvaluationError, match="The bank is of 12 training rows, the index of 3"):
        evaluate_lds(index.select([0, 1, 2]), bank, make_gpt2())
    with pytest.raises(ModelMismatchError, match="The weights of the query's model are not those that were indexed"):
        evaluate_lds(index, bank, make_gpt2(seed=4))


def test_an_objective_of_ones_own_is_asked_for(index, tmp_path):
    queries = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6, 7]}]
    bank = retrain(make_trainer, ROWS, queries, tmp_path / "bank", objective=own_loss, num_subsets=2, seeds=1)
    with pytest.raises(EvaluationError, match="of your own: pass objective=, the function that retrain"):
        evaluate_lds(index, bank, make_gpt2())
    assert -1 <= evaluate_lds(index, bank, make_gpt2(), queries, objective=own_loss).mean <= 1


def test_adapters_are_compared_by_their_own_layers(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(rank=2):
        torch.manual_seed(0)
        adapter = peft.LoraConfig(r=rank, target_modules=["c_attn"], init_lora_weights=False)
        return peft.get_peft_model(make_gpt2(), adapter)

    def train(rows, seed):
        return make_trainer(rows, seed, model=adapted(), learning_rate=0.1)

    bank = retrain(train, ROWS, QUERIES, tmp_path / "bank", num_subsets=3, seeds=1)
    assert len(set(bank.losses[:, 0].tolist())) == 3
    config = plain_config(projection_factor=1)
    index = InfluenceIndex.build(adapted(), ROWS, tmp_path / "index", config=config)
    assert -1 <= evaluate_lds(index, bank, adapted()).mean <= 1
    other = InfluenceIndex.build(adapted(rank=3), ROWS, tmp_path / "other", config=config)
    with pytest.raises(
        EvaluationError,
        match=r"lora_A.default' of 12 inputs and 3 outputs, the bank's models have weights of shape \[2, 12\]",
    ):
        bank.check(other)
    whole = InfluenceIndex.build(make_gpt2(), ROWS, tmp_path / "whole", config=CONFIG)
    with pytest.raises(
        EvaluationError, match=r"layer 'transformer.h.0.attn.c_attn' .* have weights of shape None there: index a m"
    ):
        bank.check(whole)


# The score stays with the index


def test_the_score_is_kept_with_the_index_and_goes_with_it(hub, bank, index, tmp_path):
    bank.push_to_hub("user/bank", token=hub.token)
    bank = RetrainBank.from_pretrained("user/bank", token=hub.token)
    assert index.lds is None
    result = evaluate_lds(index, bank, make_gpt2())
    record = lds_record(index, bank, result)
    assert (record.num_queries, record.num_subsets, record.num_seeds, record.bank) == (3, 3, 2, "user/bank")
    assert (record.mean, record.seed_agreement) == (result.mean, bank.seed_agreement())
    index.save_lds(record)
    line = f"| LDS | {result.mean:.2f} (95% interval "
    assert line in (index.path / "README.md").read_text()
    index.save_pretrained(tmp_path / "copy")
    copy = InfluenceIndex.from_pretrained(tmp_path / "copy")
    assert copy.lds == record and line in (tmp_path / "copy" / "README.md").read_text()
    copy.push_to_hub(REPO, token=hub.token)
    assert line in hub.files(REPO, "dataset")["README.md"].decode()
    for streaming in (False, True):
        loaded = InfluenceIndex.from_pretrained(REPO, token=hub.token, streaming=streaming)
        assert loaded.lds == record
        commits = len(hub.commits(REPO, "dataset"))
        loaded.push_to_hub(REPO, token=hub.token)
        assert len(hub.commits(REPO, "dataset")) == commits
        with pytest.raises(PublishError, match=f"The score was not kept: {REPO} lies in the Hub's cache. Copy it"):
            loaded.save_lds(record)


def test_a_new_index_takes_the_old_ones_score_off_the_hub(hub, bank, index, tmp_path):
    index.save_lds(lds_record(index, bank, evaluate_lds(index, bank, make_gpt2())))
    index.push_to_hub(REPO, token=hub.token)
    assert "| LDS |" in hub.files(REPO, "dataset")["README.md"].decode()
    other = InfluenceIndex.build(make_gpt2(seed=1), ROWS, tmp_path / "other", config=CONFIG)
    other.push_to_hub(REPO, token=hub.token)
    files = hub.files(REPO, "dataset")
    assert "evaluation/lds.json" not in files and "| LDS |" not in files["README.md"].decode()


def test_a_score_of_another_index_is_not_this_ones(bank, index, tmp_path):
    index.save_lds(lds_record(index, bank, evaluate_lds(index, bank, make_gpt2())))
    path = index.path / "evaluation" / "lds.json"
    path.write_text(signed(json.dumps(json.loads(path.read_text()) | {"build": "0" * 64}), "record_sha256"))
    assert index.lds is None
    path.write_text("no json")
    with pytest.raises(IndexCorruptedError, match="evaluation/lds.json: it is not JSON"):
        index.save_pretrained(tmp_path / "copy")


def test_no_score_is_kept_where_nothing_could_be_measured(bank, index):
    nan = float("nan")
    nothing = LDSResult(nan, torch.full((3,), nan).numpy(), (nan, nan), (nan, nan), 0.95, 3, 0)
    with pytest.raises(EvaluationError, match="The losses of every query are the same under all retrained models"):
        lds_record(index, bank, nothing)
    few = LDSResult(0.5, torch.full((3,), 0.5).numpy(), (nan, nan), (0.1, 0.6), 0.95, 0, 0)
    record = lds_record(index, bank, few)
    assert (record.query_low, record.query_high, record.subset_low, record.subset_high) == (None, None, 0.1, 0.6)
