"""`docs/models.md`: what the sweep over the classes of transformers says, for people."""

from collections import Counter
from pathlib import Path
from typing import Any

import transformers

from .small_models import CAUSAL_LM, CLASSIFIER


_HEAD = """# Models

Every causal language model and every sequence classifier of transformers {version} that can be made small: is what
the index holds what autograd says? Written by `python -m benchmarks.sweep`.

Each class is made from its own config with small sizes and random weights, in float32. An index of eight rows is
built with `InfluenceConfig.grad_dot(projection_factor=1, dtype="float32")` and the defaults of `build`, and the same
rows are asked. Beside it: one row at a time, the model's own loss summed over its targets, autograd's gradient of
every weight that the index says it tracks, and their inner products. This is done four times, and the worst counts:
with padding, with as many tokens as rows in each batch, with a first batch that has no padding, and recorded one row
at a time and then asked in batches.

| verdict | classes | |
| --- | --- | --- |
{counts}

- **error**: the largest difference between a score and autograd's, in units of autograd's largest score.
- **recorded**: in batches, or (in one of the four at least) a row at a time, where the check of the first batch found
  that a batch gives something else than the model is trained on. That is slower, and right for every loss.
- **tracked**: the share of the trained parameters in these small models; most of the rest is embeddings and
  heads.
"""
_MEANING = {
    "equal": "the error is at most 1e-4, and no layer is off by more than 1% of its own largest score",
    "refused before recording": "an error that says what is wrong and what to pass, before anything is recorded",
    "refused late": "such an error after the recording, or at the query",
    "raw error": "an error that is not ours",
    "silently different": "neither equal nor refused",
    "no answer": "it hangs, or its process dies",
    "not built": "the class cannot be made, or trained on text alone, here",
}
_TITLES = {CAUSAL_LM: "Causal language models", CLASSIFIER: "Sequence classifiers"}


def page(results: list[dict[str, Any]], version: str = transformers.__version__) -> str:
    """The page of a sweep's results."""
    counts = Counter(result["verdict"] for result in results)
    rows = "\n".join(f"| {verdict} | {counts[verdict]} | {meaning} |" for verdict, meaning in _MEANING.items())
    parts = [_HEAD.format(version=version, counts=rows)]
    for task, title in _TITLES.items():
        parts.append(
            f"## {title}\n\n| class | verdict | error | recorded | tracked |\n| --- | --- | --- | --- | --- |\n"
        )
        parts[-1] += "".join(f"{_row(result)}\n" for result in results if result["task"] == task)
    return "\n".join(parts)


def write_page(path: Path, results: list[dict[str, Any]]) -> None:
    """Write the page of a sweep's results."""
    path.write_text(page(results), encoding="utf-8")


def _row(result: dict[str, Any]) -> str:
    if "relerr" not in result:
        reason = result["message"].replace("|", "\\|").replace("<", "&lt;")
        reason = reason if len(reason) <= 400 else f"{reason[:400]}..."
        return f"| `{result['class']}` | {result['verdict']}: {reason} | | | |"
    recorded = "a row at a time" if result["alone"] else "in batches"
    return (
        f"| `{result['class']}` | {result['verdict']} | {result['relerr']:.0e} | {recorded} | {result['share']:.0%} |"
    )
