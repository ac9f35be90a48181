"""The check of the first batch: what is recorded is what was trained.

Of a few rows, the loss and the gradient of every tracked weight are compared: as they are recorded, several rows at
once, and as autograd gives them for each row alone, of the loss that was trained. A gradient is compared by its
product with a few random vectors, so that no more than that is held of it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.matrices import Reduction
from ..algebra.projection import TwoSidedProjection, project
from ..layers.modules import TrackedModule
from ..tasks.objectives import Objective
from .recorder import GradientRecorder


_TOGETHER = 1 << 30  # bytes of weight gradients that are held at once
_PROBES = 4  # random vectors that a gradient is multiplied with
_FLOOR = 1e-4  # of the largest layer's gradient: what is smaller in a layer is compared with this instead
# By the dtype of the outputs: how much of a gradient, and of a loss, may be rounding.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
_SAME_ROWS = 2e-2  # of two losses of the same rows in 16 bits
_LOSS_TOLERANCE = {torch.float64: 2e-5, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Probe:
    """What is compared of a few rows.

    Args:
        losses (`Tensor`): float64 (B,), nats.
        gradients (`dict[str, Tensor]`): per module float32 (B, d1, k), the gradients times k random vectors.
        dtypes (`dict[str, torch.dtype]`): of the modules' outputs, where they were called.
        seconds (`float`): what it took.
    """

    losses: Tensor
    gradients: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    seconds: float

    @property
    def coarse(self) -> bool:
        """Whether much of it may be rounding."""
        return any(_TOLERANCE.get(dtype, 1.0) > _TOLERANCE[torch.float32] for dtype in self.dtypes.values())


@dataclass(frozen=True)
class Comparison:
    """How far what is recorded is from the truth.

    Args:
        loss (`float`): the largest relative difference of a row's loss.
        losses (`tuple[float, float]`): that row's loss as recorded and in truth, nats.
        row (`int`): that row.
        modules (`dict[str, float]`): the relative difference of each module whose gradient differs.
        wrong_loss (`bool`): whether the loss differs by more than rounding.
    """

    loss: float
    losses: tuple[float, float]
    row: int
    modules: dict[str, float]
    wrong_loss: bool

    @property
    def equal(self) -> bool:
        return not self.wrong_loss and not self.modules

    def __str__(self) -> str:
        if self.wrong_loss:
            return (
                f"the loss of row {self.row} is {self.losses[0]:.6g} as recorded and {self.losses[1]:.6g} as trained"
            )
        shown = sorted(self.modules.items(), key=lambda item: -item[1])
        named = ", ".join(f"'{name}' (by {error:.2g} of it)" for name, error in shown[:3])
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        return f"the gradients of {named}{more} differ from autograd's"


class RecordingCheck:
    """Compares ways to record a few rows with the truth.

    Args:
        model (`nn.Module`): the unwrapped model.
        modules (`Sequence[TrackedModule]`): what is tracked.
        projections (`Mapping[str, TwoSidedProjection]`): by module name.
        rows (`Sequence[int]`): what to call the rows.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Sequence[TrackedModule],
        projections: Mapping[str, TwoSidedProjection],
        rows: Sequence[int],
    ):
        self.model, self.modules, self.projections, self.rows = model, modules, projections, rows
        generator = torch.Generator().manual_seed(0)
        self._vectors = {t.name: torch.randn(self._shape(t)[1], _PROBES, generator=generator) for t in modules}

    def recorded(self, objective: Objective, batches: Sequence[Mapping[str, Any]], modules: Any = None) -> Probe:
        """The rows as they are recorded: in one batch, or in one for each row where rows go alone.

        Args:
            objective (`Objective`): what is differentiated.
            batches (`Sequence[Mapping]`): the rows.
            modules (`Sequence[TrackedModule]`, *optional*): other ways to see the same weights.
        """
        start = time.perf_counter()
        modules = modules or self.modules
        reductions: dict[str, Reduction] = {t.name: self._times_vectors(t.name) for t in modules}
        alone = len(batches) == len(self.rows)
        recorder = GradientRecorder(
            self.model, modules, self.projections, objective, None, reductions, self.projections, alone
        )
        with recorder:
            parts = [
                recorder.trial(batch, self.rows[i : i + 1] if alone else self.rows) for i, batch in enumerate(batches)
            ]
            dtypes = recorder.dtypes
        gradients = {t.name: torch.cat([_dense(part.gradients[t.name]) for part in parts]) for t in modules}
        losses = torch.cat([part.losses for part in parts])
        return Probe(losses, gradients, dtypes, time.perf_counter() - start)

    def truth(self, objective: Objective, batches: Sequence[Mapping[str, Any]]) -> Probe:
        """Each row alone, by autograd. `batches`: one of each row.

        Weights that are brought from elsewhere at each call (offloaded ones) are not what autograd knows: then the row
        alone is recorded instead.
        """
        if any(tracked.weight.is_meta for tracked in self.modules):
            return self.recorded(objective, batches)
        start = time.perf_counter()
        losses: list[Tensor] = []
        gradients: dict[str, list[Tensor]] = {t.name: [] for t in self.modules}
        with GradientRecorder(self.model, [], {}, objective, alone=True) as recorder:
            for tracked in self.modules:
                tracked.weight.requires_grad_(True)  # the recorder restores it
            for batch in batches:
                taken: dict[str, Tensor] = {}

                def take(loss: Tensor, taken: dict[str, Tensor] = taken) -> None:
                    for group in self._groups():
                        # Not accumulated: a hook of the user's there may be his optimizer's.
                        parts = torch.autograd.grad(
                            loss, [t.weight for t in group], retain_graph=True, allow_unused=True
                        )
                        products = zip(group, parts, strict=True)
                        taken |= {t.name: self._product(t, part) for t, part in products if part is not None}

                losses.append(recorder.differentiate(batch, take))
                for tracked in self.modules:
                    none = torch.zeros(self._shape(tracked)[0], _PROBES)
                    gradients[tracked.name].append(taken.get(tracked.name, none))
        stacked = {name: torch.stack(rows) for name, rows in gradients.items()}
        return Probe(torch.cat(losses), stacked, {}, time.perf_counter() - start)

    def _groups(self) -> Iterator[list[TrackedModule]]:
        """The modules in groups whose gradients fit into a GiB: those of a large model are not held all at once."""
        group: list[TrackedModule] = []
        size = 0
        for tracked in self.modules:
            needed = tracked.weight.numel() * tracked.weight.element_size()
            if group and size + needed > _TOGETHER:
                yield group
                group, size = [], 0
            group.append(tracked)
            size += needed
        if group:
            yield group

    def losses(self, objective: Objective, batch: Mapping[str, Any]) -> Tensor:
        """The losses of a batch as the model has them, float64."""
        with GradientRecorder(self.model, [], {}, objective, alone=True) as recorder:
            return recorder.differentiate(batch, lambda loss: None)

    def compare(self, recorded: Probe, truth: Probe, with_loss: bool = True, same_rows: bool = False) -> Comparison:
        """How far a probe is from the truth. `with_loss=False`: of the gradients alone. `same_rows`: both went through
        the model alike, so that they round alike."""
        dtypes = {torch.float32, *recorded.dtypes.values()}
        tolerance, loss_tolerance = (
            max(table.get(dtype, table[torch.bfloat16]) for dtype in dtypes) for table in (_TOLERANCE, _LOSS_TOLERANCE)
        )
        if same_rows:
            tolerance = loss_tolerance = _SAME_ROWS
        sizes = truth.losses.abs().clamp_min(1e-2)
        differences = (recorded.losses - truth.losses).abs() / sizes
        worst = int(differences.argmax())
        largest = max((float(rows.norm(dim=(1, 2)).max()) for rows in truth.gradients.values()), default=0.0)
        modules = {}
        for name, rows in truth.gradients.items():
            difference = float((recorded.gradients[name].to(rows) - rows).norm(dim=(1, 2)).max())
            size = max(float(rows.norm(dim=(1, 2)).max()), _FLOOR * largest)
            if difference > tolerance * size:
                modules[name] = difference / size if size else float("inf")
        loss = float(differences[worst])
        wrong = with_loss and not loss <= loss_tolerance
        pair = float(recorded.losses[worst]), float(truth.losses[worst])
        return Comparison(loss, pair, self.rows[worst], modules, wrong)

    def _shape(self, tracked: TrackedModule) -> tuple[int, int]:
        """(d1, d2)."""
        return self.projections[tracked.name].projected_shape(tracked.matrix_shape)

    def _times_vectors(self, name: str) -> Reduction:
        """X^T (dY V), (B, d1, k), of the tokens' projected inputs and output gradients."""
        vectors = self._vectors[name]
        return lambda inputs, gradients: inputs.mT @ (gradients @ vectors.to(gradients))

    def _product(self, tracked: TrackedModule, gradient: Tensor) -> Tensor:
        """P_in^T G P_out V, (d1, k), of a weight's gradient."""
        matrix = tracked.kind.as_matrix(gradient.detach())
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        signs = self.projections[tracked.name].to(matrix.device, matrix.dtype)
        right = project(matrix, signs.out_signs) @ self._vectors[tracked.name].to(matrix)
        return project(right.mT, signs.in_signs).mT.float().cpu()


def _dense(gradients: Any) -> Tensor:
    assert isinstance(gradients, Tensor)
    return gradients.float().cpu()
