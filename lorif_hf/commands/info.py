"""`lorif-hf info`."""

from typing import TYPE_CHECKING, Any

from .options import INDEX, JSON, REVISION, TOKEN, loaded_index
from .printing import print_json, print_values


if TYPE_CHECKING:
    from ..index import InfluenceIndex


def info(index: INDEX, revision: REVISION = None, token: TOKEN = None, as_json: JSON = False) -> None:
    """Say what an index is. Downloads the manifest only."""
    loaded = loaded_index(index, revision, token)
    if as_json:
        print_json(description(loaded))
        return
    manifest, score = loaded.manifest, loaded.lds
    values = {
        "model": manifest.model.get("name") or manifest.model.get("model_class"),
        "examples": f"{manifest.num_examples:,}",
        "layers": f"{len(manifest.modules)}, the first is {manifest.modules[0].name}",
        "coverage": str(loaded.coverage) if loaded.coverage.trained else "not known",
        "objective": manifest.objective + (", one row at a time" if manifest.alone else ""),
        "bytes per example": f"{loaded.bytes_per_example:,.0f}",
        "bytes in all": f"{sum(entry.bytes for entry in manifest.files):,}",
        "LDS": "not measured" if score is None else f"{score.mean:.3f}",
        "format version": manifest.format_version,
        "commit": loaded.commit or "(a local folder)",
        **loaded.config.to_dict(),
    }
    print_values(values)


def description(index: "InfluenceIndex") -> dict[str, Any]:
    """What `info --json` and `build --json` print of an index."""
    manifest, score, coverage = index.manifest, index.lds, index.coverage
    return {
        "path": str(index.path),
        "repo_id": index.repo_id,
        "commit": index.commit,
        "model": manifest.model.get("name"),
        "model_class": manifest.model.get("model_class"),
        "num_examples": manifest.num_examples,
        "layers": [module.name for module in manifest.modules],
        "coverage": coverage.share if coverage.trained else None,
        "objective": manifest.objective,
        "bytes_per_example": index.bytes_per_example,
        "bytes": sum(entry.bytes for entry in manifest.files),
        "lds": None if score is None else score.mean,
        "format_version": manifest.format_version,
        "config": index.config.to_dict(),
    }
