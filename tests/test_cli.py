"""The command line: what it prints, what it refuses, and that nothing stored can play tricks on the terminal."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig
from retrained import QUERIES, ROWS, make_bank
from tiny import make_gpt2, make_rows, plain_config
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from lorif_hf import InfluenceIndex
from lorif_hf.cli import app
from lorif_hf.evaluation.evaluate_index import evaluate_lds
from lorif_hf.storage.layout import signed


REPO = "user/my-index"
SENTENCES = ["the cat sat on the mat", "a dog ran in the park", "the dog sat", "cats run in a park", "a cat ran", "on"]
ESCAPES = "\x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07click\x1b]8;;\x07 \x9b2J \r\x08gone"
MARKUP = "[red]rich[/red] [/nothing] [link=http://evil.example]x[/link] \\[bold] \\"
EMOJI = "a :warning: is no sign, nor is d[1:x:2]"


def train_tokenizer():
    """A tokenizer of at most the 50 tokens that the tiny model knows."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=["<pad>", "?"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="?")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model and an index of it that has its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("saved"), train_tokenizer()
    texts = [text for text in SENTENCES if " " in text]
    rows = Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"], "text": texts, "example_id": list("abcde")})
    make_gpt2().save_pretrained(folder / "model")
    config = plain_config(projection_factor=2, shard_size=2)
    InfluenceIndex.build(make_gpt2(), rows, folder / "index", config=config, processing_class=tokenizer)
    return folder


@pytest.fixture
def index(saved, tmp_path):
    return shutil.copytree(saved / "index", tmp_path / "index")


def run(*arguments, **environment):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160", "HF_TOKEN": ""} | environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # what a user would see as a traceback
    return result


def refused(*arguments, **environment):
    """The message of a command that must fail as a person expects: no traceback, nothing printed, status 1."""
    result = run(*arguments, **environment)
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.startswith("error: ")
    return result.stderr.removeprefix("error: ")


def edit(folder, change):
    manifest = json.loads((folder / "influence_config.json").read_text())
    change(manifest)
    (folder / "influence_config.json").write_text(signed(json.dumps(manifest)))


# info and verify


def test_info_says_what_the_index_is(saved):
    out = run("info", saved / "index").stdout
    rows = dict(re.findall(r"│ (\S.*?) +│ (\S.*?) +│", out))
    loaded = InfluenceIndex.from_pretrained(saved / "index")
    assert rows["model"] == "GPT2LMHeadModel" and rows["examples"] == "5" and rows["commit"] == "(a local folder)"
    assert rows["layers"] == "8, the first is transformer.h.0.attn.c_attn" and rows["objective"] == "causal-lm"
    assert rows["bytes per example"] == f"{loaded.bytes_per_example:,.0f}"
    assert {name: str(value) for name, value in loaded.config.to_dict().items()}.items() <= rows.items()


def test_info_of_an_index_on_the_hub_downloads_no_factors(hub, saved):
    commit = InfluenceIndex.from_pretrained(saved / "index").push_to_hub(REPO, token=hub.token)
    hub.reset_log()
    assert commit.oid in run("info", REPO).stdout
    assert hub.bytes_served(".parquet") == 0 and not any(
        "factors/" in (request.path_in_repo or "") for request in hub.requests
    )


def test_verify_is_content_with_a_good_index_here_and_on_the_hub(hub, saved):
    InfluenceIndex.from_pretrained(saved / "index").push_to_hub(REPO, token=hub.token, private=True)
    for where, environment in ((saved / "index", {}), (REPO, {"HF_TOKEN": hub.token})):
        result = run("verify", where, **environment)
        assert result.exit_code == 0 and result.stdout == "Every file is as it was written.\n"


@pytest.mark.parametrize("damage", ["flip", "delete"])
@pytest.mark.parametrize("number", range(8))
def test_verify_names_a_damaged_file(index, number, damage):
    entry = InfluenceIndex.from_pretrained(index).manifest.files[number]
    content = (index / entry.file).read_bytes()
    (index / entry.file).unlink()
    if damage == "flip":
        (index / entry.file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    message = refused("verify", index)
    assert message.startswith(f"{entry.file}: ") and "restore or download it again" in message


# attribute


def test_attribute_ranks_the_examples_behind_a_text(saved, tmp_path):
    page = tmp_path / "page.html"
    result = run("attribute", saved / "index", saved / "model", SENTENCES[1], "--top-k", 3, "--html", page)
    ranked = re.findall(r"│ +([+-]\S+) +│ (\d) +│ (\w) +│ (\S.*?) +│", result.stdout)
    loaded = InfluenceIndex.from_pretrained(saved / "index")
    expected = loaded.attribute(make_gpt2(), SENTENCES[1], top_k=3).to_list()
    assert ranked == [(f"{row['score']:+.4g}", str(row["row"]), row["example_id"], row["text"]) for row in expected]
    assert ranked[0][3] == SENTENCES[1] and SENTENCES[1] in result.stdout.splitlines()[0]
    assert "a dog ran in the park" in page.read_text() and "<script" not in page.read_text()


def test_attribute_measures_a_completion(saved):
    whole, completion = (
        run("attribute", saved / "index", saved / "model", *query).stdout
        for query in (["the cat sat on"], ["the cat", "--completion", " sat on"])
    )
    assert whole != completion and "the cat sat on" in completion


@pytest.mark.parametrize("hostile", [ESCAPES, MARKUP, EMOJI], ids=["escapes", "markup", "emoji"])
def test_hostile_text_is_printed_as_it_is_or_not_at_all(tmp_path, saved, hostile):
    rows = make_rows(3).map(lambda row: {"text": hostile, "example_id": hostile})
    tokenizer = train_tokenizer()
    InfluenceIndex.build(make_gpt2(), rows, tmp_path / "i", processing_class=tokenizer)
    edit(tmp_path / "i", lambda manifest: manifest["model"].update(name=hostile))
    for command in (["attribute", tmp_path / "i", saved / "model", "the cat [red]x"], ["info", tmp_path / "i"]):
        result = run(*command, COLUMNS="400")
        assert result.exit_code == 0 and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.output)
        if hostile != ESCAPES:
            assert hostile in result.output


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_hostile_manifest_cannot_write_to_the_terminal_through_an_error(index, command):
    """A message names the file; the file's name came with the index."""
    name = "\x1b]0;owned\x07[red]curvature"
    edit(index, lambda manifest: manifest["curvature"].update(file=name))
    message = refused(command, index) if command == "verify" else run(command, index).output
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", message)
    if command == "verify":
        assert "[red]curvature" in message


# push


def test_push_makes_one_commit_and_prints_its_address(hub, saved):
    arguments = ["--private", "--commit-message", "By hand", "--tag", "one", "--tag", "two"]
    result = run("push", saved / "index", REPO, *arguments, HF_TOKEN=hub.token)
    newest = hub.commits(REPO, "dataset")[0]
    assert result.stdout == f"{hub.endpoint}/datasets/{REPO}/commit/{newest.oid}\n"
    assert newest.title == "By hand" and hub.state.get("dataset", REPO).private
    assert "- one\n- two\n" in hub.files(REPO, "dataset")["README.md"].decode()
    result = run(
        "push", saved / "index", REPO, "--create-pr", "--commit-message", "x", "--tag", "three", "--token", hub.token
    )
    assert result.stdout == f"{hub.endpoint}/datasets/{REPO}/discussions/1\n"
    run("push", saved / "index", REPO, "--revision", "next", HF_TOKEN=hub.token)
    assert "influence_config.json" in hub.files(REPO, "dataset", "next")


# evaluate


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
        (["{folder}/index", "{folder}/bank", "{saved}/other"], ""),
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
            "{folder}/none.json cannot be r",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_message(evaluated, saved, arguments, message):
    places = {"folder": evaluated[0], "saved": saved}
    assert message.format(**places) in refused("evaluate", "lds", *(one.format(**places) for one in arguments))
    assert not (evaluated[0] / "index" / "evaluation").exists()


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "{tmp}"], "{tmp} holds no index: expected a folder with influence_config.json"),
        (["verify", "{tmp}/nowhere"], "{tmp}/nowhere does not exist: expected a folder"),
        (["info", "user/nothing"], "No dataset repo 'user/nothing' that this machine can see"),
        (["push", "{tmp}", REPO], "{tmp} holds no index"),
        (["push", "{saved}/index", "a b"], "'a b' is no repo id"),
        (["push", "{saved}/index", REPO, "--token", "hf_wrong"], "The Hub does not accept this token for 'user/my-in"),
        (["info", REPO, "--revision", "v9"], "No dataset repo 'user/my-index'"),
        (["attribute", "{saved}/index", "{tmp}/other", "the cat"], "The weights of the query's model are not those"),
        (["attribute", "{saved}/index", "{saved}/model", ""], "Query 0 is empty: it has no token"),
        (["attribute", "{saved}/index", "{tmp}/no-model", "the cat"], ""),
        (["attribute", "{saved}/index", "user/no-model", "the cat"], ""),
        (["attribute", "{saved}/index", "{saved}/model", "the cat", "--html", "{tmp}/no/page.html"], ""),
    ],
)
def test_what_goes_wrong_is_said_in_one_message_and_status_1(hub, saved, tmp_path, arguments, message):
    make_gpt2(seed=5).save_pretrained(tmp_path / "other")
    places = {"tmp": tmp_path, "saved": saved}
    if "--html" in arguments:  # the result may be printed first
        result = run(*(argument.format(**places) for argument in arguments))
        assert result.exit_code == 1 and "error: " in result.stderr
    else:
        assert message.format(**places) in refused(*(argument.format(**places) for argument in arguments))


@pytest.mark.parametrize("arguments", [["--top-k", "0"], ["--no-such-option"]])
def test_a_wrong_option_is_a_usage_error(saved, arguments):
    assert run("attribute", saved / "index", saved / "model", "the cat", *arguments).exit_code == 2


@pytest.mark.slow
def test_the_installed_command_runs_and_does_not_show_the_token(hub, saved, tmp_path):
    command = Path(sys.executable).parent / "lorif-hf"
    environment = hub.environment(tmp_path / "home") | {"COLUMNS": "120", "TERM": "dumb"}

    def started(*arguments):
        return subprocess.run(
            [command, *arguments], check=False, capture_output=True, text=True, env=environment, timeout=120
        )

    assert all(name in started("--help").stdout for name in ("info", "verify", "attribute", "push", "evaluate"))
    shown = run("push", "--help", HF_TOKEN=hub.token).stdout
    assert "HF_TOKEN" in shown and hub.token not in shown
    failed = started("verify", str(tmp_path / "nowhere"))
    assert failed.returncode == 1 and failed.stdout == "" and "Traceback" not in failed.stderr
    assert failed.stderr.startswith("error: ")


def test_estimate_says_what_each_preset_would_cost(saved):
    result = run("estimate", saved / "model", "--num-examples", 1000, "--length", 8, "--flops", "1e9")
    shown = " ".join(result.stdout.split())  # the title is broken where the path is long
    assert "1,000 examples of 8 tokens" in shown and "Times are for 1e+09 operations a second." in shown
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if line.startswith("│")}
    assert list(lines) == ["default", "smallest", "best", "paper", "logra", "trak"]
    assert " 192 " in lines["paper"] and " 4,100 " in lines["trak"] and "MB" in lines["trak"]
    assert "!" not in result.stdout
    small = run("estimate", saved / "model", "--flops", "1e9", "--memory", "1MB", "--disk", "1MB").stdout
    assert "! More than there is (1.0 MB of memory and 1.0 MB of disk): default" in " ".join(small.split())


def test_estimate_of_an_adapter_is_of_its_base_and_of_what_was_trained(saved, tmp_path):
    config = LoraConfig(
        r=2, target_modules=["c_fc"], base_model_name_or_path=str(saved / "model"), inference_mode=True
    )
    config.save_pretrained(tmp_path)
    shown = " ".join(run("estimate", tmp_path, "--flops", "1e9").stdout.split())
    assert "100.0% of the trained parameters are tracked" in shown and "the model in float32" in shown


def test_estimate_of_nothing_is_said_in_one_message(tmp_path):
    assert refused("estimate", tmp_path).startswith(f"No model config is found at {tmp_path} (Unrecognized model")
