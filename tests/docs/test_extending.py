"""`docs/extending.md` is one script: its blocks run from top to bottom, and give the scores of its own kinds."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from own_kinds import registries_restored


PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
QUERIES = [("a b c", 0.5), ("h i j", -1.0)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's blocks as a module of their own, run in an empty folder."""
    folder = tmp_path_factory.mktemp("extending")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    (folder / "extending_page.py").write_text("\n\n".join(blocks), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, registries_restored():
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield importlib.import_module("extending_page")


def gradients(model, ids, label):
    loss = (model(torch.tensor([ids]), torch.ones(1, len(ids))) - label).square().sum() / 2
    return torch.autograd.grad(loss, [model.up.kernel, model.down.kernel])


def test_the_scores_are_those_of_what_the_page_defines(page):
    """Gradients at eight bits, the query's over the diagonal of theirs: by autograd, one row at a time, in float64."""
    model = page.Scorer().double()
    model.load_state_dict(page.model.state_dict())
    of_rows = [gradients(model, row["input_ids"], row["label"]) for row in page.rows]
    asked = [gradients(model, page.tokenizer(text)["input_ids"], label) for text, label in QUERIES]
    expected = torch.zeros(2, len(page.rows)).double()
    for layer in range(2):
        stored, queries = (torch.stack([example[layer] for example in group]) for group in (of_rows, asked))
        scales = stored.abs().amax(dim=2, keepdim=True) / 127
        stored = (stored / scales).round() * scales
        diagonal = stored.square().sum(dim=0)
        expected += torch.einsum("qab,nab->qn", queries / (diagonal + page.config.damping * diagonal.mean()), stored)
    scores = page.index.scores(page.model, QUERIES).double()
    # A number halfway between two levels may be rounded to either: a step of 1 / 127 of its row's largest.
    assert float((scores - expected).abs().max() / expected.abs().max()) < 1e-3
    best = expected.topk(3)
    assert page.result.indices.tolist() == best.indices.tolist()
    torch.testing.assert_close(page.result.scores.double(), best.values, rtol=1e-2, atol=1e-3)


def test_the_index_says_where_its_kinds_come_from(page):
    manifest = page.index.manifest
    kinds = ["dense-kernel", "diagonal-fisher", "int8", "squared-error"]
    assert manifest.extensions == dict.fromkeys(kinds, "extending_page")
    assert [module.kind for module in manifest.modules] == ["dense-kernel"] * 2
    assert (manifest.objective, page.config.curvature, page.config.codec) == ("squared-error", *kinds[1:3])


def test_a_file_that_the_page_names_is_there():
    text = PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\((\.\./[\w./]+)\)", text)
    folders = re.findall(r"`(lorif_hf/\w+)/\w+\.py`", text)
    assert links and len(set(folders)) == 4
    for name in links:
        assert (PAGE.parent / name).is_file(), name
    for name in folders:
        assert (PAGE.parents[1] / name / "__init__.py").is_file(), name
