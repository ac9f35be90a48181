"""Querying: exact against dense float64, joined to the right rows, clear about a wrong model or a damaged file."""

import errno
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tiny import make_gpt2, make_rows, plain_config
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.algebra.factors import factorize, reconstruct
from lorif_hf.errors import (
    BuildFolderError,
    IndexCorruptedError,
    IndexFormatError,
    ModelMismatchError,
    ObjectiveError,
    QueryError,
)
from lorif_hf.querying.scan import allocate
from lorif_hf.storage.layout import signed


FULL = {"projection_factor": 1, "curvature_rank": 10**6, "dtype": "float32", "shard_size": 7}


def make_llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config).eval()


def dense_gradients(model, rows, names):
    """Per example and layer the loss gradient as I x O, by one ordinary backward pass each, in float64."""
    model = model.double()
    weights = dict(model.named_parameters())
    gradients = {name: [] for name in names}
    for ids in rows["input_ids"]:
        model.zero_grad()
        ids = torch.tensor([ids])
        logits = model(input_ids=ids).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
        for name in names:
            gradient = weights[f"{name}.weight"].grad
            gradients[name].append(gradient.T.clone() if "llama" in type(model).__name__.lower() else gradient.clone())
    return {name: torch.stack(list_) for name, list_ in gradients.items()}


@pytest.mark.parametrize("make_model", [make_gpt2, make_llama], ids=["Conv1D", "Linear"])
@pytest.mark.parametrize("count", [40, 5], ids=["many rows", "N below D"])
def test_full_rank_scores_equal_the_dense_inverse(tmp_path, make_model, count):
    rows = make_rows(count)
    names = [module.name for module in InfluenceIndex.build(make_model(), rows, tmp_path / "names").manifest.modules]
    dense = dense_gradients(make_model(), rows, names)
    expected = torch.zeros(3, count, dtype=torch.float64)
    queries = [0, 2, 4]
    ranks = {min(gradient.shape[1:]) for gradient in dense.values()}
    index = None
    for rank in sorted(ranks):  # c full for the modules of each size
        targets = [name for name, gradient in dense.items() if min(gradient.shape[1:]) == rank]
        config = plain_config(**FULL, factor_rank=rank, target_modules=targets)
        index = InfluenceIndex.build(make_model(), rows, tmp_path / f"rank-{rank}", config=config)
        scores = index.scores(make_model(), rows.select(queries))
        expected.zero_()
        for name in targets:
            g = dense[name].flatten(1)
            gram = g.T @ g
            damped = gram + 0.5 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
            expected += g[queries] @ torch.linalg.solve(damped, g.T)
        assert (scores - expected).norm() <= 1e-4 * expected.norm()
        assert torch.allclose(index.self_influence()[queries], expected[range(3), queries], rtol=1e-4)


def test_truncated_scores_equal_the_explicit_woodbury_formula(tmp_path):
    rows, model = make_rows(60), make_gpt2()
    config = plain_config(
        projection_factor=2, factor_rank=2, curvature_rank=9, dtype="float32", shard_size=13, damping=0.3
    )
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    scores = index.scores(model, rows.select([1, 8]))
    expected = torch.zeros(2, 60, dtype=torch.float64)
    dense = dense_gradients(make_gpt2(), rows, [module.name for module in index.manifest.modules])
    from projections import rademacher

    for module in index.manifest.modules:
        p_in = rademacher(module.in_features, module.d1, seed=0, name=f"{module.name}/in").double()
        p_out = rademacher(module.out_features, module.d2, seed=0, name=f"{module.name}/out").double()
        projected = p_in.T @ dense[module.name] @ p_out
        stored = reconstruct(*factorize(projected, 2)).flatten(1)
        _, singular, right = torch.linalg.svd(stored, full_matrices=False)
        damping = 0.3 * stored.square().sum() / stored.shape[1]
        v, s2 = right[:9].T, singular[:9] ** 2
        q = projected[[1, 8]].flatten(1)
        solved = (q - (q @ v) * (s2 / (s2 + damping)) @ v.T) / damping
        expected += solved @ stored.T
    assert (scores - expected).norm() <= 1e-4 * expected.norm()


def test_factorize_query_truncates_the_query_as_published(tmp_path):
    rows, model = make_rows(20), make_gpt2()
    full = InfluenceIndex.build(model, rows, tmp_path / "full", config=plain_config(dtype="float32"))
    paper = InfluenceConfig.paper(dtype="float32")
    published = InfluenceIndex.build(model, rows, tmp_path / "paper", config=paper)
    queries = make_rows(3, seed=9)
    one, two = full.scores(model, queries), published.scores(model, queries)
    assert not torch.allclose(one, two, rtol=1e-3)
    # A rank-1 gradient has nothing to lose: for a query of two tokens (one target) both are the same.
    short = {"input_ids": [3, 4]}
    assert torch.allclose(full.scores(model, short), published.scores(model, short), rtol=1e-3, atol=1e-6)


def test_attribute_is_the_top_of_scores_and_per_module_scores_add_up(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=plain_config(shard_size=6))
    queries = make_rows(3, seed=5)
    dense = index.scores(gpt2, queries)
    for largest in (True, False):
        result = index.attribute(gpt2, queries, top_k=4, largest=largest)
        top = dense.topk(4, dim=1, largest=largest)
        assert torch.equal(result.indices, top.indices)
        assert torch.allclose(result.scores, top.values)
    parts = index.scores(gpt2, queries, per_module=True)
    assert list(parts) == [module.name for module in index.manifest.modules]
    assert torch.allclose(sum(parts.values()), dense, atol=1e-5)
    assert index.attribute(gpt2, queries, top_k=99).indices.shape == (3, 20)


def test_a_positive_score_means_that_training_on_the_example_lowers_the_query_loss(tmp_path):
    """The sign, by doing it: one small step of gradient descent on the best and on the worst example."""
    model, rows, query = make_gpt2(), make_rows(30), make_rows(1, seed=77)
    config = plain_config(**FULL, factor_rank=12)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    tracked = {f"{module.name}.weight" for module in index.manifest.modules}

    def loss_after_a_step_on(row):
        stepped = make_gpt2().double()
        for name, parameter in stepped.named_parameters():
            parameter.requires_grad_(name in tracked)
        loss(stepped, rows[row]["input_ids"]).backward()
        with torch.no_grad():
            for parameter in stepped.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-4 * parameter.grad
        return loss(stepped, query[0]["input_ids"]).item()

    def loss(model, ids):
        ids = torch.tensor([ids])
        return F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")

    before = loss(make_gpt2().double(), query[0]["input_ids"]).item()
    best = int(index.attribute(model, query, top_k=1).indices)
    worst = int(index.attribute(model, query, top_k=1, largest=False).indices)
    assert loss_after_a_step_on(best) < before < loss_after_a_step_on(worst)


def test_rows_are_joined_to_their_examples(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=plain_config(shard_size=6))
    for row in index.attribute(gpt2, rows.select([3]), top_k=5).to_list():
        assert row["example_id"] == f"row-{row['row']}"
        assert row["text"] == f"text {row['row']}"
        assert row["num_tokens"] == len(rows[row["row"]]["input_ids"])
    ids = torch.tensor([rows[7]["input_ids"]])
    expected = F.cross_entropy(gpt2(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
    assert index.examples([7])[0]["loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(QueryError, match="Row 20 is outside the index, which has rows 0 to 19"):
        index.examples([20])


@pytest.mark.parametrize(("store_text", "expected"), [(True, "text 3"), (3, "tex"), (False, None)])
def test_the_owner_decides_how_much_text_is_stored(gpt2, rows, tmp_path, store_text, expected):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", store_text=store_text)
    assert index.examples([3])[0]["text"] == expected


def test_scores_that_neither_memory_nor_disk_has_room_for_are_refused_before_the_disk_is_written(monkeypatch):
    """Writing to a map of a file with a hole, on a full disk, would end the process."""
    reserved = []

    def full(descriptor, start, size):
        reserved.append(size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lorif_hf.querying.scan.os.sysconf", lambda name: 1)
    monkeypatch.setattr("lorif_hf.querying.scan.os.posix_fallocate", full, raising=False)
    with pytest.raises(QueryError, match=r"No room for scores of shape \(3, 50\) .*No space left.* ask for fewer"):
        allocate((3, 50))
    assert reserved == [600]


def test_a_loaded_or_copied_index_gives_the_same_scores(gpt2, rows, tmp_path):
    built = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    expected = built.scores(gpt2, rows.select([0, 1]))
    loaded = InfluenceIndex.from_pretrained(tmp_path / "index")
    assert torch.equal(loaded.scores(gpt2, rows.select([0, 1])), expected)
    loaded.save_pretrained(tmp_path / "copy")
    shutil.rmtree(tmp_path / "index")
    copy = InfluenceIndex.from_pretrained(str(tmp_path / "copy"))
    assert torch.equal(copy.scores(gpt2, rows.select([0, 1])), expected)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(BuildFolderError, match="is not empty"):
        copy.save_pretrained(tmp_path / "full")


def test_the_model_may_be_a_folder(gpt2, rows, tmp_path):
    gpt2.save_pretrained(tmp_path / "model")
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    expected = index.attribute(gpt2, rows.select([2]), top_k=3)
    found = index.attribute(str(tmp_path / "model"), rows.select([2]), top_k=3)
    assert torch.equal(found.indices, expected.indices)


def test_a_sequence_classifier_is_indexed_and_queried(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=3,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config)
    rows = make_rows(12).add_column("label", [i % 3 for i in range(12)])
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(projection_factor=1))
    assert index.manifest.objective == "sequence-classification"
    assert "score" not in [module.name for module in index.manifest.modules]
    assert int(index.attribute(model, rows.select([5]), top_k=1).indices) == 5
    guess = model(input_ids=torch.tensor([rows[4]["input_ids"]])).logits.argmax().item()
    asked = {"input_ids": rows[4]["input_ids"]}
    assert torch.equal(index.scores(model, asked), index.scores(model, asked | {"labels": guess}))


def test_a_query_with_another_model_is_refused(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    other = make_gpt2(seed=1)
    with pytest.raises(
        ModelMismatchError, match=r"weights .* not those that were indexed .*GPT2LMHeadModel.*strict=Fal"
    ):
        index.attribute(other, rows.select([0]))
    with pytest.warns(UserWarning, match="The scores are those of another model"):
        index.attribute(other, rows.select([0]), strict=False)
    with pytest.raises(
        ModelMismatchError, match=r"another architecture .* 'transformer.h.0.attn.c_attn': indexed \(12, 36"
    ):
        index.attribute(make_gpt2(width=8), rows.select([0]), strict=False)
    with torch.no_grad():
        gpt2.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    with pytest.raises(ModelMismatchError, match="its training went on"):
        index.attribute(gpt2, rows.select([0]))


def test_another_projection_is_noticed(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    text = (index.path / "influence_config.json").read_text()
    digest = index.manifest.modules[0].projection_sha256
    (index.path / "influence_config.json").write_text(signed(text.replace(digest, "f" * 64)))
    with pytest.raises(
        ModelMismatchError, match=r"made with another projection of module 'transformer.h.0.attn.c_attn'"
    ):
        InfluenceIndex.from_pretrained(index.path).attribute(gpt2, rows.select([0]))


@pytest.mark.parametrize("damage", ["truncate", "edit", "delete"])
@pytest.mark.parametrize(
    "file",
    [
        "factors/factors-00002.safetensors",
        "curvature/curvature.safetensors",
        "data/train-00001.parquet",
    ],
)
def test_a_damaged_file_is_named(gpt2, rows, tmp_path, file, damage):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=plain_config(shard_size=6))
    path = index.path / file
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "edit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(IndexCorruptedError, match="restore or download it again, or rebuild the index") as caught:
        loaded = InfluenceIndex.from_pretrained(index.path)
        loaded.attribute(gpt2, rows.select([0]), top_k=20)
    assert caught.value.file == file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no index: expected a folder with influence_config.json"),
        ("not json", "is not JSON"),
        ("{}", "has no format_version: this is not a lorif-hf index"),
        ('{"format_version": "7.0"}', r"format version 7.0; this lorif-hf reads up to 1.x. Install a newer one"),
    ],
)
def test_a_folder_that_is_no_index_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "influence_config.json").write_text(content)
    with pytest.raises(IndexFormatError, match=message):
        InfluenceIndex.from_pretrained(tmp_path)


def test_a_config_of_nonsense_is_refused(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    values = json.loads((index.path / "influence_config.json").read_text())
    values["config"]["factor_rank"] = -3
    (index.path / "influence_config.json").write_text(signed(json.dumps(values)))
    with pytest.raises(IndexFormatError, match="factor_rank must be an integer of at least 1, got -3"):
        InfluenceIndex.from_pretrained(index.path)


def test_queries_that_cannot_be_asked(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    for top_k in (0, -1, 2.0, "3", True, None):
        with pytest.raises(QueryError) as caught:
            index.attribute(gpt2, rows.select([0]), top_k=top_k)
        assert str(caught.value) == f"top_k must be an integer of at least 1, got {top_k!r}."
    with pytest.raises(QueryError, match="holds no tokenizer"):
        index.attribute(gpt2, "text")
    with pytest.raises(QueryError, match="The query is empty"):
        index.attribute(gpt2, [])


def test_an_objective_of_ones_own_must_be_given_again(gpt2, rows, tmp_path):
    def objective(model, batch):
        return model(input_ids=batch["input_ids"]).logits.square().mean(dim=(1, 2))

    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", objective=objective)
    assert index.manifest.objective == "custom"
    with pytest.raises(ObjectiveError, match="objective of your own: pass objective="):
        index.attribute(gpt2, rows.select([3]))
    assert index.attribute(gpt2, rows.select([3]), objective=objective, top_k=2).scores.shape == (1, 2)


def test_many_queries_in_batches_score_as_each_alone(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=plain_config(dtype="float32"))
    together = index.scores(gpt2, rows, batch_size=7)
    for row in (0, 6, 13):
        alone = index.scores(gpt2, rows.select([row]))
        assert torch.allclose(together[row], alone[0], rtol=1e-4, atol=1e-5)


def test_scores_that_would_not_fit_go_to_a_memory_map(gpt2, rows, tmp_path, monkeypatch):
    import os

    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    expected = index.scores(gpt2, rows.select([0, 1]))
    monkeypatch.setattr(os, "sysconf", lambda name: 4)  # 16 bytes free
    assert torch.equal(index.scores(gpt2, rows.select([0, 1])), expected)


def test_a_query_leaves_the_model_as_it_was(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    gpt2.train()
    gpt2.transformer.wte.weight.requires_grad_(False)
    index.attribute(gpt2, Dataset.from_dict({"input_ids": [[1, 2, 3]]}))
    assert gpt2.training and gpt2.config.use_cache
    assert not gpt2.transformer.wte.weight.requires_grad and gpt2.transformer.wpe.weight.requires_grad
