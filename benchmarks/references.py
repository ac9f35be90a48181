"""What an index is measured against outside this house: BM25, and the influence that kronfluence computes.

    python -m benchmarks.references    # how alike kronfluence's scores and ours rank, damping for damping

kronfluence (Grosse et al. 2023, arXiv:2308.03296) stores no gradients: it computes each one anew and preconditions the
query with the (eigenvalue-corrected) Kronecker-factored Fisher, so it is the unprojected, untruncated reference.
"""

import copy
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.evaluation.ranks import average_ranks
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.tasks import CausalLM, task_of
from lorif_hf.tasks.collation import padding_collator


_ALL = "all"  # kronfluence's name for one set of factors or scores


def bm25(train_texts: list[str], query_texts: list[str]) -> np.ndarray:
    """Lexical similarity of every query to every training text, float32 (Q, N). Lower-cased words, no stemming.

    No model is asked: the floor that an attribution method must beat.
    """
    import bm25s

    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())

    retriever = bm25s.BM25()
    retriever.index([words(text) for text in train_texts], show_progress=False)
    nothing = np.zeros(len(train_texts), dtype=np.float32)
    queries = [words(text) for text in query_texts]
    return np.stack([retriever.get_scores(query) if query else nothing for query in queries])


def has_kronfluence() -> bool:
    """Whether kronfluence is installed."""
    return find_spec("kronfluence") is not None


def kronfluence_scores(
    model: nn.Module,
    train: Any,
    queries: Any,
    folder: Path,
    *,
    damping: float | None = None,
    whitening_damping: float | None = None,
    strategy: str = "ekfac",
    batch_size: int = 50,
) -> Tensor:
    """Influence by kronfluence on the weights that our index tracks, float32 (Q, N).

    Everything is in float32, with the true labels (empirical Fisher) and the queries' gradients whole. Per layer, with
    a_i and s_j the eigenvalues of the second moments of inputs and output gradients, the inverse Fisher is diagonal in
    their eigenvectors, 1 / (lambda_ij + damping), where lambda_ij is a_i s_j ("kfac") or the measured second moment of
    the gradients along these directions ("ekfac").

    Args:
        model (`nn.Module`): causal language model or sequence classifier; it is copied.
        train, queries: datasets of tokenized rows.
        folder (`Path`): kronfluence's scratch folder; emptied before.
        damping (`float`, *optional*): in kronfluence's units; by default its 0.1 times each layer's mean lambda.
        whitening_damping (`float`, *optional*): instead of `damping`, add to lambda_ij what
            `InfluenceConfig.whitening_damping` adds to a_i s_j:
            (a_i + e mean(a)) (s_j + e mean(s)) - a_i s_j. "kfac" is then the operator of `curvature="kronecker"`.
        strategy (`str`, *optional*, defaults to `"ekfac"`): `"ekfac"`, `"kfac"` or `"identity"` (the plain inner
            product).
        batch_size (`int`, *optional*, defaults to 50): training examples per pass.

    Returns:
        `Tensor`: positive: a proponent. With "ekfac" in nats per unit of example weight, as ours; with "kfac" too,
        where all layers see the same number of tokens.
    """
    from kronfluence.analyzer import Analyzer
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.utils.constants import ALL_MODULE_NAME
    from kronfluence.utils.dataset import DataLoaderKwargs

    shutil.rmtree(folder, ignore_errors=True)
    prepared, summed_loss = _prepared(model)
    collator = padding_collator(model, None, make_labels=task_of(model).makes_labels)
    _check_same(model, prepared, collator([queries[0]]))
    analyzer = Analyzer(
        _ALL, prepared, summed_loss, cpu=not torch.cuda.is_available(), disable_tqdm=True, output_dir=str(folder)
    )
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collator))
    arguments = FactorArguments(
        strategy=strategy, use_empirical_fisher=True, covariance_max_examples=None, lambda_max_examples=None
    )
    analyzer.fit_all_factors(_ALL, train, per_device_batch_size=batch_size, factor_args=arguments)
    if whitening_damping is not None:
        _damp_factors(analyzer, strategy, whitening_damping)
        damping = 0.0
    analyzer.compute_pairwise_scores(
        _ALL,
        _ALL,
        query_dataset=queries,
        train_dataset=train,
        per_device_query_batch_size=len(queries),
        per_device_train_batch_size=batch_size,
        score_args=ScoreArguments(damping_factor=damping),
    )
    scores = analyzer.load_pairwise_scores(_ALL)[ALL_MODULE_NAME].float()
    return scores / _weight(analyzer, strategy, len(train))


class _BiasAfter(nn.Module):
    """A layer whose bias is added behind it: kronfluence takes a Linear's bias for a part of its weight."""

    def __init__(self, module: nn.Module):
        super().__init__()
        weight = module.weight.detach()
        weight = weight.T if isinstance(module, Conv1D) else weight  # I x O
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight = nn.Parameter(weight.contiguous().clone())
        self.bias = nn.Parameter(module.bias.detach().clone()) if module.bias is not None else None

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.linear(inputs)
        return outputs if self.bias is None else outputs + self.bias


def _prepared(model: nn.Module) -> tuple[nn.Module, Any]:
    """A copy with kronfluence's wrappers around what our index tracks, and its task: our losses, summed."""
    from kronfluence.analyzer import prepare_model
    from kronfluence.task import Task

    task = task_of(model)
    changed = copy.deepcopy(model).float().eval()
    names = [module.name for module in tracked_modules(model)]
    for name in names:
        changed.set_submodule(name, _BiasAfter(changed.get_submodule(name)))

    class SummedLoss(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return task.losses(model, batch).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return task.losses(model, batch).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return [f"{name}.linear" for name in names]

        def get_attention_mask(self, batch: Any) -> Tensor:
            mask = batch["attention_mask"]
            if not isinstance(task, CausalLM):
                return mask
            # A position behind the last target has no gradient: it does not count, as in our second moments.
            predicts = nn.functional.pad(batch["labels"][:, 1:] != -100, (0, 1)).long()
            return mask * predicts.flip(1).cummax(dim=1).values.flip(1)

    summed_loss = SummedLoss()
    return prepare_model(changed, summed_loss), summed_loss


@torch.no_grad()
def _check_same(model: nn.Module, prepared: nn.Module, batch: dict[str, Tensor]) -> None:
    """The copy must be the same function."""
    task, mode = task_of(model), model.training
    expected, losses = (
        task.losses(each, {name: tensor.to(next(each.parameters()).device) for name, tensor in batch.items()})
        for each in (model.eval(), prepared)
    )
    model.train(mode)
    torch.testing.assert_close(losses.cpu(), expected.cpu().float(), rtol=1e-4, atol=1e-4)


def _damp_factors(analyzer: Any, strategy: str, damping: float) -> None:
    """Put the damping of our whiteners into the factors that kronfluence has saved."""
    from kronfluence.factor.eigen import save_eigendecomposition, save_lambda_matrices

    output = analyzer.factors_output_dir(_ALL)
    eigen = analyzer.load_eigendecomposition(_ALL)
    inputs, outputs = eigen["activation_eigenvalues"], eigen["gradient_eigenvalues"]
    tokens = analyzer.load_covariance_matrices(_ALL)["num_activation_covariance_processed"]
    damped = {}
    for name in inputs:
        a, s = inputs[name].clamp_min(0), outputs[name].clamp_min(0)
        inputs[name], outputs[name] = a + damping * a.mean(), s + damping * s.mean()
        added = torch.outer(outputs[name], inputs[name]) - torch.outer(s, a)
        damped[name] = added * tokens[name]  # the second moment of the gradients, summed as lambda is
    if strategy == "kfac":
        save_eigendecomposition(output, eigen)
    else:
        corrected = analyzer.load_lambda_matrices(_ALL)
        for name, added in damped.items():
            corrected["lambda_matrix"][name] += added
        save_lambda_matrices(output, corrected)


def _weight(analyzer: Any, strategy: str, examples: int) -> int:
    """What kronfluence's mean Fisher lacks to the sum over the training set."""
    if strategy != "kfac":
        return examples if strategy == "ekfac" else 1
    return int(max(analyzer.load_covariance_matrices(_ALL)["num_activation_covariance_processed"].values()))


def spearman(scores: Any, expected: Any) -> float:
    """Mean over queries of the rank correlation over training examples of two score matrices (Q, N)."""
    ranks = [average_ranks(np.asarray(matrix, dtype=np.float64)) for matrix in (scores, expected)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    norms = [np.linalg.norm(rank, axis=1) for rank in centred]
    return float(((centred[0] * centred[1]).sum(axis=1) / (norms[0] * norms[1])).mean())


def ours_vs_kronfluence(
    model: nn.Module, train: Any, queries: Any, *, whitening_damping: float = 0.1, rank: int | None = None
) -> dict[str, float]:
    """Spearman of our untruncated whitened scores (f = 1, 16 bits) with those of kronfluence.

    Args:
        model, train, queries: as in [`kronfluence_scores`].
        whitening_damping (`float`, *optional*, defaults to 0.1): of ours, and of kronfluence in the rows that say so.
        rank (`int`, *optional*): c, the full rank of every layer; by default the gradients are stored whole.

    Returns:
        `dict[str, float]`: by strategy and damping of kronfluence.
    """
    config = InfluenceConfig(
        projection_factor=1,
        factor_rank=rank,
        bits=16,
        dtype="bfloat16",
        whitening="kronecker",
        curvature="kronecker",
        whitening_damping=whitening_damping,
        whitening_samples=len(train),
    )
    with tempfile.TemporaryDirectory() as folder:
        index = InfluenceIndex.build(model, train, Path(folder) / "index", config=config, batch_size=25)
        ours = index.scores(model, queries)
        runs: dict[str, dict[str, Any]] = {
            "kfac, the same damping": {"strategy": "kfac", "whitening_damping": whitening_damping},
            "kfac, 0.1 of the mean": {"strategy": "kfac"},
            "ekfac, the same damping": {"strategy": "ekfac", "whitening_damping": whitening_damping},
            "ekfac, 0.1 of the mean": {"strategy": "ekfac"},
            "identity": {"strategy": "identity"},
        }
        theirs = {
            name: kronfluence_scores(model, train, queries, Path(folder) / "kronfluence", **run)
            for name, run in runs.items()
        }
    return {
        **{f"ours with {name}": spearman(ours, scores) for name, scores in theirs.items()},
        "kfac with ekfac, the same damping": spearman(*list(theirs.values())[0:3:2]),
        "kfac with ekfac, 0.1 of the mean": spearman(*list(theirs.values())[1:4:2]),
    }


def main(
    folder: Annotated[Path, typer.Option(help="Of the wikitext bed.")] = Path("benchmark-output/wikitext"),
    examples: Annotated[int, typer.Option(help="Training rows.")] = 400,
    queries: Annotated[int, typer.Option(help="Query rows.")] = 40,
    whitening_damping: Annotated[float, typer.Option(help="Of ours.")] = 0.1,
    rank: Annotated[int | None, typer.Option(help="Full rank, 128 for this bed; by default stored whole.")] = None,
) -> None:
    from .wikitext import TestBed

    bed = TestBed(folder)
    train, asked = bed.split()
    correlations = ours_vs_kronfluence(
        bed.finetuned(),
        train.select(range(examples)),
        asked.select(range(queries)),
        whitening_damping=whitening_damping,
        rank=rank,
    )
    table = Table("", "Spearman", title=f"{examples} training rows, {queries} queries")
    for name, value in correlations.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
