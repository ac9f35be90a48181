"""Kinds from outside of the package, from build to answer: a layer, a task, a curvature and a codec of `own_kinds`.

The library does not know them, they are registered by name, and each score is that of a dense reference in float64.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from own_kinds import (
    ALL_FOUR,
    QUERIES,
    REGISTERED,
    DenseKind,
    SquaredError,
    damped,
    make_model,
    make_rows,
    register_all,
    registries_restored,
)
from peft import LoraConfig, get_peft_model
from torch import Tensor

from lorif_hf import InfluenceConfig, InfluenceIndex, layers
from lorif_hf.errors import IndexCorruptedError, UnknownKindError, UnsupportedModuleError
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.storage.layout import signed
from lorif_hf.tasks import task_of


AS_ROWS = [
    {"input_ids": [3, 14, 15, 9], "label": 1.5},
    {"input_ids": [27, 18], "label": -0.5},
    {"input_ids": [2], "label": 0.0},
]


@pytest.fixture
def registered() -> Iterator[None]:
    """The four kinds, for the time of a test."""
    with registries_restored():
        register_all()
        yield


# The reference.


def reference(rows: list[dict[str, Any]], config: InfluenceConfig) -> tuple[Tensor, Tensor]:
    """Scores (Q, N) and self-influence (N,), float64: autograd row by row, and every layer's matrices whole."""
    model = make_model().double()
    weights = {"up.kernel": model.up.kernel, "middle": model.middle.weight, "down.kernel": model.down.kernel}

    def gradients(row: dict[str, Any]) -> dict[str, Tensor]:
        loss = (model(torch.tensor([row["input_ids"]])) - row["label"]).square().sum() / 2
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    of_rows, of_queries = [gradients(row) for row in rows], [gradients(row) for row in AS_ROWS]
    scores, own = torch.zeros(len(AS_ROWS), len(rows)).double(), torch.zeros(len(rows)).double()
    for name, weight in weights.items():
        g, q = (torch.stack([each[name] for each in group]).flatten(1) for group in (of_rows, of_queries))
        stored = g
        if config.codec == "top-entries" and config.factor_rank is not None:
            smallest = g.abs().topk(min(g.shape[1], config.factor_rank * sum(weight.shape))).values[:, -1:]
            stored = torch.where(g.abs() >= smallest, g, 0)
        inverse = torch.ones_like(g[0])
        if config.curvature == "diagonal-fisher":  # of the whole gradients, which its first pass saw
            inverse = damped(g.square().sum(dim=0), config.damping).reciprocal()
        scores += (q * inverse) @ stored.T
        own += stored.square() @ inverse
    return scores, own


def off(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).abs().max() / expected.abs().max())


PLAIN = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32", shard_size=7)
LINEAR = InfluenceConfig(**{**PLAIN.to_dict(), "target_modules": ["middle"]})
CHANGES = {
    "layer and task": {},
    "curvature": {"curvature": "diagonal-fisher", "damping": 0.2},
    "codec": {"codec": "top-entries"},
    "all four": ALL_FOUR,
    "a codec that loses": {**ALL_FOUR, "factor_rank": 1},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_from_build_to_answer(hub, tmp_path, tokenizer, registered, changes):
    """Built, saved, pushed, streamed and asked: the scores are those of the dense reference."""
    model, rows, config = make_model(), make_rows(), InfluenceConfig(**{**PLAIN.to_dict(), **changes})
    built = InfluenceIndex.build(model, rows, tmp_path / "built", config=config, processing_class=tokenizer)
    assert {entry.name: entry.kind for entry in built.manifest.modules} == {
        "up.kernel": "dense-kernel",
        "middle": "linear",
        "down.kernel": "dense-kernel",
    }
    built.save_pretrained(tmp_path / "saved")
    saved = InfluenceIndex.from_pretrained(tmp_path / "saved")
    saved.push_to_hub("user/own-kinds", token=hub.token)
    streamed = InfluenceIndex.from_pretrained("user/own-kinds", streaming=True, cache_dir=tmp_path / "cache")
    streamed.verify()

    expected, own = reference(rows, config)
    scores = streamed.scores(make_model(), QUERIES)
    assert off(scores, expected) <= 1e-4
    assert off(streamed.self_influence(), own) <= 1e-4
    assert torch.equal(scores, built.scores(model, QUERIES))
    result = streamed.attribute(make_model(), QUERIES, top_k=3)
    best = expected.topk(3)
    assert off(result.scores, best.values) <= 1e-4
    assert off(expected.gather(1, result.indices), best.values) <= 1e-4


READ_IN_A_FRESH_PROCESS = """
import sys
import own_kinds, torch  # which registers nothing yet
from lorif_hf import InfluenceIndex

def attempt(repo):
    try:
        index = InfluenceIndex.from_pretrained(repo, streaming=True)
    except Exception as error:
        return ["load", type(error).__name__, str(error)]
    try:
        index.attribute(own_kinds.make_model(), own_kinds.QUERIES)
    except Exception as error:
        return ["attribute", type(error).__name__, str(error)]

told = {repo: attempt(repo) for repo in sys.argv[2:]}
own_kinds.register_all()
scores = {
    repo: InfluenceIndex.from_pretrained(repo).scores(own_kinds.make_model(), own_kinds.QUERIES)
    for repo in sys.argv[2:]
}
torch.save([told, scores], sys.argv[1])
"""


@pytest.mark.slow
def test_a_reader_without_the_kind_is_told_what_to_import(hub, tmp_path, tokenizer, registered):
    """In a process that knows none of them: at loading, a task's where it is asked for. Once they are registered, it
    answers."""
    model, rows, linear_only = make_model(), make_rows(), {"target_modules": ["middle"]}
    choices = {
        "layer": {"target_modules": ["up"]},
        "curvature": {**linear_only, "curvature": "diagonal-fisher"},
        "codec": {**linear_only, "codec": "top-entries"},
        "task": linear_only,
    }
    expected = {}
    for name, changes in choices.items():
        config = InfluenceConfig(**{**PLAIN.to_dict(), **changes})
        index = InfluenceIndex.build(model, rows, tmp_path / name, config=config, processing_class=tokenizer)
        index.push_to_hub(f"user/{name}", token=hub.token)
        expected[f"user/{name}"] = index.scores(model, QUERIES)
        assert set(index.manifest.extensions.values()) == {"own_kinds"}
    command = [sys.executable, "-c", READ_IN_A_FRESH_PROCESS, str(tmp_path / "told.pt"), *expected]
    support = str(Path(__file__).parent / "support")
    environment = hub.environment(tmp_path / "home")
    environment["PYTHONPATH"] = os.pathsep.join([support, *filter(None, [environment.get("PYTHONPATH")])])
    subprocess.run(command, check=True, env=environment, timeout=300)
    told, scores = torch.load(tmp_path / "told.pt")
    print(json.dumps(told, indent=1))
    kinds = {"layer": "kind of layer 'dense-kernel'", "task": "task 'squared-error'"}
    kinds |= {"curvature": "curvature 'diagonal-fisher'", "codec": "codec 'top-entries'"}
    for name, kind in kinds.items():
        moment, error, message = told[f"user/{name}"]
        assert moment == ("attribute" if name == "task" else "load"), (name, message)
        assert error == "UnknownKindError", message
        assert f"The {kind} is not registered" in message
        assert "import own_kinds first" in message
    for repo, streamed in scores.items():
        assert torch.equal(streamed, expected[repo])


def test_a_manifest_that_names_no_module_is_refused(tmp_path):
    index = InfluenceIndex.build(
        make_model(), make_rows(), tmp_path / "index", config=LINEAR, objective=SquaredError()
    )
    text = index.manifest.to_json()
    for extensions in ({"squared-error": 5}, {"squared-error": ["own_kinds"]}, {"squared-error": None}):
        changed = {**json.loads(text), "extensions": extensions}
        (tmp_path / "index" / "influence_config.json").write_text(signed(json.dumps(changed)))
        with pytest.raises(IndexCorruptedError, match="an extension is no module's name"):
            InfluenceIndex.from_pretrained(tmp_path / "index")


# Registration.


@pytest.mark.parametrize("folder, kinds, kind", REGISTERED, ids=[kind.__name__ for _, _, kind in REGISTERED])
def test_a_name_is_taken_once(registered, folder, kinds, kind):
    """By one class: that one may come again, as a notebook's cell does."""
    assert folder.register(kind) is kind  # usable as a decorator
    other = type("Other", (kind,), {"__module__": "somewhere.else"})
    with pytest.raises(ValueError, match=f"'{kind.name}' is there already, own_kinds.{kind.__name__}: choose another"):
        folder.register(other)
    with pytest.raises(ValueError, match=r"needs a class attribute `name`"):
        folder.register(type("Nameless", (kind,), {"name": ""}))
    other.name = "another"
    folder.register(other)
    assert "another" in {known.name for known in kinds} and kind.name in {known.name for known in kinds}
    again = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})
    folder.register(again)  # the cell ran again, and made the class anew
    last = kinds.get(kind.name)
    assert last is again or type(last) is again


@pytest.mark.parametrize("name", ["linear", "conv1d"])
def test_the_librarys_own_names_are_taken(registered, name):
    with pytest.raises(ValueError, match=f"The kind of layer '{name}' is there already, lorif_hf.layers.{name}"):
        layers.register(type("Mine", (DenseKind,), {"name": name}))


def test_all_linear_takes_a_kind_that_says_it_is_linear(registered):
    model = make_model()
    assert [tracked.name for tracked in tracked_modules(model)] == ["up.kernel", "middle", "down.kernel"]
    layers.register(type("OnlyByName", (DenseKind,), {"name": "only-by-name", "linear": False}))  # the last goes first
    assert [tracked.name for tracked in tracked_modules(model)] == ["middle"]
    asked_for = tracked_modules(model, ["up", "middle"])
    assert [(tracked.name, tracked.kind.name) for tracked in asked_for] == [
        ("up.kernel", "only-by-name"),
        ("middle", "linear"),
    ]


def test_an_adapted_model_is_tracked_on_its_adapters_alone(registered):
    """Its layers of a kind of one's own are not trained, though the kind is linear."""
    adapted = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["middle"], init_lora_weights=False))
    names = ["middle.lora_A.default", "middle.lora_B.default"]
    assert [(tracked.name, tracked.kind.name) for tracked in tracked_modules(adapted)] == [
        (n, "linear") for n in names
    ]


def test_kinds_that_are_not_registered_are_not_there():
    """The fixture cleans up after itself: other tests see the library's own kinds alone."""
    assert {kind.name for _, kinds, _ in REGISTERED for kind in kinds}.isdisjoint(
        kind.name for _, _, kind in REGISTERED
    )
    with pytest.raises(
        UnknownKindError, match=r"The curvature 'diagonal-fisher' is not registered: known are low-rank"
    ):
        InfluenceConfig(curvature="diagonal-fisher")
    with pytest.raises(UnknownKindError, match=r"import its module first, which must call lorif_hf.codecs.register"):
        InfluenceConfig(codec="top-entries")
    with pytest.raises(UnknownKindError, match=r"The task 'squared-error' is not registered"):
        task_of(make_model(), "squared-error")
    with pytest.raises(UnsupportedModuleError, match=r"Module 'up' is a Dense, which cannot be tracked"):
        tracked_modules(make_model(), ["up"])
