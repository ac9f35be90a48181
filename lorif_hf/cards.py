"""The cards of an index: its own, and the section that a model's card gains.

What lorif-hf writes stands between two marks; whatever else a card says is its owner's and survives every later push.
So does a section that the owner changed.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData
from huggingface_hub.repocard_data import CardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from .config import InfluenceConfig
from .storage.layout import Manifest


TAGS = ("lorif", "influence-functions", "training-data-attribution")

_BEGIN, _END = "<!-- lorif-hf: begin {} -->", "<!-- lorif-hf: end -->"
_SECTION = re.compile(r"<!-- lorif-hf: begin ([0-9a-f]{16}) -->\n(.*?)<!-- lorif-hf: end -->", re.DOTALL)
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_QUERIES = {
    "causal-lm": '("The capital of France is", " Paris")',
    "sequence-classification": '"A text to classify"',
}
# No HTML: Markdown is shown as it is, so what comes from outside is cut down to harmless characters instead.
_TEMPLATES = Environment(
    loader=PackageLoader("lorif_hf.model_cards", "."),
    autoescape=False,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


def index_card(
    manifest: Manifest, config: InfluenceConfig, repo_id: str, existing: str | None, tags: Sequence[str] = ()
) -> str:
    """The card of an index's repo.

    Args:
        manifest (`Manifest`): what the index is.
        config (`InfluenceConfig`): what it was built with.
        repo_id (`str`): where it lives.
        existing (`str` or `None`): the card there is; its own words and its own YAML stay.
        tags (`Sequence[str]`): more tags for the YAML.

    Returns:
        `str`: YAML and Markdown.
    """
    old = DatasetCard(existing) if existing else None
    data: dict[str, Any] = old.data.to_dict() if old else {}
    ours = _metadata(manifest)
    ours["tags"] = list(dict.fromkeys([*(data.get("tags") or []), *ours["tags"], *tags]))
    for name, value in ours.items():
        # Tags add up, and the tables are where they are; the rest is the owner's once it is there.
        if name in ("tags", "configs", "size_categories") or data.get(name) is None:
            data[name] = value
    body = _with_section(old.text if old else "", _render("index_card.md", manifest, config, repo_id))
    return f"---\n{DatasetCardData(**data).to_yaml()}\n---\n{body}"


def model_card_section(manifest: Manifest, config: InfluenceConfig, repo_id: str, existing: str) -> str:
    """A model's card with the section "This model's training data can be queried" in it, everything else as it was."""
    return _with_section(existing, _render("model_section.md", manifest, config, repo_id))


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """The YAML that the Hub reads."""
    size = next((name for limit, name in _SIZES if manifest.num_examples < limit), "n>10M")
    values: dict[str, Any] = {
        "tags": list(TAGS),
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        "size_categories": [size],
    }
    name = manifest.model.get("name")
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        values["base_model"] = name
    for key in ("license", "language"):
        if manifest.dataset.get(key):
            values[key] = manifest.dataset[key]
    return CardData(**values).to_dict()


def _render(template: str, manifest: Manifest, config: InfluenceConfig, repo_id: str) -> str:
    name = _plain(manifest.model.get("name") or "")
    dataset = manifest.dataset
    known = [_plain(str(dataset[key])) for key in ("name", "config", "split", "revision") if dataset.get(key)]
    return _TEMPLATES.get_template(template).render(
        manifest=manifest,
        config={key: _plain(str(value)) for key, value in config.to_dict().items()},
        repo_id=repo_id,
        title=repo_id.rsplit("/", 1)[-1],
        model=name or _plain(str(manifest.model.get("model_class"))),
        model_name=name or "path/to/the/model",
        auto_class=manifest.model.get("auto_class") or "AutoModel",
        dataset=", ".join(known) or "not recorded",
        bytes_per_example=sum(shard.bytes for shard in manifest.shards) / manifest.num_examples,
        query=_QUERIES.get(manifest.objective, "batch"),
    )


def _with_section(text: str, section: str) -> str:
    """`text` with our section replaced, or added at its end; a section that its owner changed is left alone."""
    marked = f"{_BEGIN.format(_digest(section))}\n{section}{_END}"
    found = _SECTION.search(text)
    if found is None:
        return f"{text.rstrip()}\n\n{marked}\n" if text.strip() else f"\n{marked}\n"
    if found[1] != _digest(found[2]):
        return text
    return text[: found.start()] + marked + text[found.end() :]


def _digest(section: str) -> str:
    return hashlib.sha256(section.encode()).hexdigest()[:16]


def _plain(text: str) -> str:
    """One line without anything that Markdown or a table would act on."""
    return re.sub(r"[^\w .,:;/@+*()'\"\[\]-]", "", text.replace("\n", " "))[:200]
