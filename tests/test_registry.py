"""Kinds by name."""

import sys
import types

import pytest

from lorif_hf.codecs import DenseCodec
from lorif_hf.errors import ConfigError, IndexFormatError, UnknownKindError
from lorif_hf.registry import CODECS, CURVATURES, LAYER_KINDS, TASKS, Registry, outside_module


def kind(name, module="somewhere", qualname="Kind"):
    """A class as some module defines it."""
    return type(qualname, (), {"name": name, "__module__": module, "__qualname__": qualname})


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setitem(sys.modules, "lorif_hf.fruit", types.ModuleType("lorif_hf.fruit"))
    registry = Registry("kind of fruit", "lorif_hf.fruit")
    for name in ("apple", "pear"):
        registry.register(kind(name, qualname=name.title()))
    return registry


def test_a_kind_is_found_by_its_name_and_register_gives_it_back(registry):
    plum = kind("plum", qualname="Plum")
    assert registry.register(plum) is plum and registry.get("plum") is plum
    assert registry.get("apple").__qualname__ == "Apple"


def test_instances_are_registered_like_classes(registry):
    plum = kind("plum")()
    assert registry.register(plum) is plum and registry.get("plum") is plum


def test_the_last_registered_comes_first(registry):
    registry.register(kind("plum"))
    assert [found.name for found in registry] == ["plum", "pear", "apple"]


def test_kinds_may_be_registered_while_they_are_looked_through(registry):
    for number, _ in enumerate(registry):
        registry.register(kind(f"plum-{number}"))
    assert len(list(registry)) == 4


@pytest.mark.parametrize("made", [lambda cls: cls, lambda cls: cls()], ids=["classes", "instances"])
def test_the_same_class_may_come_again_and_the_new_one_counts(registry, made):
    """A notebook's cell that runs twice defines it twice."""
    first, second = made(kind("plum")), made(kind("plum"))
    registry.register(first)
    registry.register(second)
    assert registry.get("plum") is second and [found.name for found in registry].count("plum") == 1


@pytest.mark.parametrize(
    "other", [kind("apple", qualname="Other"), kind("apple", module="elsewhere", qualname="Apple")]
)
def test_a_name_that_another_kind_has_is_refused(registry, other):
    before = registry.get("apple")
    for given in (other, other()):
        with pytest.raises(ValueError) as caught:
            registry.register(given)
        assert str(caught.value) == (
            "The kind of fruit 'apple' is there already, somewhere.Apple: choose another name."
        )
    assert registry.get("apple") is before


@pytest.mark.parametrize("name", ["", None, 3, b"plum", ["plum"]])
def test_a_kind_needs_a_name(registry, name):
    with pytest.raises(ValueError, match="needs a class attribute `name`, a string by which an index finds it again"):
        registry.register(kind(name))
    with pytest.raises(ValueError, match="needs a class attribute `name`"):
        registry.register(object)


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_way_out(registry):
    with pytest.raises(UnknownKindError) as caught:
        registry.get("plum")
    assert caught.value.name == "plum"
    assert str(caught.value) == (
        "The kind of fruit 'plum' is not registered: known are apple, pear. If it is an extension, your own or that "
        "of the index's author, import its module first, which must call lorif_hf.fruit.register."
    )
    assert isinstance(caught.value, ConfigError) and isinstance(caught.value, IndexFormatError)


def test_the_module_that_registers_it_is_named_where_the_index_knows_it(registry):
    with pytest.raises(UnknownKindError, match=r"index's author, import my_plums\.kinds first, which must call"):
        registry.get("plum", "my_plums.kinds")


def test_what_an_index_says_of_a_module_is_shown_short_and_without_control_characters(registry):
    with pytest.raises(UnknownKindError) as caught:
        registry.get("p" * 1000, "\x1b[31m\nrm -rf" + "x" * 1000)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500 and "import [31mrm -rfxxx" in message


@pytest.mark.parametrize("name", [None, 3, True, 1.5, ["apple"], {"apple": 1}, ""], ids=repr)
def test_what_is_no_name_is_unknown(registry, name):
    with pytest.raises(UnknownKindError, match="is not registered: known are apple, pear"):
        registry.get(name)


def test_only_kinds_from_elsewhere_have_an_outside_module():
    assert outside_module(kind("plum", module="my_plums.kinds")) == "my_plums.kinds"
    assert outside_module(kind("plum", module="my_plums.kinds")()) == "my_plums.kinds"
    assert outside_module(kind("plum", module="lorif_hf_plums")) == "lorif_hf_plums"
    assert outside_module(DenseCodec) is None and outside_module(kind("x", module="lorif_hf.codecs.x")()) is None


def test_the_librarys_own_kinds_are_registered_by_importing_it():
    assert {"linear", "conv1d"} <= {found.name for found in LAYER_KINDS}
    assert {"causal-lm", "sequence-classification"} <= {found.name for found in TASKS}
    assert {"low-rank", "kronecker", "none"} <= {found.name for found in CURVATURES}
    assert {"dense", "factored", "packed"} <= {found.name for found in CODECS}
    for registry in (LAYER_KINDS, TASKS, CURVATURES, CODECS):
        assert all(registry.get(found.name) is found for found in registry)
