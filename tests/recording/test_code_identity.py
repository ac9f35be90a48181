"""Which function or collator it is: by its code and its settings, not by where it lies or what it has counted."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import printed_twice
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from lorif_hf.recording.code_identity import code_identity, task_code
from lorif_hf.tasks import CausalLM
from lorif_hf.tasks.collation import PaddingCollator
from lorif_hf.tasks.custom import Custom


FOLDER = Path(__file__).parent
RATE = 0.1
CALLS = 0


def pad(features, side="right", **options):
    return {"side": side, **options}


def helper():
    return 1


def uses_a_global(features):
    return features, RATE, helper()


def counts_calls(features):
    global CALLS  # noqa: PLW0603
    CALLS += 1
    return features


def scaled(factor, kept=None):
    def collate(features):
        kept.append(features)
        return [factor * feature for feature in features]

    return collate


def counting():
    calls = 0

    def collate(features):
        nonlocal calls
        calls += 1
        return features

    return collate


class Collator:
    def __init__(self, length=8, tokenizer=None, **settings):
        self.length, self.tokenizer = length, tokenizer
        self._cache = object()
        self.calls, self.generator = 0, None
        self.__dict__.update(settings)

    def __call__(self, features):
        self.calls += 1
        self.generator = self.generator or np.random.default_rng(0)
        return features

    def other(self, features):
        return features[::-1]


class Child(Collator):
    def __call__(self, features):
        return features[1:]


class Slotted:
    __slots__ = ("length",)

    def __init__(self, length):
        self.length = length

    def __call__(self, features):
        return features


@dataclass
class Fields:
    length: int = 3
    names: list = field(default_factory=lambda: ["a"])
    weights: Any = None
    inner: Any = None

    def __call__(self, features):
        return features


class Tokenizer:
    pad_token_id, mask_token = 0, "[MASK]"


def masking(**settings):
    return DataCollatorForLanguageModeling(Tokenizer(), **settings)


DIFFERENT = {
    "functions": [lambda: pad, lambda: uses_a_global, lambda: counts_calls, lambda: code_identity],
    "lambdas": [
        lambda: lambda rows: rows,
        lambda: lambda rows: rows[1:],
        lambda: lambda rows: rows[2:],
        lambda: lambda rows: rows.a,
        lambda: lambda rows: rows.b,
        lambda: lambda rows, n=1: rows,
        lambda: lambda rows, n=2: rows,
        lambda: lambda rows: [row * 2 for row in rows],
        lambda: lambda rows: [row * 3 for row in rows],
        lambda: lambda rows: rows in ({1, "a", "b"},),
    ],
    "partials": [
        lambda: functools.partial(pad),
        lambda: functools.partial(pad, side="left"),
        lambda: functools.partial(pad, side="right"),
        lambda: functools.partial(pad, [1]),
        lambda: functools.partial(functools.partial(pad, side="left"), extra=np.arange(3)),
        lambda: functools.partial(pad, extra=torch.arange(4)),
        lambda: functools.partial(pad, extra=Collator(3)),
        lambda: functools.partial(pad, extra=Collator(4)),
    ],
    "closures": [lambda: scaled(1), lambda: scaled(2), lambda: scaled((1, 2)), lambda: scaled(helper), counting],
    "objects": [
        Collator,
        lambda: Collator(9),
        lambda: Collator(mode="a"),
        lambda: Collator(names=["a"]),
        lambda: Collator(names=["b"]),
        lambda: Collator(options={"deep": [1, {"x": 2}]}),
        lambda: Collator(options={"deep": [1, {"x": 3}]}),
        lambda: Collator(rule=lambda row: row * 2),
        lambda: Collator(rule=lambda row: row * 3),
        Child,
        Fields,
        lambda: Fields(4),
        lambda: Fields(names=["b"]),
        lambda: Fields(weights=torch.ones(2)),
        lambda: Fields(weights=torch.zeros(2)),
        lambda: Fields(inner=Fields(5)),
        lambda: Fields(inner=Fields(6)),
        lambda: Slotted(1),
        lambda: PaddingCollator(1),
        lambda: PaddingCollator(2),
        lambda: PaddingCollator(2, make_labels=True),
    ],
    "methods": [
        lambda: Collator().other,
        lambda: Collator(9).other,
        lambda: Collator().__call__,
        lambda: Child().other,
        lambda: "text".join,
        lambda: len,
    ],
    "of transformers": [
        lambda: masking(mlm=False),
        lambda: masking(mlm_probability=0.1),
        lambda: masking(mlm_probability=0.2),
        lambda: masking(seed=3),
        lambda: masking(seed=4),
        lambda: masking(mlm_probability=0.1).torch_call,
        lambda: DataCollatorWithPadding(Tokenizer()),
        lambda: DataCollatorWithPadding(Tokenizer(), pad_to_multiple_of=8),
    ],
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_other_code_or_settings_are_another_identity(kind):
    identities = [code_identity(make()) for make in DIFFERENT[kind]]
    assert identities == [code_identity(make()) for make in DIFFERENT[kind]]
    assert len(set(identities)) == len(identities)


def every_identity():
    return "\n".join(code_identity(make()) for makers in DIFFERENT.values() for make in makers)


def test_two_processes_find_the_same():
    printed = printed_twice("import test_code_identity as t; print(t.every_identity())", FOLDER)
    assert printed[0] == printed[1] and len(printed[0]) > 1000


MAKERS = [Collator, lambda: counts_calls, counting, lambda: scaled(1, [])]


@pytest.mark.parametrize("make", MAKERS, ids=["class", "closure", "counter", "keeper"])
def test_what_a_collator_counts_or_keeps_is_no_setting(make):
    collate = make()
    before = code_identity(collate)
    collate([1, 2])
    assert code_identity(collate) == before == code_identity(make())


def test_a_collator_of_transformers_is_the_same_after_it_was_used(tokenizer):
    tokenizer.mask_token = "1"
    collator = DataCollatorForLanguageModeling(tokenizer, seed=1)
    before = code_identity(collator)
    collator([{"input_ids": [1, 2, 3]}])
    assert collator.generator is not None and code_identity(collator) == before


def test_globals_of_ones_own_count(monkeypatch):
    before = code_identity(uses_a_global)
    monkeypatch.setitem(globals(), "RATE", 0.2)
    changed = code_identity(uses_a_global)
    monkeypatch.setitem(globals(), "helper", lambda: 2)
    assert len({before, changed, code_identity(uses_a_global)}) == 3


def test_what_holds_itself_is_no_trouble():
    collator = Fields()
    collator.inner = [collator]
    assert code_identity(collator) == code_identity(collator)

    def recursive(rows):
        return recursive(rows)

    assert code_identity(recursive).startswith(f"{__name__}.")


def test_the_identity_begins_with_the_name():
    assert code_identity(pad).startswith(f"{__name__}.pad ") and len(code_identity(pad).split()[1]) == 16
    assert code_identity(functools.partial(pad)).startswith(f"{__name__}.pad ")
    assert code_identity(PaddingCollator()).startswith("lorif_hf.tasks.collation.PaddingCollator ")


def test_the_losses_of_a_task():
    losses = [lambda model, batch: 2 * batch, lambda model, batch: 3 * batch]
    assert task_code(CausalLM()) == task_code(CausalLM())
    assert len({task_code(CausalLM()), *(task_code(Custom(loss)) for loss in losses)}) == 3
