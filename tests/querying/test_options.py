"""What cannot be asked is refused before anything is read."""

import pytest

from lorif_hf.errors import QueryError
from lorif_hf.querying.options import QueryOptions


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "8", True, None])
def test_a_batch_size_that_is_none_is_refused(batch_size):
    with pytest.raises(QueryError) as caught:
        QueryOptions(batch_size=batch_size)
    assert str(caught.value) == f"batch_size must be an integer of at least 1, got {batch_size!r}."


@pytest.mark.parametrize(
    "options, message",
    [
        ({"measure": "likelihood"}, "measure must be one of loss, log_prob, margin, difference, reward, got 'likelih"),
        ({"measure": ["loss"]}, "measure must be one of loss, log_prob, margin, difference, reward, got ['loss']."),
        ({"token": True}, "token must be an integer, the place of a token in the answer, got True."),
        ({"token": 1.0}, "token must be an integer, the place of a token in the answer, got 1.0."),
        ({"token": "Paris"}, "token must be an integer, the place of a token in the answer, got 'Paris'."),
        ({"reduce": "sum"}, "reduce must be one of mean, got 'sum'."),
        ({"per_token": 1}, "per_token must be True or False, got 1."),
        ({"per_token": True, "token": 0}, "per_token=True scores each token of each query: leave out token=."),
        ({"per_token": True, "reduce": "mean"}, "per_token=True scores each token of each query: leave out reduce=."),
        (
            {"per_token": True, "measure": "difference"},
            "measure='difference' is of whole completions: leave out per",
        ),
        (
            {"token": 3, "measure": "reward"},
            "measure='reward' is of whole completions: leave out per_token=",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_asked_says_what_can(options, message):
    with pytest.raises(QueryError) as caught:
        QueryOptions(**options)
    assert str(caught.value).startswith(message)
