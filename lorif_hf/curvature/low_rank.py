"""The damped Hessian's top eigenpairs, as LoRIF publishes them, or all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.curvature import fit, self_influence, spectral_solve, woodbury_solve
from ..algebra.gradients import StoredGradients
from ..algebra.planning import Plan, plan_fit
from ..config import InfluenceConfig
from ..errors import IndexCorruptedError
from ..storage.layout import CURVATURE, ModuleEntry
from ..storage.shards import ModuleTensors
from .base import Cost, Curvature, Fitted, Tensors
from .kronecker import MomentsPass


@dataclass(frozen=True)
class LowRankCurvature(Curvature):
    """H = sum_i vec(G~_i) vec(G~_i)^T + lambda I, of which the top r eigenpairs of the sum are kept.

    Args:
        rank (`int` or `None`): r; `None` keeps all.
        damping (`float`): lambda is this times trace / D.
        first_pass (`MomentsPass` or `None`): where what is stored is whitened.

    Source: LoRIF (arXiv:2601.21929), section 3.2.
    """

    rank: int | None
    damping: float
    first_pass: MomentsPass | None
    name = "low-rank"
    keeps_rank = False

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "LowRankCurvature":
        return cls(config.curvature_rank, config.damping, MomentsPass.from_config(config))

    def _plan(self, gradients: StoredGradients, max_memory: int | None) -> Plan:
        return plan_fit(gradients, self.rank, max_memory=max_memory)

    def cost(self, gradients: StoredGradients, max_memory: int | None) -> Cost:
        plan = self._plan(gradients, max_memory)
        return Cost(torch.float32.itemsize * gradients.dim * plan.rank, plan.memory, plan.flops)

    def fit(self, gradients: StoredGradients, first: Tensors, max_memory: int | None) -> Fitted:
        plan = self._plan(gradients, max_memory)
        fitted = fit(gradients, plan, damping=self.damping)
        influence = fitted.self_influence
        if influence is None:
            step = max(1, plan.block // (2 * gradients.dim))
            blocks = gradients.blocks(step)
            influence = torch.cat([self_influence(left, right, fitted, plan.block) for left, right in blocks])
        tensors = {
            "eigenvectors": fitted.eigenvectors,
            "eigenvalues": fitted.eigenvalues,
            "damping": torch.tensor(fitted.damping, dtype=torch.float64),
            "trace": torch.tensor(fitted.trace, dtype=torch.float64),
        }
        return Fitted(tensors, influence)

    def load(self, stored: ModuleTensors, entry: ModuleEntry) -> Tensors:
        rank = (stored.shape("eigenvalues") or (0,))[0]
        tensors = {
            "eigenvectors": stored.read("eigenvectors", (entry.d1 * entry.d2, rank)),
            "eigenvalues": stored.read("eigenvalues", (rank,), least=0),
            "damping": stored.read("damping", (), torch.float64, least=0),
            "trace": stored.read("trace", (), torch.float64, least=0),
        }
        if not tensors["damping"] > 0:
            raise IndexCorruptedError(
                CURVATURE, f"the damping of '{entry.name}' is {float(tensors['damping'])}, not positive"
            )
        return tensors

    def precondition(self, gradients: Tensor, tensors: Tensors) -> Tensor:
        solve = spectral_solve if self.rank is None else woodbury_solve
        eigenpairs = tensors["eigenvectors"], tensors["eigenvalues"], float(tensors["damping"])
        return solve(gradients.flatten(1), *eigenpairs).view_as(gradients)
