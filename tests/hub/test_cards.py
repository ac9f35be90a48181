"""Cards: YAML that the Hub reads, a section of ours that is exact and harmless, and everything else the owner's."""

import ast
import re
import shutil
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version

import pytest
from huggingface_hub import DatasetCard, HfApi
from index_cards import MODEL, REPO, card, manifest, table
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.errors import HubAccessError, HubConnectionError, IndexNotFoundError, PublishError
from lorif_hf.hub.cards import TAGS, index_card, model_card_section, repo_in_card
from lorif_hf.storage.measured_lds import LDSRecord


OWNERS = "---\nlicense: mit\npretty_name: Mine\ntags:\n- history\n- lorif\n---\n# My index\n\nMy words: *é*.\n"


def code(text):
    return ast.parse(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])


# The YAML


def test_the_hub_accepts_the_yaml(hub):
    made = DatasetCard(card(tags=["mine"], dataset={"license": "MIT"}))
    made.validate(repo_type="dataset")
    assert made.data.to_dict() == {
        "tags": [*TAGS, "mine"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        "size_categories": ["1K<n<10K"],
        "base_model": "org/model",
        "license": "mit",
    }


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (2, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9_999, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (999_999, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
        (9_999_999, "1M<n<10M"),
        (10_000_000, "10M<n<100M"),
        (100_000_000, "100M<n<1B"),
    ],
)
def test_the_size_category_is_the_hubs_own(count, size):
    assert DatasetCard(card(count=count)).data.size_categories == [size]


@pytest.mark.parametrize(
    ("name", "base_model"),
    [
        ("org/model", "org/model"),
        ("org/model-1.5_b", "org/model-1.5_b"),
        (None, None),
        ("checkpoint-9", None),
        ("./model", None),
        ("../model", None),
        ("org/model\n", None),
        ("a/b/c", None),
        ("org/<b>", None),
        ("org--x/..", None),
    ],
)
def test_only_a_hub_id_is_a_base_model(name, base_model):
    assert DatasetCard(card(model={"name": name})).data.get("base_model") == base_model


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        ("mit", "mit"),
        ("cc-by-4.0", "cc-by-4.0"),
        ("Creative Commons\nAttribution 4.0, see http://x", None),
        ("", None),
    ],
)
def test_a_licence_in_words_is_not_one_of_the_hubs(known, shown):
    """Datasets of old hold free text there; the Hub refuses a card with it."""
    assert DatasetCard(card(dataset={"license": known})).data.get("license") in (shown, shown or "other")


def test_the_owners_yaml_survives_and_tags_add_up():
    old = (
        "---\nlicense: mit\nbase_model: my/other\npretty_name: 'Mine: all'\nsize_categories:\n- n<1K\nconfigs: []\n"
        "train-eval-index:\n- config: default\ntags:\n- history\n- lorif\nextra: {a: [1, 2]}\nviewer: false\n---\n"
    )
    data = DatasetCard(card(old, tags=["lorif", "new"], dataset={"license": "apache-2.0"})).data.to_dict()
    assert data["tags"] == ["history", "lorif", *TAGS[1:], "new"]
    kept = {"license": "mit", "base_model": "my/other", "pretty_name": "Mine: all", "extra": {"a": [1, 2]}}
    assert kept.items() <= data.items() and data["viewer"] is False
    assert data["train-eval-index"] == [{"config": "default"}]
    assert data["size_categories"] == ["1K<n<10K"]
    assert data["configs"][0]["data_files"][0]["path"] == "data/*.parquet"


# The section


@pytest.mark.parametrize("old", [None, "", OWNERS, "No YAML at all.", "---\n---\n# Empty YAML"])
def test_rendering_again_changes_nothing(old):
    once = card(old)
    assert card(once) == once
    assert card(once, count=5000) != once
    assert once.count("lorif-hf: begin") == card(once, count=5000).count("lorif-hf: begin") == 1


def test_the_owners_words_before_and_after_survive_and_an_edited_section_is_theirs():
    once = card(OWNERS)
    assert "---\n# My index\n\nMy words: *é*.\n\n<!-- lorif-hf: begin" in once
    more = card(once + "\n## Afterwards\n", count=5000)
    assert "My words: *é*." in more and more.endswith("<!-- lorif-hf: end -->\n\n## Afterwards\n")
    assert "each of 5,000 training" in more and "1,000" not in more
    edited = more.replace("This is an **influence index**", "This is my index")
    again = card(edited, count=7000)
    assert DatasetCard(again).text == DatasetCard(edited).text
    removed = re.sub(r"<!-- lorif-hf: begin.*end -->", "", more, flags=re.DOTALL)
    assert "My words" in card(removed) and card(removed).count("lorif-hf: begin") == 1


def test_a_card_with_windows_line_ends_gets_one_section():
    once = card(OWNERS.replace("\n", "\r\n"))
    assert DatasetCard(once).data.pretty_name == "Mine" and "My words: *é*." in once
    again = card(once.replace("\r\n", "\n").replace("\n", "\r\n"), count=5000)
    assert again.count("lorif-hf: begin") == 1, "an untouched section is found again, whatever the line ends"


def test_every_choice_and_every_number_is_in_the_table():
    config = plain_config(factor_rank=3, damping=0.25, target_modules=["q_proj", "v_proj"], dtype="float16")
    text = card(config=config, dataset={"name": "wikitext", "config": "raw", "split": "train", "revision": "abc"})
    rows = dict(table(text))
    assert {name.strip("`"): value.strip("`") for name, value in rows.items() if name.startswith("`")} == {
        name: str(value) for name, value in config.to_dict().items()
    }
    assert rows["bytes per example"] == "125" and rows["layers recorded"] == "1"  # (123,456 + 1,544) / 1,000
    assert rows["its training began with"] == "org/model" and rows["at revision"] == "c0ffee"
    assert rows["hash of the recorded weights"] == f"`{'5' * 16}`"
    assert rows["training data"] == "wikitext, raw, train, abc" and rows["format version"] == "1.0"
    assert "each of 1,000 training examples" in text
    assert rows["made"] == f"{datetime.now(timezone.utc).date()}, lorif-hf {version('lorif-hf')}"


def test_a_regular_expression_is_shown_as_it_is():
    pattern = r".*\.(q|v)_proj$"
    shown = dict(table(card(config=plain_config(target_modules=pattern))))["`target_modules`"]
    assert shown.replace("\\|", "|") == f"`{pattern}`"


HOSTILE = (
    "a|b\r\n\n# Big `x` <script>alert(1)</script> [click](http://evil.example) ![i](http://evil.example) <!-- -->"
)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": {"name": HOSTILE}},
        {"model": {"name": None, "model_class": HOSTILE}},
        {"model": {"commit": HOSTILE}},
        {"model": {"weights_sha256": f"|\n`{HOSTILE}"}},
        {"dataset": {"name": HOSTILE, "config": HOSTILE, "split": HOSTILE, "revision": HOSTILE}},
        {"objective": HOSTILE},
        {"config": plain_config(target_modules=[HOSTILE])},
    ],
    ids=["name", "class", "commit", "hash", "dataset", "objective", "config"],
)
def test_what_comes_from_outside_cannot_break_the_table(fields):
    rows = table(card(**fields))
    assert len(rows) == len(table(card())) and all(len(row) == 2 for row in rows)
    outside_code = [re.sub(r"`[^`]*`", "", cell) for row in rows for cell in row]
    assert not any(re.search(r"[<`\r]|\]\(", cell) for cell in outside_code)


@pytest.mark.parametrize("objective", ["causal-lm", "sequence-classification", "user"])
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"name": None},
        {"auto_class": None},
        {"name": "C:\\models\\my model"},
        {"name": 'x"); import os; os.system("echo hi'},
        {"name": "x\n```\n# out"},
        {"auto_class": "AutoModel\nimport os\nos.abort()"},
    ],
    ids=["plain", "no name", "no class", "windows", "quotes", "newline", "class"],
)
def test_the_code_is_python_that_does_nothing_else(objective, model):
    section = model_card_section(manifest(model=model, objective=objective), plain_config(), REPO, "", "user/model")
    for text, statements in ((card(model=model, objective=objective), 7), (section, 4)):
        tree = code(text)
        compile(tree, "card", "exec")
        assert len(tree.body) == statements
        imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert set(imported) <= {"transformers", "lorif_hf"}
        assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


# On the Hub


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return InfluenceIndex.build(make_gpt2(), make_rows(4), tmp_path_factory.mktemp("built") / "index").path


@pytest.fixture
def index(hub, built, tmp_path):
    shutil.copytree(built, tmp_path / "index")
    return InfluenceIndex.from_pretrained(tmp_path / "index")


def commit_card(hub, repo, kind, text):
    """Put a card there by git, as it were: the Hub's own check of the YAML is not asked."""
    HfApi(token=hub.token).create_repo(repo, repo_type=kind, exist_ok=True)
    with hub.state.lock:
        held = hub.state.get(kind, repo)
        files = {**held.resolve("main").files, "README.md": held.store_regular(text.encode())}
        held.move_ref("main", held.add_commit(held.resolve("main"), files, "user", "a card"))
    hub.reset_log()


@pytest.mark.parametrize("yaml", ["a: [", "- a list", "a: b: c", "\tx: 1", "1: number"])
def test_an_index_card_whose_yaml_cannot_be_read_is_left_to_its_owner(hub, index, yaml):
    commit_card(hub, REPO, "dataset", f"---\n{yaml}\n---\nMy words\n")
    with pytest.raises(PublishError, match=r"(?s)The YAML of README.md cannot be read .*: mend it by hand"):
        index.push_to_hub(REPO, token=hub.token)
    assert hub.uploaded() == [] and len(hub.commits(REPO, "dataset")) == 2


def test_yaml_that_the_hub_refuses_is_no_failure_to_try_again(hub, index):
    hub.faults.add("POST /api/validate-yaml", "status", status=400, times=None)
    with pytest.raises(PublishError, match="README.md"):
        index.push_to_hub(REPO, token=hub.token)
    assert hub.uploaded() == [] and len(hub.commits(REPO, "dataset")) == 1


UNSEEN = f"{OWNERS}\nNot in the cache, where a card that was read before is found without the Hub.\n"


def test_an_index_card_that_cannot_be_had_just_now_is_not_overwritten(hub, index, sleeps):
    commit_card(hub, REPO, "dataset", UNSEEN)
    hub.faults.add("(HEAD|GET) .*/resolve/.*/README.md", "status", times=None)
    with pytest.raises(HubConnectionError, match="the Hub|The Hub"):
        index.push_to_hub(REPO, token=hub.token)
    assert hub.files(REPO, "dataset")["README.md"] == UNSEEN.encode()


def test_a_models_card_gains_the_section_once(hub, index):
    commit_card(hub, MODEL, "model", OWNERS)
    commit = index.push_model_card_section(MODEL, index_id=REPO, token=hub.token)
    made = hub.files(MODEL)["README.md"].decode()
    assert commit.oid == hub.commits(MODEL)[0].oid and made.startswith(OWNERS)
    assert "## This model's training data can be queried" in made
    assert f'InfluenceIndex.from_pretrained("{REPO}")' in made and "of 4 training examples" in made
    again = index.push_model_card_section(MODEL, index_id=REPO, token=hub.token)
    assert again.oid == commit.oid and len(hub.commits(MODEL)) == 3
    index.push_model_card_section(MODEL, index_id="user/other", token=hub.token)
    moved = hub.files(MODEL)["README.md"].decode()
    assert moved.startswith(OWNERS) and REPO not in moved and moved.count("user/other") == made.count(REPO)


def test_a_models_card_keeps_its_windows_line_ends(hub, index):
    windows = OWNERS.replace("\n", "\r\n")
    commit_card(hub, MODEL, "model", windows)
    index.push_model_card_section(MODEL, index_id=REPO, token=hub.token)
    assert hub.files(MODEL)["README.md"].startswith(windows.rstrip().encode())


def test_a_models_card_that_cannot_be_had_just_now_is_not_overwritten(hub, index, sleeps):
    commit_card(hub, MODEL, "model", UNSEEN)
    hub.faults.add("(HEAD|GET) .*/resolve/.*/README.md", "status", times=None)
    with pytest.raises(HubConnectionError, match="the Hub|The Hub"):
        index.push_model_card_section(MODEL, index_id=REPO, token=hub.token)
    assert hub.files(MODEL)["README.md"] == UNSEEN.encode()


def test_a_model_without_a_card_gets_one_on_a_pull_request_if_asked(hub, index):
    HfApi(token=hub.token).create_repo(MODEL)
    commit = index.push_model_card_section(MODEL, index_id=REPO, token=hub.token, create_pr=True)
    assert commit.pr_url and "README.md" not in hub.files(MODEL)
    assert REPO in hub.files(MODEL, revision="refs/pr/1")["README.md"].decode()


def test_a_models_card_out_of_reach_says_what_to_do(hub, index):
    with pytest.raises(IndexNotFoundError, match=f"No model repo '{MODEL}' that this token can see"):
        index.push_model_card_section(MODEL, index_id=REPO, token=hub.token)
    commit_card(hub, MODEL, "model", OWNERS)
    with pytest.raises(HubAccessError, match="needs the write role"):
        index.push_model_card_section(MODEL, index_id=REPO, token=hub.read_token)
    with pytest.raises(PublishError, match="was not loaded from the Hub: pass index_id=, the repo that people can"):
        index.push_model_card_section(MODEL, token=hub.token)
    assert hub.files(MODEL)["README.md"] == OWNERS.encode()


# The score


RECORD = LDSRecord(0.444, 0.95, 0.4, 0.48, None, None, 100, 50, 2, 0.9, "me/bank", "e" * 64)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (RECORD, "0.44 (95% interval 0.40 to 0.48 over queries; 100 queries; 50 subsets x 2 seeds, bank me/bank)"),
        (
            replace(RECORD, subset_low=-0.1, subset_high=0.5, bank=None),
            "0.44 (95% interval 0.40 to 0.48 over queries and -0.10 to 0.50 over subsets; 100 queries; 50 subsets x 2 "
            "seeds)",
        ),
        (
            replace(RECORD, query_low=None, query_high=None, bank="<b>|[x](http://y)\n`"),
            "0.44 (100 queries; 50 subsets x 2 seeds, bank bxhttp:y )",
        ),
        (None, None),
    ],
)
def test_a_score_is_a_line_of_the_table(record, line):
    made = index_card(manifest(), plain_config(), REPO, None, lds=record)
    assert dict(table(made)).get("LDS") == line
    assert dict(table(made))["bytes per example"] == "125"
    assert index_card(manifest(), plain_config(), REPO, made) == card()
    assert repo_in_card(made) == REPO and repo_in_card("no card of ours") is None
