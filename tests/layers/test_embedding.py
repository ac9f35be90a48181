"""The weight gradient of an `Embedding` is X^T dY of one-hot rows X, and each example's is its own."""

import pytest
import torch
from torch import nn

from lorif_hf.algebra.sides import as_vectors
from lorif_hf.layers import BatchShape, Embedding, kind_of
from lorif_hf.layers.embedding import lookup


KIND, ROWS, WIDTH = Embedding(), 6, 3
FLAT = torch.tensor([0, 5, 2, 2, 0, 1, 3, 5, 5, 4])


def recorded(module, ids, batch, spread):
    """Each example's gradient, (B, rows, width), and the whole one by autograd; `spread` makes what is returned."""
    output = spread(module(ids))
    returned = torch.randn(output.shape)
    output.backward(returned)
    tokens = KIND.tokens(module, "weight", (ids,), {}, batch)
    gradients = tokens.output_gradients(returned)
    return as_vectors(tokens.inputs).mT @ gradients, module.weight.grad, tokens, returned


@pytest.mark.parametrize(
    ("ids", "batch"),
    [
        (FLAT.view(2, 5), BatchShape(2, 5)),
        (FLAT.view(5, 2), BatchShape(5, 2)),
        (FLAT, BatchShape(2, 5)),  # a model that flattens its tokens
        (FLAT, BatchShape(10, 7)),  # an id for each example
        (FLAT.view(1, 5, 2), BatchShape(1, None)),
        (FLAT.view(2, 1, 5), BatchShape(2, None)),
        (torch.tensor(3), BatchShape(1, 4)),
        (FLAT.view(2, 5).int(), BatchShape(2, 5)),
    ],
    ids=["tokens", "more rows", "flattened", "of examples", "alone", "three axes", "a single id", "int32"],
)
@pytest.mark.parametrize("padding", [None, 2, -1], ids=["no padding", "padding", "padding from the end"])
def test_the_gradient_is_that_of_autograd(ids, batch, padding):
    torch.manual_seed(0)
    module = nn.Embedding(ROWS, WIDTH, padding_idx=padding)
    rows, whole, tokens, returned = recorded(module, ids, batch, lambda output: output)
    assert not tokens.common and len(rows) == batch.examples
    torch.testing.assert_close(rows.sum(dim=0), KIND.as_matrix(whole))
    if batch.examples > 1:  # each its own: as if the others were not there
        apart = returned.reshape(batch.examples, -1, WIDTH)
        for i, of_row in enumerate(ids.reshape(batch.examples, -1)):
            module.weight.grad = None
            module(of_row).backward(apart[i])
            torch.testing.assert_close(rows[i], module.weight.grad)


@pytest.mark.parametrize(
    ("ids", "batch"),
    [
        (torch.arange(5).view(1, 5), BatchShape(3, 5)),
        (torch.arange(5), BatchShape(3, 5)),
        (torch.arange(5), BatchShape(3, None)),
        (torch.tensor([[[1, 2], [3, 0]]]), BatchShape(2, None)),
    ],
    ids=["(1, T)", "(T,)", "(T,), T unknown", "(1, a, b)"],
)
def test_positions_that_all_have_in_common_are_looked_up_for_each(ids, batch):
    """What the recorder then hands on is (B, T, ...)."""
    module = nn.Embedding(ROWS, WIDTH)
    rows, whole, tokens, _ = recorded(
        module,
        ids,
        batch,
        lambda output: torch.stack([output.reshape(*ids.shape[ids.dim() > 1 :], WIDTH)] * batch.examples),
    )
    assert tokens.common
    torch.testing.assert_close(rows.sum(dim=0), whole)


DISTANCES = (torch.arange(3)[:, None] - torch.arange(3)).clamp_min(0)


@pytest.mark.parametrize(
    ("ids", "batch"),
    [
        (DISTANCES, BatchShape(4, 3)),
        (DISTANCES, BatchShape(3, 3)),
        (torch.arange(3), BatchShape(3, 3)),
        (torch.arange(3), BatchShape(3, None)),
        (torch.arange(3), BatchShape(3, 5)),
        (torch.arange(6), BatchShape(3, 2)),
        (torch.tensor(2), BatchShape(3, 3)),
    ],
    ids=[
        "distances",
        "distances of as many tokens as rows",
        "positions of as many",
        "T unknown",
        "of a decoder",
        "of a decoder with as many tokens as all encoders",
        "a single id",
    ],
)
def test_where_examples_cannot_be_told_apart_nothing_is_guessed(ids, batch):
    tokens = lookup(ids, torch.zeros(ROWS, WIDTH), batch)
    assert tokens.inputs is None and not tokens.common


@pytest.mark.parametrize(
    "ids",
    [torch.zeros(3, 3), torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]]), torch.tensor([0, 2, 1])],
    ids=["token types", "positions of each row", "an id for each example"],
)
def test_as_many_rows_as_tokens_are_no_trouble_otherwise(ids):
    assert lookup(ids.long(), torch.zeros(ROWS, WIDTH), BatchShape(3, 3)).inputs.ids.tolist() == [
        row if isinstance(row, list) else [row] for row in ids.long().tolist()
    ]


def test_the_ids_are_a_copy():
    ids = FLAT.view(2, 5).clone()
    tokens = lookup(ids, torch.zeros(ROWS, WIDTH), BatchShape(2, 5))
    ids.fill_(0)
    assert torch.equal(tokens.inputs.ids, FLAT.view(2, 5))


def test_nothing_of_the_size_of_the_table_squared_is_kept():
    assert KIND.shape(nn.Embedding(1000, 8), "weight").widths == (8, 8)
    assert KIND.shape(nn.Embedding(4, 8), "weight").widths == (4, 8)


def test_sparse_gradients_are_the_same_as_a_matrix():
    module = nn.Embedding(ROWS, WIDTH, sparse=True)
    rows, whole, *_ = recorded(module, FLAT.view(2, 5), BatchShape(2, 5), lambda output: output)
    torch.testing.assert_close(rows.sum(dim=0), KIND.as_matrix(whole))


@pytest.mark.parametrize(
    "module",
    [
        nn.Embedding(4, 2, max_norm=1.0),  # a call changes the weight
        nn.Embedding(4, 2, scale_grad_by_freq=True),  # a gradient depends on the batch
        nn.EmbeddingBag(4, 2),
        nn.Linear(4, 2),
    ],
    ids=["max_norm", "scale_grad_by_freq", "EmbeddingBag", "Linear"],
)
def test_what_is_not_of_the_kind(module):
    kind = kind_of(module)
    assert kind is None or kind.name != "embedding"


def test_the_ids_of_an_examples_sequences_stand_one_after_the_other():
    batch, ids = BatchShape(2, 5, sequences=2), torch.arange(20).view(4, 5) % ROWS
    tokens = lookup(ids, torch.zeros(ROWS, WIDTH), batch)
    assert torch.equal(tokens.inputs.ids, ids.view(2, 10)) and not tokens.common
    positions = lookup(torch.arange(5)[None], torch.zeros(ROWS, WIDTH), batch)
    assert positions.common and torch.equal(positions.inputs.ids, torch.arange(5).repeat(2, 2))
