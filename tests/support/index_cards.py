"""Cards of an index that nobody built, and the rows of their table."""

import re

from tiny import plain_config

from lorif_hf.hub.cards import index_card
from lorif_hf.storage.layout import FactorShard, Manifest, ModuleEntry, TensorEntry


REPO = "user/my-index"
MODEL = "user/my-model"


def manifest(count=1000, model=None, dataset=None, **fields):
    """The manifest of an index of two shards of 123,456 and 1,544 bytes."""
    identity = {"name": "org/model", "commit": "c0ffee", "model_class": "GPT2LMHeadModel", "adapter": None}
    identity |= {"auto_class": "AutoModelForCausalLM", "weights_sha256": "5" * 64}
    shards = [FactorShard("a", 123_456, "a" * 64, 0, count - 1, "b" * 64)]
    shards.append(FactorShard("b", 1_544, "a" * 64, count - 1, 1, "b" * 64))
    values = {
        "config": plain_config().to_dict(),
        "objective": "causal-lm",
        "model": identity | (model or {}),
        "dataset": dataset or {},
        "num_examples": count,
        "modules": [ModuleEntry("h.0", "linear", 8, 8, 4, 4, "c" * 64)],
        "shards": shards,
        "examples": [],
        "curvature": TensorEntry("curvature/curvature.safetensors", 1, "d" * 64, "f" * 64),
        "build": "e" * 64,
    }
    return Manifest(**values | fields)


def card(existing=None, tags=(), repo_id=REPO, config=None, **fields):
    return index_card(manifest(**fields), config or plain_config(), repo_id, existing, tags)


def table(text):
    """The rows of a card's table, as Markdown reads them: it ends at the first line that is no row."""
    lines = text.split("| --- | --- |\n", 1)[1].split("\n")
    rows = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]] for row in rows]
