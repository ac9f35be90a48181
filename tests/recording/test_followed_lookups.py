"""Tables followed through lookups and products: what is recorded of them is autograd's gradient, row by row."""

import pytest
import torch
import torch.nn.functional as F
from projections import rademacher
from recordings import draw
from torch import nn

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers import Embedding, Linear
from lorif_hf.layers.modules import Holders, TrackedModule
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective


B, T, ROWS, WIDTH = 3, 5, 7, 4


class Used(nn.Module):
    """A table that is used by `how`, and a number for each row of what comes out."""

    def __init__(self, how, rows=ROWS):
        super().__init__()
        self.table = nn.Embedding(rows, WIDTH)
        self.how = how

    def forward(self, ids):
        y = self.how(self.table, ids)
        return (y.float().sin() * torch.arange(1, y[0].numel() + 1).view(y[0].shape)).flatten(1).sum(dim=1)


def looked_up_and_scored(table, ids):
    return F.linear(table(ids).sin(), table.weight)


def positions(table, ids):
    return table.weight[1 : ids.shape[1] + 1] + ids.unsqueeze(2).float()


WAYS = {
    "its own call": lambda table, ids: table(ids),
    "embedding": lambda table, ids: F.embedding(ids, table.weight),
    "by name, with a row of padding": lambda table, ids: F.embedding(input=ids, weight=table.weight, padding_idx=2),
    "scaled after": lambda table, ids: table(ids) * 4.0,
    "moved by two": lambda table, ids: table(ids.clamp_max(ROWS - 3) + 2),
    "in another dtype": lambda table, ids: F.embedding(ids, table.weight.double()),
    "index_select": lambda table, ids: table.weight.index_select(0, ids.flatten()).view(B, T, WIDTH),
    "weight[ids]": lambda table, ids: table.weight[ids],
    "weight[ids from the end]": lambda table, ids: table.weight[ids - ROWS],
    "weight[a:b], of positions": positions,
    "positions (1, T)": lambda table, ids: table(torch.arange(T)[None]) * (1 + ids.unsqueeze(2)),
    "positions (T,)": lambda table, ids: table(torch.arange(T)) * (1 + ids.unsqueeze(2)),
    "changed in place": lambda table, ids: table(torch.arange(T)[None]).mul_(2) + ids.unsqueeze(2),
    "twice": lambda table, ids: table(ids) + table(ids.flip(1)).cos(),
    "tied: linear": looked_up_and_scored,
    "tied: x @ W.T": lambda table, ids: table(ids).cos() @ table.weight.T,
    "tied: W @ x.T": lambda table, ids: table.weight @ table(ids).sin().mT,
    "tied: addmm": lambda table, ids: torch.addmm(
        torch.ones(ROWS), table(ids).sin().flatten(0, 1), table.weight.t()
    ).view(B, T, ROWS),
    "tied: in another dtype": lambda table, ids: table(ids).sin().double() @ table.weight.double().T,
    "weighted means of rows": lambda table, ids: F.one_hot(ids, ROWS).cumsum(1).float() @ table.weight,
}


def of_layer(model, tracked, ids, factor, alone, scale=None, loss=lambda model, ids: model(ids)):
    objective = LossObjective(task_of(model, lambda model, batch: loss(model, batch["input_ids"])))
    batches = [ids[i : i + 1] for i in range(len(ids))] if alone else [ids]
    scales = {} if scale is None else {"table": scale}
    with GradientRecorder(
        model, [tracked], draw([tracked], factor), objective, alone=alone, scales=scales
    ) as recorder:
        return torch.cat([recorder.record({"input_ids": batch}).gradients["table"] for batch in batches])


def recorded(model, ids, alone=False, **options):
    tracked = TrackedModule.of("table", Embedding(), model.table, Holders(model), followed=True)
    return of_layer(model, tracked, ids, 1, alone, **options)


def autograd(model, ids):
    return torch.stack(
        [torch.autograd.grad(value, [model.table.weight], retain_graph=True)[0] for value in model(ids)]
    )


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_the_gradient_is_that_of_autograd(how):
    torch.manual_seed(0)
    model, ids = Used(how), torch.randint(0, ROWS, (B, T))
    weight = model.table.weight.clone()
    torch.testing.assert_close(recorded(model, ids).float(), autograd(model, ids), rtol=1e-5, atol=1e-4)
    assert torch.equal(model.table.weight, weight)


@pytest.mark.parametrize("rows", [WIDTH, 2], ids=["square", "wider than high"])
def test_of_a_small_table_either_use_is_told_apart(rows):
    torch.manual_seed(0)
    model, ids = Used(looked_up_and_scored, rows), torch.randint(0, rows, (B, T))
    torch.testing.assert_close(recorded(model, ids), autograd(model, ids), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_table_may_be_kept_transposed(dtype):
    """As LoRA keeps its matrix A over an embedding, (r, V)."""
    torch.manual_seed(0)

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Linear(ROWS, WIDTH)

        def forward(self, ids):
            return F.embedding(ids, self.table.weight.T.to(dtype), padding_idx=1).sin().sum(dim=(1, 2))

    model, ids = Kept(), torch.randint(0, ROWS, (B, T))
    tracked = TrackedModule.of("table", Linear(), model.table, Holders(model), followed=True)
    gradients = of_layer(model, tracked, ids, 1, False).mT
    torch.testing.assert_close(gradients.to(torch.float32), autograd(model, ids), rtol=1e-5, atol=1e-5)


def relative(table, ids):
    """As T5's and others' attention bias: (T, T, width), which has no axis for the examples."""
    distances = (torch.arange(T)[:, None] - torch.arange(T)).clamp_min(0)
    return table(distances).permute(2, 0, 1).unsqueeze(0) * (1 + ids[:, None, :, None])


def test_what_examples_have_in_common_beyond_repair_is_recorded_of_each_alone():
    torch.manual_seed(0)
    model, ids = Used(relative), torch.randint(0, ROWS, (B, T))
    with pytest.raises(UnsupportedModuleError, match="'table' saw 5 rows in a batch of 3 examples.*one row at a time"):
        recorded(model, ids)
    torch.testing.assert_close(recorded(model, ids, alone=True), autograd(model, ids), rtol=1e-5, atol=1e-4)


def test_lookups_that_change_the_table_or_depend_on_the_batch_are_left_to_the_check():
    model, ids = (
        Used(lambda table, ids: F.embedding(ids, table.weight, scale_grad_by_freq=True)),
        torch.ones(B, T).long(),
    )
    gradients = recorded(model, ids, loss=lambda model, ids: model(ids) + model.table(ids).sum(dim=(1, 2)))
    expected = torch.zeros(B, ROWS, WIDTH)
    expected[:, 1] = T  # of the call of the module alone
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("how", [WAYS["tied: linear"], WAYS["positions (T,)"]], ids=["tied", "positions"])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_scale_of_the_rows_comes_before_the_projection(how, factor):
    torch.manual_seed(0)
    model, ids = Used(how, rows=ROWS), torch.randint(0, ROWS, (B, T))
    scale = torch.rand(ROWS) + 0.5
    tracked = TrackedModule.of("table", Embedding(), model.table, Holders(model), followed=True)
    expected = scale.double().unsqueeze(1) * autograd(model, ids).double()
    for side, size in (("in", ROWS), ("out", WIDTH)) if factor > 1 else ():
        matrix = rademacher(size, size // factor, seed=0, name=f"table/{side}").double()
        expected = matrix.T @ expected if side == "in" else expected @ matrix
    found = of_layer(model, tracked, ids, factor, False, scale)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
