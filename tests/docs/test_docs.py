"""What the pages name is there: files that they link to, names of the package, and what their site is made of."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def without_code(text):
    return re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


def names_in(text):
    """Dotted names of the package: in backticks, after the three colons of a reference page, imported in a fence."""
    names = re.findall(r"`(lorif_hf(?:\.\w+)+)", text) + re.findall(r"^::: (lorif_hf[\w.]*)", text, re.MULTILINE)
    for module, imported in re.findall(r"^from (lorif_hf[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        names += [f"{module}.{name.strip()}" for name in imported.split(",")]
    return names


def resolved(name):
    """What a dotted name stands for: the longest module in it, then attributes (or fields without a default)."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise AssertionError(f"no module in {name}")


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(TEXTS[page]))
    local = [link.partition("#")[0] for link in links if not re.match(r"https?://|mailto:|#", link)]
    missing = [link for link in local if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing, f"{page} links to {', '.join(missing)}"


@pytest.mark.parametrize("page", TEXTS)
def test_names_of_the_package_exist(page):
    for name in names_in(TEXTS[page]):
        resolved(name)


def test_the_reader_of_names_finds_them():
    assert names_in("`lorif_hf.errors.ConfigError` and `lorif_hf.retrain(x)`") == [
        "lorif_hf.errors.ConfigError",
        "lorif_hf.retrain",
    ]
    assert names_in("::: lorif_hf.errors\nfrom lorif_hf import A, B") == [
        "lorif_hf.errors",
        "lorif_hf.A",
        "lorif_hf.B",
    ]
    with pytest.raises(AttributeError):
        resolved("lorif_hf.InfluenceIndex.nothing")


def test_every_command_of_make_that_a_page_names_is_one():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {target for text in TEXTS.values() for target in re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE)}
    assert {"docs", "test"} <= targets and named <= targets


def test_docstrings_are_rewritten_for_the_site():
    spec = importlib.util.spec_from_file_location("style", ROOT / "docs" / "tooling" / "huggingface_style.py")
    style = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(style)
    docstring = """See [`~lorif_hf.errors.ConfigError`] and [`find`].

Args:
    path (`str` or `os.PathLike`, *optional*, defaults to `"x"`): where
        it goes.
    token, private (*optional*): as (usual).
    options: those of [`find`].

Returns:
    `Tensor` of (n,): a sum
    over rows.

Raises:
    [`~lorif_hf.errors.ConfigError`], [`ValueError`]: found before
    it begins.
    [`~lorif_hf.errors.QueryError`].

Source: nobody."""
    expected = """See <ConfigError> and <find>.

Args:
    path (str | os.PathLike): where
        it goes.
    token: as (usual).
    private: as (usual).
    **options: those of <find>.

Returns:
    Any: `Tensor` of (n,): a sum
    over rows.

Raises:
    lorif_hf.errors.ConfigError: found before
        it begins.
    ValueError: found before
        it begins.
    lorif_hf.errors.QueryError:

Source: nobody."""
    parameters = ["path", "token", "private", "**options"]
    found = style.google_style(docstring, lambda target, text: f"<{text}>", parameters=parameters, returns="Any")
    assert found == expected
