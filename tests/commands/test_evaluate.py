"""`lorif-hf evaluate`: the score is that of the library, printed and kept."""

import json
import re
import shutil

import pytest
from retrained import QUERIES, ROWS, make_bank
from terminal import REPO, differences, documented, refused, run
from tiny import make_gpt2, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.evaluation.evaluate_index import evaluate_lds


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder with an index without a tokenizer, its model, a bank of three queries, and these in files."""
    folder = tmp_path_factory.mktemp("evaluated")
    bank = make_bank(folder / "bank")
    InfluenceIndex.build(make_gpt2(), ROWS, folder / "index", config=plain_config(projection_factor=2))
    make_gpt2().save_pretrained(folder / "model")
    asked = [{"input_ids": ids} for ids in QUERIES["input_ids"]]
    (folder / "queries.json").write_text(json.dumps(asked))
    (folder / "order.jsonl").write_text("\n".join(map(json.dumps, asked[::-1])))
    (folder / "queries.txt").write_text("one\ntwo\nthree\n")
    return folder, bank


@pytest.mark.parametrize("queries", [[], ["queries.json"]])
def test_evaluate_lds_prints_the_score_and_keeps_it_with_the_index(evaluated, tmp_path, queries):
    folder, bank = evaluated
    path = shutil.copytree(folder / "index", tmp_path / "index")
    out = run("evaluate", "lds", path, folder / "bank", folder / "model", *[folder / name for name in queries]).stdout
    rows = dict(re.findall(r"│ (\S.*?) +│ (\S.*?) +│", out))
    index = InfluenceIndex.from_pretrained(path)
    expected = evaluate_lds(index, bank, make_gpt2())
    assert rows["LDS"] == f"{expected.mean:.4f}" and rows["queries"] == "3 (0 of constant loss, left out)"
    assert rows["95% interval over queries"] == "{:.4f} to {:.4f}".format(*expected.query_interval)
    assert rows["95% interval over subsets"] == "{:.4f} to {:.4f}".format(*expected.subset_interval)
    assert rows["two seeds of the ground truth"] == f"{bank.seed_agreement():.4f}"
    assert rows["subsets"] == "3 x 2 seed(s)"
    assert out.endswith(f"Kept in {path} and its card.\n") and index.lds.mean == expected.mean
    assert f"| LDS | {expected.mean:.2f} (95% interval" in (path / "README.md").read_text()
    assert re.search(rf"│ LDS +│ {expected.mean:.3f}", run("info", path).stdout)


def test_evaluate_lds_as_json_says_the_same_and_keeps_it_too(evaluated, tmp_path):
    folder, bank = evaluated
    path = shutil.copytree(folder / "index", tmp_path / "index")
    said = json.loads(run("evaluate", "lds", path, folder / "bank", folder / "model", "--json").stdout)
    assert differences(said, documented("evaluate lds")) == []
    index = InfluenceIndex.from_pretrained(path)
    expected = evaluate_lds(index, bank, make_gpt2())
    assert said["lds"] == expected.mean == index.lds.mean and said["kept_in"] == str(path)
    assert tuple(said["query_interval"]) == expected.query_interval and said["num_subsets"] == 3


def test_evaluate_lds_of_an_index_and_a_bank_on_the_hub_keeps_nothing(hub, evaluated):
    folder, bank = evaluated
    InfluenceIndex.from_pretrained(folder / "index").push_to_hub(REPO, token=hub.token)
    bank.push_to_hub("user/bank", token=hub.token, private=True)
    commits = len(hub.commits(REPO, "dataset"))
    result = run("evaluate", "lds", REPO, "user/bank", folder / "model", "--confidence", "0.5", HF_TOKEN=hub.token)
    assert result.exit_code == 0 and "50% interval over queries" in result.stdout and "Kept" not in result.stdout
    assert len(hub.commits(REPO, "dataset")) == commits
    assert re.search(r"│ LDS +│ not measured", run("info", folder / "index").stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{saved}/index", "{folder}/bank", "{folder}/model"], "The bank is of 12 training rows, the index of 5"),
        (["{folder}/index", "{folder}/index", "{folder}/model"], "{folder}/index holds no bank: expected a folder"),
        (["{folder}/index", "{folder}/bank", "{saved}/other"], "No model can be loaded from {saved}/other"),
        (
            ["{folder}/index", "{folder}/bank", "{folder}/model", "{folder}/order.jsonl"],
            "The queries are the bank's in",
        ),
        (
            ["{folder}/index", "{folder}/bank", "{folder}/model", "{folder}/queries.txt"],
            "Query 0 is text, but the ind",
        ),
        (
            ["{folder}/index", "{folder}/bank", "{folder}/model", "{folder}/none.json"],
            "{folder}/none.json: No such file or directory; check the name.",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_message(evaluated, saved, arguments, message):
    places = {"folder": evaluated[0], "saved": saved}
    said = refused("evaluate", "lds", *(argument.format(**places) for argument in arguments))
    assert message.format(**places) in said
    assert not (evaluated[0] / "index" / "evaluation").exists()


def test_without_a_metric_its_help_is_shown():
    result = run("evaluate")
    assert result.exit_code == 2 and "lds" in result.output and "error" not in result.output
