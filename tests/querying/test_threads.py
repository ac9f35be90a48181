"""Many threads that ask one model get what they would get one after another, and leave no trace on it."""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceIndex


def trained_on(model, steps=3):
    """The weights after a few steps of training with dropout."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for row in make_rows(steps, seed=9):
        ids = torch.tensor([row["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_two_hundred_queries_from_four_threads(tmp_path):
    model, rows = make_gpt2(), make_rows(20)
    untouched = copy.deepcopy(model)
    InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(projection_factor=2))
    index = InfluenceIndex.from_pretrained(tmp_path / "index")
    model.train()
    model.transformer.h[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    queries = [row["input_ids"] for row in make_rows(200, seed=3)]

    def ask(ids):
        return index.scores(model, {"input_ids": ids})

    expected = [ask(ids) for ids in queries]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ask, queries))
    assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))
    assert model.training and flags == [parameter.requires_grad for parameter in model.parameters()]
    assert model.config.use_cache and not any(module._forward_hooks for module in model.modules())
    model.transformer.h[0].requires_grad_(True)
    after, as_if_never_asked = trained_on(model), trained_on(untouched)
    assert all(torch.equal(after[name], as_if_never_asked[name]) for name in after)
