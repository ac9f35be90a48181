"""A label's name is its number, and a label that the model does not have lists those that it has."""

from types import SimpleNamespace

import pytest

from lorif_hf.errors import QueryError
from lorif_hf.tasks.class_labels import class_number


CONFIG = SimpleNamespace(label2id={"cat": 0, "dog": 1}, id2label={0: "cat", 1: "dog"})


@pytest.mark.parametrize("label, expected", [("dog", 1), (0, 0), (0.5, 0.5), ([1.0, 0.0], [1.0, 0.0])], ids=str)
def test_a_name_is_a_number_and_a_number_is_itself(label, expected):
    assert class_number(CONFIG, label, 0) == expected


@pytest.mark.parametrize("label, shown", [("cow", "label 'cow'"), (2, "label 2"), (-1, "label -1")], ids=str)
def test_an_unknown_label_lists_the_known_ones(label, shown):
    with pytest.raises(QueryError) as caught:
        class_number(CONFIG, label, 7)
    assert str(caught.value) == f"Query 7 has {shown}; the model's labels are cat, dog."


def test_names_alone_are_enough():
    assert class_number(SimpleNamespace(label2id={}, id2label={0: "cat", 1: "dog"}), "dog", 0) == 1


def test_without_a_config_every_number_may_be_one():
    assert class_number(None, 3, 0) == 3
    with pytest.raises(QueryError, match="Query 1 has label 'cat'"):
        class_number(None, "cat", 1)
