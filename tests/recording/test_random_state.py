"""Whatever is drawn inside, the random numbers afterwards are those that would have come."""

import functools
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from lorif_hf.recording.random_state import random_state_kept


def draw_all():
    return random.random(), np.random.rand(), torch.rand(2).tolist()


def seed_all():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_generators(fails):
    seed_all()
    expected = [draw_all(), draw_all()]
    seed_all()
    assert draw_all() == expected[0]
    np.random.standard_normal()  # a second one is kept for the next call
    random.gauss(0, 1)
    states = np.random.get_state(), random.getstate()
    try:
        with random_state_kept():
            draw_all()
            torch.randn(3)
            seed_all()
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert all(np.array_equal(a, b) for a, b in zip(states[0], np.random.get_state(), strict=True))
    assert random.getstate() == states[1]


GLOBAL = np.random.default_rng(5)


def draws_from_a_global(features):
    return GLOBAL.integers(1000)


def enclosing():
    generator = torch.Generator().manual_seed(2)

    def collate(features):
        return torch.rand(2, generator=generator).tolist()

    return collate


class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Drawing:
    """Draws from what it holds, wherever that is."""

    def __init__(self, find, **attributes):
        vars(self).update(attributes)
        self.find = find

    def __call__(self, features):
        generator = self.find(self)
        if isinstance(generator, torch.Generator):
            return torch.rand(2, generator=generator).tolist()
        return generator.random()


class Lazy:
    def __init__(self):
        self.generators = {}

    def __call__(self, features):
        if not hasattr(self, "generator"):
            self.generator = np.random.default_rng(3)
        other = self.generators.setdefault("here", random.Random(4))
        return self.generator.random(), other.random()


class Slotted:
    __slots__ = ("generator",)

    def __init__(self):
        self.generator = random.Random(8)

    def __call__(self, features):
        return self.generator.random()


class Method:
    def __init__(self):
        self.generator = np.random.RandomState(3)

    def collate(self, features):
        return self.generator.normal()


COLLATORS = {
    "torch.Generator": lambda: Drawing(lambda own: own.g, g=torch.Generator().manual_seed(1)),
    "np.random.Generator": lambda: Drawing(lambda own: own.g, g=np.random.default_rng(1)),
    "np.random.MT19937": lambda: Drawing(lambda own: np.random.Generator(own.g), g=np.random.MT19937(1)),
    "np.random.RandomState": lambda: Drawing(lambda own: own.g, g=np.random.RandomState(1)),
    "random.Random": lambda: Drawing(lambda own: own.g, g=random.Random(1)),
    "in a list": lambda: Drawing(lambda own: own.g[1], g=[1, np.random.default_rng(1)]),
    "in a dict": lambda: Drawing(lambda own: own.g["a"], g={"a": np.random.default_rng(1)}),
    "in what it holds": lambda: Drawing(lambda own: own.h.g, h=Holder(g=np.random.default_rng(1))),
    "made inside": Lazy,
    "in a slot": Slotted,
    "of a method": lambda: Method().collate,
    "in a closure": enclosing,
    "a global": lambda: draws_from_a_global,
    "in a partial": lambda: functools.partial(lambda g, features: g.random(), np.random.default_rng(2)),
    "in a default": lambda: lambda features, g=np.random.default_rng(2): g.random(),  # noqa: B008
}


@pytest.mark.parametrize("kind", COLLATORS)
@pytest.mark.parametrize("used", [False, True])
def test_generators_that_a_collator_holds(kind, used):
    collate = COLLATORS[kind]()
    if used:
        collate([])
    with random_state_kept(collate):
        first, second = collate([]), collate([])
    assert first != second
    assert (collate([]), collate([])) == (first, second)


def test_what_holds_itself_and_what_holds_much_is_no_trouble():
    holder = Holder(numbers=list(range(100_000)), words={str(i): i for i in range(10_000)})
    holder.itself, holder.generator = [holder], random.Random(1)
    with random_state_kept(holder, None, 3, holder.numbers):
        first = holder.generator.random()
    assert holder.generator.random() == first


def test_a_system_generator_has_no_state_to_keep():
    with random_state_kept(Holder(generator=random.SystemRandom())):
        pass


def test_the_transform_of_a_dataset():
    generator = np.random.default_rng(0)
    dataset = Dataset.from_dict({"x": [1, 2]}).with_transform(lambda rows: {"x": generator.normal(size=2).tolist()})
    with random_state_kept(dataset):
        first = dataset[0]
    assert dataset[0] == first


def masked(words):
    names = {name: number for number, name in enumerate(["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "cls_token": "[CLS]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, sep_token="[SEP]", **special)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_maskers_of_transformers(whole_words, seed, used):
    seed_all()
    tokenizer = masked([f"w{i}" for i in range(50)])
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=True, whole_word_mask=whole_words, seed=seed)

    def collate():
        offsets = {"offset_mapping": [(3 * i, 3 * i + 2) for i in range(50)]} if whole_words else {}
        return collator([{"input_ids": list(range(5, 55)), **offsets} for _ in range(4)])["input_ids"]

    if used:
        collate()
    held = collator.generator
    with random_state_kept(collator):
        first, second = collate(), collate()
    assert not torch.equal(first, second) and collator.generator is held
    assert torch.equal(collate(), first) and torch.equal(collate(), second)
