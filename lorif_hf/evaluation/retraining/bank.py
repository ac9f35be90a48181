"""`RetrainBank`: what retraining on subsets measured, in memory, in a folder and as a dataset repo of the Hub."""

import dataclasses
import os
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import CommitInfo
from torch import Tensor

from ...errors import EvaluationError, IndexCorruptedError
from ...hub.cards import bank_card
from ...hub.destination import Destination
from ...hub.publish import push_files
from ...hub.store import download
from ...layers.modules import owner_of
from ...registry import LAYER_KINDS
from ...storage.files import write_bytes, write_text
from ...storage.layout import CARD
from ..lds import lds_of_predictions
from .bank_files import BANK, QUERIES, RUNS, from_files, runs_columns, to_files
from .runs import Feature


if TYPE_CHECKING:
    from datasets import Dataset

    from ...index import InfluenceIndex


@dataclasses.dataclass(frozen=True, eq=False)
class RetrainBank:
    """Losses of the queries under models that were trained on random subsets of the data.

    Made by [`~lorif_hf.evaluation.retraining.retrain.retrain`], loaded by [`~RetrainBank.from_pretrained`].

    Args:
        membership (`Tensor`): (M, N) booleans, whether training row n is in subset m.
        losses_by_seed (`Tensor`): float64 (k, M, Q), nats per query, summed over its tokens.
        queries (`list[dict[str, Tensor]]`): the Q queries as the model takes them.
        info (`dict`): how it was made: `bank.json` without its table of files.
        repo_id (`str`, *optional*): the Hub repo it came from.
        commit (`str`, *optional*): the commit of that repo.

    Example:

    ```python
    >>> bank = retrain(make_trainer, dataset, queries, "bank", num_subsets=50, seeds=2)
    >>> bank.push_to_hub("me/my-bank")
    ```
    """

    membership: Tensor
    losses_by_seed: Tensor
    queries: list[Feature]
    info: dict[str, Any]
    repo_id: str | None = None
    commit: str | None = None

    @property
    def losses(self) -> Tensor:
        """(M, Q) nats: mean over the training seeds."""
        return self.losses_by_seed.mean(dim=0)

    @property
    def seeds(self) -> list[int]:
        """The k training seeds."""
        return self.info["seeds"]

    def __repr__(self) -> str:
        subsets, rows = self.membership.shape
        return (
            f"RetrainBank(subsets={subsets}, seeds={len(self.seeds)}, queries={len(self.queries)}, "
            f"num_examples={rows}, model={self.info['model']['model_class']!r})"
        )

    def seed_agreement(self) -> float:
        """How exact the ground truth is, between -1 and 1: what the losses of one seed would score as predictions.

        Mean over queries of the Spearman correlation, over subsets, between the losses of two training seeds; mean
        over all pairs of seeds. No attribution can be expected to score above it by much.

        Raises:
            [`~lorif_hf.errors.EvaluationError`]: there is one seed only.

        Example:

        ```python
        >>> RetrainBank.from_pretrained("bank").seed_agreement()
        0.92
        ```
        """
        if len(self.seeds) < 2:
            raise EvaluationError("Seeds can be compared from two on, this bank has one: retrain with seeds=2.")
        pairs = combinations(self.losses_by_seed, 2)
        return float(np.mean([lds_of_predictions(-first.T, second, resamples=1).mean for first, second in pairs]))

    def check(self, index: "InfluenceIndex") -> None:
        """See that an index is of the training set and the architecture that were retrained.

        Raises:
            [`~lorif_hf.errors.EvaluationError`]: says what was expected, what was found, and the way out.

        Example:

        ```python
        >>> bank.check(index)
        ```
        """
        manifest, model = index.manifest, self.info["model"]
        if len(index) != self.membership.shape[1]:
            raise EvaluationError(
                f"The bank is of {self.membership.shape[1]} training rows, the index of {len(index)}: evaluate the "
                "whole index (no selection) of the training set that the bank was made with."
            )
        expected, indexed = self.info["dataset"].get("fingerprint"), manifest.dataset.get("fingerprint")
        if indexed is not None and indexed != expected:
            raise EvaluationError(
                f"The index is of other training rows than the bank, or of the same ones in another order: expected "
                f"the fingerprint {str(expected)[:12]}..., found {str(indexed)[:12]}... Build the index of the "
                "dataset that was passed to retrain(), or retrain on the dataset of the index."
            )
        if manifest.model.get("model_class") != model["model_class"]:
            raise EvaluationError(
                f"The bank retrained a {model['model_class']}, the index is of a {manifest.model.get('model_class')}: "
                "index a model that make_trainer trains."
            )
        for module in manifest.modules:
            kind = LAYER_KINDS.get(module.kind, manifest.extensions.get(module.kind))
            shape = model["parameters"].get(f"{owner_of(module.name, module.parameter)}.{module.parameter}")
            features = (module.in_features, module.out_features)
            if shape is None or tuple(kind.as_matrix(torch.empty(shape, device="meta")).shape) != features:
                raise EvaluationError(
                    f"The index has a layer '{module.name}' of {features[0]} inputs and {features[1]} outputs, the "
                    f"bank's models have weights of shape {shape} there: index a model that make_trainer trains, with "
                    "the same adapters."
                )

    def to_dataset(self) -> "Dataset":
        """One row per run: subset, seed, num_examples, membership (packed bits, the first row highest), losses (Q).

        Example:

        ```python
        >>> bank.to_dataset()[0]["num_examples"]
        1000
        ```
        """
        from datasets import Dataset

        return Dataset.from_dict(runs_columns(self.membership, self.losses_by_seed, self.seeds))

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the bank to a folder, `bank.json` last: it makes a bank.

        Raises:
            [`~lorif_hf.errors.EvaluationError`]: the folder holds another bank.

        Example:

        ```python
        >>> RetrainBank.from_pretrained("me/my-bank").save_pretrained("bank")
        ```
        """
        folder = Path(path)
        files = self._files()
        if (folder / BANK).exists() and (folder / BANK).read_bytes() != files[BANK]:
            raise EvaluationError(f"{folder} already holds another bank. Choose another folder or delete this one.")
        if not (folder / CARD).exists():
            write_text(folder / CARD, bank_card(self.info, self._agreement(), self.repo_id or "user/my-bank", None))
        for name, content in files.items():
            write_bytes(folder / name, content)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, token: str | bool | None = None, revision: str | None = None
    ) -> "RetrainBank":
        """Load a bank from a folder or from the Hub; everything in it is checked.

        Args:
            path (`str` or `os.PathLike`): a folder, or the id of a dataset repo, "user/my-bank".
            token (`str` or `bool`, *optional*): Hub token; by default the one you logged in with.
            revision (`str`, *optional*): branch, tag or commit.

        Raises:
            [`~lorif_hf.errors.EvaluationError`]: it is no bank, or a file is not what it should be; names the file.
            [`~lorif_hf.errors.HubError`]: the repo or the Hub cannot be reached.

        Example:

        ```python
        >>> bank = RetrainBank.from_pretrained("me/my-bank")
        ```
        """
        folder, name = Path(path), os.fspath(path)
        repo_id = commit = None
        if not (folder / BANK).is_file():
            if folder.is_dir() or not isinstance(path, str) or folder.is_absolute() or name.startswith("."):
                what = "holds no bank" if folder.is_dir() else "does not exist"
                raise EvaluationError(
                    f"{folder} {what}: expected a folder with {BANK}, or a repo id of the Hub. An unfinished bank is "
                    "finished by calling retrain() again."
                )
            repo_id = name
            folder = _downloaded(repo_id, revision, token)
            commit = folder.name
        return cls(*from_files(folder), repo_id, commit)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        commit_description: str | None = None,
    ) -> CommitInfo:
        """Push the bank to a dataset repo, in one commit; `load_dataset(repo_id, "runs")` reads it there.

        The arguments are those of [`InfluenceIndex.push_to_hub`].

        Raises:
            [`~lorif_hf.errors.PublishError`]: found before the first byte leaves.
            [`~lorif_hf.errors.HubError`]: says what to do.

        Example:

        ```python
        >>> bank.push_to_hub("me/my-bank", private=True)
        ```
        """
        message = commit_message or "Upload bank of retrained models with lorif-hf"
        destination = Destination(repo_id, private, token, revision, create_pr, message, commit_description)
        _, commit = push_files(
            self._files(),
            destination,
            lambda name, existing: bank_card(self.info, self._agreement(), name, existing),
            ours=("data/",),
        )
        return commit

    def _agreement(self) -> float | None:
        """[`~RetrainBank.seed_agreement`]; `None` with one seed."""
        return self.seed_agreement() if len(self.seeds) > 1 else None

    def _files(self) -> dict[str, bytes]:
        return to_files(self.info, self.membership, self.losses_by_seed, self.queries)


def _downloaded(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    """The snapshot folder of a bank, all of one commit."""
    try:
        folder = download(repo_id, BANK, revision, token=token).parent
    except IndexCorruptedError:
        raise EvaluationError(
            f"The dataset repo '{repo_id}' is no bank of retrained models: it has no {BANK}. Check the name, or the "
            "revision."
        ) from None
    for name in (RUNS, QUERIES):
        download(repo_id, name, folder.name, token=token)
    return folder
