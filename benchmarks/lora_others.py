"""dattri-llm and bergson on the bank of retrained LoRA adapters that `python -m benchmarks.quality lora` made.

    python -m benchmarks.lora_others

Each runs in a virtual environment of its own (made in --folder at the first use) on the same adapters, rows and
queries, over the same matrices. Its scores are compared with the bank as ours are; `dot` of each must rank as our
unprojected gradient dot product does, which is told beside it. What cannot be installed or run is in the table with
its error. What has run is in FOLDER/lora/others and taken from there the next time. Adds to
benchmarks/results/lora.json.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.evaluation.lds import lds
from lorif_hf.evaluation.retraining.bank import RetrainBank

from .end_to_end.environments import ROOT, SYSTEMS, InstallError, python_of, version_of
from .lora import LoraBed
from .quality import RESULTS
from .references import spearman


VARIANTS = {
    "dattri-llm": ("dot", "cos", "kfac", "ekfac", "kfac-relative", "ekfac-relative"),
    "bergson": ("dot", "autocorrelation", "ekfac"),
}


def main(
    folder: Annotated[Path, typer.Option(help="As of benchmarks.quality.")] = Path("benchmark-output"),
    venvs: Annotated[Path, typer.Option(help="Where the environments are kept.")] = Path("benchmark-output/venvs"),
    only: Annotated[str, typer.Option(help="Only the system of this name.")] = "",
) -> None:
    where = (folder / "lora").resolve()
    bed, bank = LoraBed(where), RetrainBank.from_pretrained(where / "bank")
    train, queries = bed.split()
    np.save(where / "train.npy", np.array(train["input_ids"], dtype=np.int64))
    np.save(where / "queries.npy", np.array(queries["input_ids"], dtype=np.int64))
    ours = _gradient_dot(bed.finetuned(), train, queries)
    path = RESULTS / "lora.json"
    for system, variants in VARIANTS.items():
        for variant in variants if only in system else ():
            name = f"{system}, {variant}"
            row, scores = run_system(system, variant, where, venvs.resolve())
            if scores is not None:
                result = lds(scores, bank.losses, bank.membership)
                row |= {"lds": result.mean, "low": result.query_interval[0], "high": result.query_interval[1]}
                row["spearman_with_our_dot"] = spearman(scores, ours)
            results = json.loads(path.read_text())
            results["rows"][name] = row
            path.write_text(json.dumps(results, indent=2) + "\n")
            Console().print(name, row)


def _gradient_dot(model: Any, train: Any, queries: Any) -> Any:
    config = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        index = InfluenceIndex.build(model, train, Path(folder) / "index", config=config)
        return index.scores(model, queries).clone()


def run_system(system: str, variant: str, bed: Path, venvs: Path) -> tuple[dict[str, Any], np.ndarray | None]:
    """A row of the table, and the scores where there are any."""
    row: dict[str, Any] = {"kind": "other system"}
    try:
        python = python_of(system, venvs)
    except InstallError as error:
        return row | {"error": f"does not install: {error}"}, None
    row["version"] = version_of(python, SYSTEMS[system].requirement.split("==")[0].split("[")[0])
    out = bed / "others" / f"{system}-{variant}"
    if not (out / "facts.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        if error := _failure(python, system, variant, bed, out):
            return row | {"error": error}, None
    return row | json.loads((out / "facts.json").read_text()), np.load(out / "scores.npy")


def _failure(python: Path, system: str, variant: str, bed: Path, out: Path) -> str | None:
    """Run a system in a process of its own; what ended it, where something did."""
    module = f"benchmarks.lora_runners.{system.replace('-', '_')}"
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with (out / "log").open("w") as stream:
        command = [python, "-m", module, bed, out, variant]
        ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, check=False)
    lines = [line for line in (out / "log").read_text(errors="replace").splitlines() if line.strip()]
    return (lines or [f"exit status {ran.returncode}"])[-1][:300] if ran.returncode else None


if __name__ == "__main__":
    typer.run(main)
