"""The cards of an index: its own, and the section that a model's card gains.

What lorif-hf writes stands between two marks; whatever else a card says is its owner's and survives every later push.
So does a section that the owner changed.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData
from huggingface_hub.repocard_data import CardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..config import InfluenceConfig
from ..registry import TASKS
from ..storage.layout import Manifest
from ..storage.measured_lds import LDSRecord


TAGS = ("lorif", "influence-functions", "training-data-attribution")
BANK_TAGS = ("lorif", "linear-datamodeling-score", "training-data-attribution")

_BEGIN, _END = "<!-- lorif-hf: begin {} -->", "<!-- lorif-hf: end -->"
_SECTION = re.compile(r"<!-- lorif-hf: begin ([0-9a-f]{16}) -->\r?\n(.*?)<!-- lorif-hf: end -->", re.DOTALL)
_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BOUNDS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_SIZES = [f"n<{_BOUNDS[0]}", *map("{}<n<{}".format, _BOUNDS, _BOUNDS[1:]), f"n>{_BOUNDS[-1]}"]  # by powers of ten
_WHITENINGS = {"kronecker": "whitened with Kronecker-factored second moments"}
_DATASET = ("name", "config", "split", "revision")
# No HTML: Markdown is shown as it is, so what comes from outside is cut down to harmless characters instead.
_TEMPLATES = Environment(
    loader=PackageLoader("lorif_hf.model_cards", "."),
    autoescape=False,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


def index_card(
    manifest: Manifest,
    config: InfluenceConfig,
    repo_id: str,
    existing: str | None,
    tags: Sequence[str] = (),
    model_id: str | None = None,
    lds: LDSRecord | None = None,
) -> str:
    """The card of an index's repo, as YAML and Markdown.

    Args:
        manifest, config: what the index is, and what it was built with.
        repo_id (`str`): where it lives.
        existing (`str` or `None`): the card there is; its own words and its own YAML stay.
        tags (`Sequence[str]`): more tags for the YAML.
        model_id (`str` or `None`): the repo of the model that was indexed, where the owner says it.
        lds (`LDSRecord` or `None`): how good it was measured to be.
    """
    section = _dated(
        existing, lambda made: _render("index_card.md", manifest, config, repo_id, model_id, _score(lds), made)
    )
    return _card(existing, _metadata(manifest, model_id), section, tags)


def bank_card(info: Mapping[str, Any], agreement: float | None, repo_id: str, existing: str | None) -> str:
    """The card of a bank of retrained models.

    Args:
        info (`Mapping`): its `bank.json`, checked.
        agreement (`float` or `None`): of its seeds with one another.
        repo_id, existing: as in [`index_card`].
    """
    configs = [_table("runs", "runs") | {"default": True}, _table("queries", "queries")]
    values: dict[str, Any] = {
        "info": info,
        "runs": info["num_subsets"] * len(info["seeds"]),
        "title": _harmless(repo_id.rsplit("/", 1)[-1]),
        "repo_id": _code(repo_id),
        "model": _harmless(info["model"]["model_class"]),
        "began_with": _known(info["model"].get("name")),
        "dataset": _known(*map(info["dataset"].get, _DATASET)),
        "fingerprint": _harmless(info["dataset"]["fingerprint"])[:16],
        "objective": _harmless(info["objective"].get("name")),
        "agreement": "not measured: one seed" if agreement is None else f"{agreement:.2f}",
        "training": {_cell(name): _cell(value) for name, value in sorted(info["training"].items())},
    }
    section = _dated(existing, lambda made: _TEMPLATES.get_template("bank_card.md").render(values, made=made))
    return _card(existing, CardData(tags=list(BANK_TAGS), configs=configs).to_dict(), section)


def method_sentence(config: InfluenceConfig) -> str:
    """How an index of this config stores a gradient, and what a query is preconditioned with, in a sentence."""
    steps = []
    if config.projection_dim is not None:
        steps.append(f"projected at random, all layers together, to {config.projection_dim:,} numbers")
    elif config.projection_factor > 1:
        steps.append(f"projected at random to 1/{config.projection_factor} of each layer's inputs and outputs")
    if config.whitening != "none":
        steps.append(_WHITENINGS.get(config.whitening) or f"whitened ({_harmless(config.whitening)})")
    if config.normalize:
        steps.append("divided by its norm")
    form = "without a low-rank factorisation"
    if config.factor_rank is not None:
        form = f"as rank-{config.factor_rank} factors"
    precision = f"in {config.dtype}"
    if config.bits != 16:
        precision = f"at {config.bits} bit{'s' * (config.bits > 1)} per number"
    rank = "" if config.curvature_rank is None else f" of rank {config.curvature_rank:,} at most"
    queries = {
        "none": "scores are inner products of gradients, without curvature",
        "low-rank": f"queries are preconditioned with a damped Hessian{rank} per layer",
        "kronecker": "queries are preconditioned with the Kronecker-factored curvature",
    }
    named = f"queries are preconditioned with the curvature {_harmless(config.curvature)}"
    stored = f"{', '.join(steps)} and stored" if steps else "stored"
    return f"Each training gradient is {stored} {form} {precision}; {queries.get(config.curvature, named)}."


def repo_in_card(card: str) -> str | None:
    """The repo that our section of an index's card says to load."""
    section = _SECTION.search(card)
    call = re.search(r'InfluenceIndex\.from_pretrained\("([\w./-]+)"\)', section[2]) if section else None
    return call[1] if call else None


def _card(existing: str | None, ours: dict[str, Any], section: str, tags: Sequence[str] = ()) -> str:
    """YAML and Markdown: what is there, with ours in it."""
    old = DatasetCard(existing) if existing else None
    data: dict[str, Any] = old.data.to_dict() if old else {}
    ours["tags"] = list(dict.fromkeys([*(data.get("tags") or []), *ours["tags"], *tags]))
    for name, value in ours.items():
        # Tags add up, and the tables are where they are; the rest is the owner's once it is there.
        if name in ("tags", "configs", "size_categories") or data.get(name) is None:
            data[name] = value
    body = _with_section(old.text if old else "", section)
    return f"---\n{DatasetCardData(**data).to_yaml()}\n---\n{body}"


def model_card_section(manifest: Manifest, config: InfluenceConfig, repo_id: str, existing: str, model_id: str) -> str:
    """A model's card with the section "This model's training data can be queried" in it, everything else as it was;
    where its YAML does not say which datasets it was trained on, and the index knows one of the Hub, with that one."""
    section = _render("model_section.md", manifest, config, repo_id, model_id)
    return _with_section(_with_dataset(existing, _training_dataset(manifest)), section)


def _training_dataset(manifest: Manifest) -> str | None:
    """The Hub id of the dataset that was trained on, where it has one: only such a dataset has a revision."""
    name = manifest.dataset.get("name")
    known = isinstance(name, str) and _REPO_ID.fullmatch(name) and manifest.dataset.get("revision")
    return name if known else None


def _with_dataset(card: str, dataset: str | None) -> str:
    """A card whose YAML names a dataset, if it named none; all that is there stays as it was, to the letter."""
    if dataset is None:
        return card
    line_end = "\r\n" if "\r\n" in card else "\n"
    entry = f"datasets:{line_end}- {dataset}{line_end}"
    yaml = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", card, re.DOTALL | re.MULTILINE)
    if yaml is None:
        return f"---{line_end}{entry}---{line_end}{card}"
    if re.search(r"^datasets[ \t]*:", yaml[1], re.MULTILINE):
        return card
    return card[: yaml.end(1)] + entry + card[yaml.end(1) :]


def _table(name: str, file: str) -> dict[str, Any]:
    """A table of the dataset viewer, as the YAML names it."""
    return {"config_name": name, "data_files": [{"split": "train", "path": f"data/{file}.parquet"}]}


def _metadata(manifest: Manifest, model_id: str | None) -> dict[str, Any]:
    """The YAML that the Hub reads."""
    power = max(0, len(str(manifest.num_examples)) - 3)
    values: dict[str, Any] = {
        "tags": list(TAGS),
        "configs": [_table("default", "*")],
        "size_categories": [_SIZES[min(power, len(_SIZES) - 1)]],
    }
    name = manifest.model.get("name")
    # Only a model from the Hub has a commit; "output/checkpoint-500" looks like a repo and is none.
    if model_id is not None and _REPO_ID.fullmatch(model_id):
        values["base_model"] = model_id
    elif isinstance(name, str) and _REPO_ID.fullmatch(name) and manifest.model.get("commit"):
        values["base_model"] = name
    if (dataset := _training_dataset(manifest)) is not None:
        values["source_datasets"] = [dataset]
    license_id = str(manifest.dataset.get("license") or "").lower()
    if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license_id):  # an identifier; datasets may hold free text instead
        values["license"] = license_id
    return CardData(**values).to_dict()


def _score(lds: LDSRecord | None) -> str:
    """A score as the card's table shows it."""
    if lds is None:
        return ""
    intervals = (("queries", lds.query_low, lds.query_high), ("subsets", lds.subset_low, lds.subset_high))
    known = [f"{low:.2f} to {high:.2f} over {of}" for of, low, high in intervals if low is not None]
    how = [f"{100 * lds.confidence:g}% interval {' and '.join(known)}"] if known else []
    how.append(f"{lds.num_queries} queries; {lds.num_subsets} subsets x {lds.num_seeds} seeds")
    bank = f", bank {_harmless(lds.bank)}" if lds.bank else ""
    return f"{lds.mean:.2f} ({'; '.join(how)}{bank})"


def _render(
    template: str,
    manifest: Manifest,
    config: InfluenceConfig,
    repo_id: str,
    model_id: str | None,
    lds: str = "",
    made: str = "",
) -> str:
    began = manifest.model
    known = [task.auto_class for task in TASKS if task.auto_class]
    auto_class = began["auto_class"] if began.get("auto_class") in known else "AutoModel"
    library = "transformers"
    if began.get("adapter"):
        library, auto_class = "peft", auto_class.replace("AutoModel", "AutoPeftModel")
    return _TEMPLATES.get_template(template).render(
        manifest=manifest,
        config={key: _cell(value) for key, value in config.to_dict().items()},
        method=method_sentence(config),
        objective=_harmless(manifest.objective),
        repo_id=_code(repo_id),
        title=_harmless(repo_id.rsplit("/", 1)[-1]),
        model=_harmless(model_id or began.get("model_class")),
        began_with=_known(began.get("name")),
        began_at=_known(began.get("commit")),
        weights=_harmless(began.get("weights_sha256", ""))[:16],
        model_name=_code(model_id) if model_id else "path/to/the/indexed/model",
        library=library,
        auto_class=auto_class,
        dataset=_known(*map(manifest.dataset.get, _DATASET)),
        bytes_per_example=sum(shard.bytes for shard in manifest.shards) / manifest.num_examples,
        query=next((task.query_example for task in TASKS if task.name == manifest.objective), "batch"),
        lds=lds,
        made=made,
        extras="[peft]" if began.get("adapter") else "",
        shown=_shown_text(manifest.dataset.get("text")),
    )


def _shown_text(kept: Any) -> str:
    """How much of each example's text stands in the table."""
    if kept is False:
        return "no text of it"
    if isinstance(kept, int) and kept is not True:
        return f"the first {kept:,} characters of its text"
    return "its text" if kept else "its text, where the table has one"


def _dated(existing: str | None, render: Callable[[str], str]) -> str:
    """A section with the day on which it was made and the version that made it: those of the section there is, where
    nothing else is new."""
    before = re.search(r"^\| made \| ([\w .,+-]{1,100}) \|\r?$", existing or "", re.MULTILINE)
    if before is not None and (section := render(before[1])) in (existing or "").replace("\r\n", "\n"):
        return section
    return render(f"{datetime.now(timezone.utc).date()}, lorif-hf {version('lorif-hf')}")


def _with_section(text: str, section: str) -> str:
    """`text` with our section replaced, or added at its end; a section that its owner changed is left alone."""
    marked = f"{_BEGIN.format(_digest(section))}\n{section}{_END}"
    present = _SECTION.search(text)
    if present is None:
        return f"{text.rstrip()}\n\n{marked}\n" if text.strip() else f"\n{marked}\n"
    if present[1] != _digest(present[2]):
        return text
    return text[: present.start()] + marked + text[present.end() :]


def _digest(section: str) -> str:
    return hashlib.sha256(section.replace("\r\n", "\n").encode()).hexdigest()[:16]


def _harmless(value: Any) -> str:
    """One line in which Markdown, HTML and a table find nothing to act on."""
    return re.sub(r"[^\w .,:;/@+=-]", "", str(value).replace("\n", " ")).replace("://", ":")[:200]


def _known(*values: Any) -> str:
    """Those that are known, harmless."""
    return ", ".join(_harmless(value) for value in values if value) or "not recorded"


def _cell(value: Any) -> str:
    """A setting that stands between backticks in a table: shown as it is, but for the two marks that would end it."""
    return " ".join(str(value).replace("`", "").split()).replace("|", "\\|")[:400]


def _code(value: str) -> str:
    """A name that can stand between quotes in the card's code."""
    return re.sub(r"[^\w./-]", "", value)[:200]
