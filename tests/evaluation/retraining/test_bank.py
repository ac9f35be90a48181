"""A bank in memory, in a folder and on the Hub: what comes back is what was measured, or an error."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, HfApi
from retrained import QUERIES, ROWS, bank_bytes, make_bank
from scipy.stats import spearmanr
from tiny import make_gpt2, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.errors import EvaluationError, IndexNotFoundError, PublishError
from lorif_hf.evaluation.retraining.bank import RetrainBank
from lorif_hf.storage.layout import signed


REPO = "user/my-bank"
CONFIG = plain_config(projection_factor=2, shard_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("banks") / "bank"
    make_bank(path)
    return path


@pytest.fixture(scope="module")
def bank(folder):
    return RetrainBank.from_pretrained(folder)


def same(first, second):
    tensors = [(first.membership, second.membership), (first.losses_by_seed, second.losses_by_seed)]
    for mine, yours in zip(first.queries, second.queries, strict=True):
        assert mine.keys() == yours.keys()
        tensors += [(mine[key], yours[key]) for key in mine]
    return all(torch.equal(*pair) for pair in tensors) and first.info == second.info


def test_queries_are_kept_as_the_model_takes_them(bank):
    for feature, row in zip(bank.queries, QUERIES, strict=True):
        assert feature["input_ids"].tolist() == feature["labels"].tolist() == row["input_ids"]
        assert feature["attention_mask"].tolist() == [1] * len(row["input_ids"])
    assert repr(bank) == "RetrainBank(subsets=3, seeds=2, queries=3, num_examples=12, model='GPT2LMHeadModel')"


def test_seeds_agree_as_spearman_says(bank):
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(3, 8, 5, generator=generator, dtype=torch.float64).mul(6).round()  # with ties
    made = dataclasses.replace(bank, losses_by_seed=losses, info=bank.info | {"seeds": [0, 1, 2]})
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = [spearmanr(losses[a, :, q], losses[b, :, q]).statistic for a, b in pairs for q in range(5)]
    assert made.seed_agreement() == pytest.approx(np.mean(expected), abs=1e-12)
    assert dataclasses.replace(made, losses_by_seed=losses[[0, 0, 0]]).seed_agreement() == pytest.approx(1)


def test_one_row_for_each_run(bank):
    table = bank.to_dataset()
    assert isinstance(table, Dataset) and len(table) == 6
    assert table["subset"][:] == [0, 0, 1, 1, 2, 2] and table["seed"][:] == [0, 1] * 3
    assert table["num_examples"][:] == [6] * 6
    members = np.unpackbits(np.frombuffer(table[4]["membership"], np.uint8), count=12).astype(bool)
    assert members.tolist() == bank.membership[2].tolist()
    assert table[5]["losses"] == bank.losses_by_seed[1, 2].tolist()


def test_a_saved_bank_is_the_same_byte_for_byte(folder, bank, tmp_path):
    for _ in range(2):  # over itself too
        bank.save_pretrained(tmp_path / "copy")
    assert bank_bytes(tmp_path / "copy") == bank_bytes(folder)
    assert same(RetrainBank.from_pretrained(tmp_path / "copy"), bank)
    other = dataclasses.replace(bank, losses_by_seed=bank.losses_by_seed + 1)
    with pytest.raises(EvaluationError, match="copy already holds another bank. Choose another folder or delete this"):
        other.save_pretrained(tmp_path / "copy")


# The Hub


def test_on_the_hub_it_is_the_same_and_load_dataset_reads_it(hub, bank, tmp_path):
    commit = bank.push_to_hub(REPO, token=hub.token, private=True)
    assert hub.commits(REPO, "dataset")[0].oid == commit.oid
    assert set(hub.files(REPO, "dataset")) >= {"README.md", "bank.json", "data/runs.parquet", "data/queries.parquet"}
    loaded = RetrainBank.from_pretrained(REPO, token=hub.token)
    assert same(loaded, bank) and (loaded.repo_id, loaded.commit) == (REPO, commit.oid)
    assert same(RetrainBank.from_pretrained(REPO, token=hub.token, revision=commit.oid), bank)
    runs = load_dataset(REPO, split="train", cache_dir=str(tmp_path), token=hub.token)
    assert runs.to_list() == bank.to_dataset().to_list()
    queries = load_dataset(REPO, "queries", split="train", cache_dir=str(tmp_path), token=hub.token)
    assert queries["input_ids"][:] == QUERIES["input_ids"][:]


def test_pushing_again_makes_no_commit_and_keeps_the_owners_words(hub, bank):
    bank.push_to_hub(REPO, token=hub.token)
    commits = len(hub.commits(REPO, "dataset"))
    bank.push_to_hub(REPO, token=hub.token)
    assert len(hub.commits(REPO, "dataset")) == commits
    card = hub.files(REPO, "dataset")["README.md"].decode()
    mine = card.replace("tags:", "license: mit\ntags:") + "\nMy words.\n"
    HfApi(token=hub.token).upload_file(
        path_or_fileobj=mine.encode(), path_in_repo="README.md", repo_id=REPO, repo_type="dataset"
    )
    dataclasses.replace(bank, losses_by_seed=bank.losses_by_seed.flip(0)).push_to_hub(REPO, token=hub.token)
    card = DatasetCard(hub.files(REPO, "dataset")["README.md"].decode())
    assert card.data.license == "mit" and card.text.endswith("My words.\n") and f'("{REPO}")' in card.text
    card.validate(repo_type="dataset")


def test_the_card_says_how_the_bank_was_made_and_shows_nothing_hostile(hub, bank):
    hostile = "<script>|[x](http://y)`"
    info = bank.info | {
        "model": bank.info["model"] | {"name": hostile, "model_class": hostile},
        "dataset": bank.info["dataset"] | {"name": hostile},
        "training": bank.info["training"] | {hostile: hostile},
    }
    dataclasses.replace(bank, info=info).push_to_hub(REPO, token=hub.token)
    card = hub.files(REPO, "dataset")["README.md"].decode()
    assert "| agreement of two seeds (Spearman) | 0.50 |" in card and "| rows in each subset | 6 |" in card
    assert "| `learning_rate` | `0.01` |" in card and "a model trained on each with 2 seed(s)" in card
    assert not any(bad in card.replace("`<script>\\|[x](http://y)`", "") for bad in ("<script>", "](http://y)"))


def test_names_and_tokens_are_checked_before_anything_leaves(hub, bank):
    with pytest.raises(PublishError, match="'a b' is no repo id"):
        bank.push_to_hub("a b", token=hub.token)
    secret = dataclasses.replace(bank, info=bank.info | {"training": {"optim": f"hf_{'A' * 34}"}})
    with pytest.raises(PublishError, match="bank.json holds an access token"):
        secret.push_to_hub(REPO, token=hub.token)


def test_a_repo_without_a_bank_is_named(hub):
    name = "user/no-bank"
    with pytest.raises(IndexNotFoundError, match=f"No dataset repo '{name}'"):
        RetrainBank.from_pretrained(name, token=hub.token)
    HfApi(token=hub.token).create_repo(name, repo_type="dataset")
    message = f"The dataset repo '{name}' is no bank of retrained models: it has no bank.json. Check the name"
    with pytest.raises(EvaluationError, match=message):
        RetrainBank.from_pretrained(name, token=hub.token)


# Damage


@pytest.mark.parametrize("file", ["data/runs.parquet", "data/queries.parquet"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flip", "its SHA-256 is not the one in bank.json"),
        ("cut", r"it has \d+ bytes, bank.json says \d+"),
        ("delete", r"it is missing, bank.json says \d+"),
    ],
)
def test_a_damaged_file_is_named(folder, tmp_path, file, damage, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = (copy / file).read_bytes()
    (copy / file).unlink()
    if damage != "delete":
        (copy / file).write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "flip" else b""))
    with pytest.raises(EvaluationError, match=f"{file}: {message}. It was truncated, edited or damaged in transfer"):
        RetrainBank.from_pretrained(copy)


def test_other_queries_than_the_fingerprint_says(bank, tmp_path):
    dataclasses.replace(bank, info=bank.info | {"queries": "0" * 64}).save_pretrained(tmp_path / "bank")
    with pytest.raises(EvaluationError, match="these are not the queries whose fingerprint is in bank.json"):
        RetrainBank.from_pretrained(tmp_path / "bank")


def test_a_bank_json_without_end_is_not_read(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "bank.json").write_bytes(b" " * ((1 << 25) + 1))
    with pytest.raises(EvaluationError, match="bank.json: it has over 33,554,432 bytes"):
        RetrainBank.from_pretrained(copy)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all"])
def test_a_path_that_is_no_bank(path):
    with pytest.raises(EvaluationError, match="does not exist: expected a folder with bank.json, or a repo id of the"):
        RetrainBank.from_pretrained(path)


# The index


def build(folder, model=None, rows=ROWS, config=CONFIG):
    return InfluenceIndex.build(model or make_gpt2(), rows, folder, config=config)


def test_the_index_of_the_same_rows_and_architecture_passes(bank, tmp_path):
    bank.check(build(tmp_path / "index", make_gpt2(seed=9)))
    path = tmp_path / "index" / "influence_config.json"
    manifest = json.loads(path.read_text())
    del manifest["dataset"]["fingerprint"]  # of an older version
    path.write_text(signed(json.dumps(manifest)))
    bank.check(InfluenceIndex.from_pretrained(tmp_path / "index"))


def test_an_index_that_does_not_belong_to_the_bank_is_refused(bank, tmp_path):
    index = build(tmp_path / "index")
    others = {
        "The bank is of 12 training rows, the index of 5: evaluate the whole index": index.select(range(5)),
        "of 12 training rows, the index of 11:": build(tmp_path / "11", rows=ROWS.select(range(11))),
        "other training rows than the bank, .* another order: expected the fingerprint [0-9a-f]{12}..., found": build(
            tmp_path / "order", rows=ROWS.select(range(11, -1, -1))
        ),
        r"layer 'transformer.h.0.attn.c_attn' of 14 inputs and 42 outputs, the bank's .* shape \[12, 36\]": (
            build(tmp_path / "wide", make_gpt2(width=14))
        ),
    }
    for message, other in others.items():
        with pytest.raises(EvaluationError, match=message):
            bank.check(other)
    different = dataclasses.replace(bank, info=bank.info | {"model": bank.info["model"] | {"model_class": "Other"}})
    with pytest.raises(EvaluationError, match="The bank retrained a Other, the index is of a GPT2LMHeadModel"):
        different.check(index)
