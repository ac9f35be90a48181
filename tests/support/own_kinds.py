"""Kinds of somebody else's: a layer, a task, a curvature and a codec that the library does not know, and a model.

They are registered by [`register_all`] alone: importing them changes nothing for the tests of everything else.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorif_hf import InfluenceConfig, codecs, curvature, layers, registry, tasks
from lorif_hf.algebra.gradients import StoredGradients
from lorif_hf.algebra.matrices import Matrices, dense
from lorif_hf.algebra.scoring import DENSE_ROWS, Workspace
from lorif_hf.algebra.statistic import Statistic
from lorif_hf.codecs import Codec, Layout, Parts
from lorif_hf.codecs.base import widened
from lorif_hf.curvature import Cost, Curvature, FirstPass, Fitted, Tensors
from lorif_hf.errors import ConfigError, QueryError
from lorif_hf.layers import BatchShape, LayerKind, MatrixShape, Tokens
from lorif_hf.storage.layout import ModuleEntry
from lorif_hf.storage.shards import ModuleTensors
from lorif_hf.tasks import Feature, Task, TextReader
from lorif_hf.tasks.base import batch_size, forward_inputs, no_margin


# A model that transformers does not know.


class Dense(nn.Module):
    """y = x W, of a weight `kernel` (I, O), called by name: `dense(hidden=x)`."""

    def __init__(self, size_in: int, size_out: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(size_in, size_out) * size_in**-0.5)

    def forward(self, *, hidden: Tensor) -> Tensor:
        return hidden @ self.kernel


class Scorer(nn.Module):
    """A number for a text: the mean over its tokens of what two layers of `Dense` and a Linear make of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.up, self.middle, self.down = Dense(8, 12), nn.Linear(12, 6), Dense(6, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.up(hidden=self.embedding(input_ids)).tanh()
        values = self.down(hidden=self.middle(hidden).tanh()).sin().sum(dim=-1)
        return (values * mask).sum(dim=1) / mask.sum(dim=1)


def make_model() -> Scorer:
    torch.manual_seed(0)
    return Scorer().eval()


def make_rows(count: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        length = int(torch.randint(2, 9, (1,), generator=generator))
        rows.append({"input_ids": torch.randint(1, 50, (length,), generator=generator).tolist()})
        rows[-1] |= {"label": float(number % 5) - 2, "text": f"text {number}"}
    return rows


QUERIES = [("3 14 15 9", 1.5), {"text": "27 18", "label": -0.5}, ("2", 0.0)]


# The kinds.


class DenseKind(LayerKind):
    name = "dense-kernel"
    linear = True

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        return isinstance(module, Dense) and parameter == "kernel"

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        return MatrixShape(*module.kernel.shape)

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        return Tokens(batch.per_example(kwargs["hidden"]), batch.per_example)


class SquaredError(Task):
    """Half the squared distance of a [`Scorer`]'s number from its label."""

    name = "squared-error"
    auto_class = None
    needs_labels = True
    makes_labels = False
    labelled_queries = True
    query_example = '("A text", 0.5)'

    def accepts(self, model: nn.Module) -> bool:
        return isinstance(model, Scorer)

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return (model(**forward_inputs(model, batch)) - batch["labels"]).square() / 2

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return torch.ones(batch_size(batch), dtype=torch.int64)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        raise no_margin(self.name)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        if isinstance(target, str):
            raise QueryError(f"Query {number} pairs a text with {target!r}: expected a (text, number) pair.")
        return {"input_ids": reader.tokens(text, number), "labels": float(target)}

    def check_query(self, feature: Feature, number: int) -> None:
        if "labels" not in feature:
            raise QueryError(f"Query {number} has no number to compare with: expected a (text, number) pair.")


@dataclass
class SquaredEntries(Statistic):
    """Sum over examples of the squared entries of their gradients, float64 (d1, d2)."""

    total: Tensor

    def of(self, inputs: Tensor, output_gradients: Tensor) -> "SquaredEntries":
        return SquaredEntries((inputs.mT @ output_gradients).double().square().sum(dim=0).cpu())

    def add(self, other: "SquaredEntries") -> None:
        self.total += other.total


class SquaresPass(FirstPass):
    """Gathers the diagonal over all rows."""

    samples = 1 << 62

    def statistic(self, entry: ModuleEntry) -> SquaredEntries:
        return SquaredEntries(torch.zeros(entry.d1, entry.d2, dtype=torch.float64))

    def tensors(self, entry: ModuleEntry, statistic: Statistic, scale: float) -> Tensors:
        assert isinstance(statistic, SquaredEntries)
        return {"diagonal": (statistic.total * scale).float()}

    def load(self, stored: ModuleTensors, entry: ModuleEntry) -> Tensors:
        return {"diagonal": stored.read("diagonal", (entry.d1, entry.d2), least=0)}

    def whiten(self, gradients: Tensor, tensors: Tensors) -> Tensor:
        return gradients

    def in_scale(self, tensors: Tensors) -> None:
        return None

    def reduction(self, tensors: Tensors, width: int | None) -> None:
        return None

    def cost(self, entry: ModuleEntry) -> Cost:
        return Cost(stored=4 * entry.d1 * entry.d2, memory=8 * entry.d1 * entry.d2)


def damped(diagonal: Tensor, damping: float) -> Tensor:
    return diagonal + damping * diagonal.mean()


@dataclass(frozen=True)
class DiagonalFisher(Curvature):
    """H = diag(F) + damping mean(F) I."""

    damping: float
    name = "diagonal-fisher"
    first_pass = SquaresPass()
    keeps_rank = False

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "DiagonalFisher":
        if config.whitening != "none":
            raise ConfigError("curvature='diagonal-fisher' is of gradients as they are: set whitening='none'.")
        return cls(config.damping)

    def cost(self, gradients: StoredGradients, max_memory: int | None) -> Cost:
        return Cost(memory=16 * gradients.dim)

    def fit(self, gradients: StoredGradients, first: Tensors, max_memory: int | None) -> Fitted:
        weights = damped(first["diagonal"].double().flatten(), self.damping).reciprocal()
        return Fitted({}, torch.cat([block.double().square() @ weights for block in gradients.matrices()]))

    def load(self, stored: ModuleTensors, entry: ModuleEntry) -> Tensors:
        return self.first_pass.load(stored, entry)

    def precondition(self, gradients: Tensor, tensors: Tensors) -> Tensor:
        return gradients / damped(tensors["diagonal"], self.damping)


@dataclass(frozen=True)
class TopEntries(Codec):
    """The largest entries of a gradient and where they stand: c (d1 + d2) of them, or all without a rank."""

    rank: int | None
    name: ClassVar[str] = "top-entries"
    pairs = None
    products = 0

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "TopEntries":
        return cls(config.factor_rank)

    def kept(self, d1: int, d2: int) -> int:
        return d1 * d2 if self.rank is None else min(d1 * d2, self.rank * (d1 + d2))

    def layout(self, d1: int, d2: int) -> Layout:
        return {"values": (torch.float32, (self.kept(d1, d2),)), "places": (torch.int32, (self.kept(d1, d2),))}

    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        flat = dense(matrices).flatten(1)
        places = flat.abs().topk(self.kept(*matrices.shape[1:])).indices
        return {"values": flat.gather(1, places).cpu(), "places": places.to("cpu", torch.int32)}

    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, None]:
        whole = torch.zeros(len(parts["values"]), d1 * d2)
        return whole.scatter_(1, parts["places"].long(), parts["values"]).view(-1, d1, d2), None

    def unpacked(self, parts: Parts, rows: slice, d1: int, d2: int, workspace: Workspace) -> tuple[Tensor, None, None]:
        some_rows = {name: part[rows] for name, part in parts.items()}
        return widened(self.factors(some_rows, d1, d2)[0], "left", workspace, DENSE_ROWS), None, None


REGISTERED = [
    (layers, registry.LAYER_KINDS, DenseKind),
    (tasks, registry.TASKS, SquaredError),
    (curvature, registry.CURVATURES, DiagonalFisher),
    (codecs, registry.CODECS, TopEntries),
]
ALL_FOUR = {"curvature": "diagonal-fisher", "codec": "top-entries", "whitening": "none"}


def register_all() -> None:
    for folder, _, kind in REGISTERED:
        folder.register(kind)


@contextmanager
def registries_restored() -> Iterator[None]:
    """Whatever is registered inside is gone afterwards: other tests see the library's own kinds alone."""
    before = [(kinds, dict(kinds._kinds)) for _, kinds, _ in REGISTERED]
    try:
        yield
    finally:
        for kinds, known in before:
            kinds._kinds = known
