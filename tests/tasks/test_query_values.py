"""Values of a query: what they may be, and the error that names the query where they are something else."""

import numpy as np
import pytest
import torch

from lorif_hf.errors import QueryError
from lorif_hf.tasks.query_values import (
    check_no_listed_pair,
    check_no_split_pair,
    label_of,
    messages_of,
    shown,
    template_options,
    text_of,
    tokens_of,
)


CHAT = [{"role": "user", "content": "a"}]


def test_values_that_are_what_they_should_be():
    assert shown(["a", 3]) == "'a', '3'"
    assert text_of("x", "text", 0) == "x" and label_of("x", 0) == "x" and label_of([1, 0], 0) == [1, 0]
    assert messages_of(tuple(CHAT), "'messages'", 0) == CHAT
    for tokens in ([3, 4], torch.tensor([3, 4]), np.array([3, 4], dtype=np.uint16)):
        assert tokens_of(tokens, "chosen_ids", 0) == [3, 4]
    assert tokens_of([], "prompt_ids", 0) == []
    assert template_options({"tools": "[1]", "chat_template_kwargs": {"a": 2}}, 0) == {"tools": [1], "a": 2}
    assert template_options({"tools": None}, 0) == {}


@pytest.mark.parametrize("value", ["ab", [0.5], [[1], [2]], 3, {"a": 1}, [True], [[1], [2, 3]]], ids=str)
def test_tokens_that_are_none_are_named(value):
    with pytest.raises(QueryError) as caught:
        tokens_of(value, "chosen_ids", 4)
    assert str(caught.value) == (
        f"Query 4 has 'chosen_ids' of type {type(value).__name__}: expected a list of token ids, one row."
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: text_of(3, "text", 2), "Query 2 has 'text' of type int: expected a string."),
        (lambda: label_of(object(), 2), "Query 2 has a label of type object ("),
        (lambda: messages_of([], "'messages'", 2), "In query 2, 'messages' is empty: expected a list of messages"),
        (lambda: messages_of("hi", "'messages'", 2), "In query 2, 'messages' is a str: expected a list of messages"),
        (
            lambda: messages_of([*CHAT, {"role": "user"}], "the chat", 2),
            "In query 2, message 1 of the chat has no c",
        ),
        (lambda: template_options({"tools": "{"}, 2), "Query 2 has 'tools' that are no JSON ("),
        (lambda: template_options({"tools": 3}, 2), "Query 2 has 'tools' of type int: expected a list."),
        (lambda: template_options({"chat_template_kwargs": 3}, 2), "Query 2 has 'chat_template_kwargs' of type int"),
    ],
    ids=["text", "label", "empty", "string", "message", "json", "tools", "options"],
)
def test_other_values_are_named_with_their_query(call, message):
    with pytest.raises(QueryError) as caught:
        call()
    assert str(caught.value).startswith(message)


HOW = (
    "A prompt with its completion is a tuple, ('The capital of France is', ' Paris'), or {'prompt': ..., "
    "'completion': ...}; two queries are [{'text': ...}, {'text': ...}]."
)


@pytest.mark.parametrize("second", [" Paris", "\n\nParis", "\u3000x"])
def test_a_list_whose_second_string_goes_on_is_a_text_cut_in_two(second):
    with pytest.raises(QueryError) as caught:
        check_no_split_pair(["The capital of France is", second])
    assert str(caught.value) == f"The query is a list of two strings, the second of which goes on with a space. {HOW}"


@pytest.mark.parametrize(
    "query",
    [
        ["The capital of France is Paris", "The dog ran"],
        ["one\n", "two\n"],
        ["one\n", "\n"],
        ["one", ""],
        ["a", " b", " c"],
        [" a"],
        ("a", " b"),
        ["a", 1],
        "a b",
        [{"text": "a"}, {"text": " b"}],
    ],
    ids=repr,
)
def test_a_list_of_texts_is_several_queries(query):
    check_no_split_pair(query)


def test_a_pair_in_a_list_of_queries_is_a_tuple():
    with pytest.raises(QueryError) as caught:
        check_no_listed_pair(["prompt", "completion"], 4)
    assert str(caught.value) == f"Query 4 is a list of two strings. {HOW}"
    for item in (("prompt", "completion"), ["a"], ["a", 1], [["a"], ["b"]]):
        check_no_listed_pair(item, 4)
