"""Values of a query: what they may be, and the error that names the query where they are something else."""

import numpy as np
import pytest
import torch

from lorif_hf.errors import QueryError
from lorif_hf.tasks.query_values import label_of, messages_of, shown, template_options, text_of, tokens_of


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
