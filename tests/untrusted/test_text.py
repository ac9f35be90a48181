"""An index from anybody runs no code of its author's: not its tokenizer, not its texts, and nothing is unpickled."""

import json
import pickle
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tampering import CONFIG, MODULE, REPO, SHARD, edit, edit_tensors, query, sign
from tiny import VOCABULARY, make_gpt2, make_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from lorif_hf import InfluenceIndex
from lorif_hf.commands import program
from lorif_hf.errors import LorifError


TABLE = "data/train-00002.parquet"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An index with a tokenizer of whole words, and the model beside it."""
    place = tmp_path_factory.mktemp("built")
    words = {f"w{number}": number for number in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", pad_token="w0")
    model, rows = make_gpt2(), make_rows(6)
    InfluenceIndex.build(model, rows, place / "index", config=CONFIG, processing_class=tokenizer)
    model.save_pretrained(place / "model")
    return place


@pytest.fixture
def folder(built, tmp_path):
    shutil.copytree(built, tmp_path / "place")
    return tmp_path / "place/index"


@pytest.fixture
def model(folder):
    return str(folder.parent / "model")


# Code


def add_tokenizer_file(folder, name, content):
    path = folder / "tokenizer" / name
    path.write_bytes(content)
    entry = {"file": f"tokenizer/{name}", "bytes": 0, "sha256": "0" * 64}
    edit(folder, lambda values: values["tokenizer"].append(entry))
    sign(folder)


class Canary:
    """Unpickled, it touches a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
        {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"},
        {"auto_map": ["evil.Evil", None]},
        {"auto_map": {"AutoTokenizer": ["user/elsewhere--evil.Evil", None]}, "tokenizer_class": "Evil"},
        {"tokenizer_class": "evil.Evil"},
        {"tokenizer_class": "os"},
        {"tokenizer_class": "../evil"},
        {"tokenizer_class": ["evil"]},
        {"tokenizer_file": "../../secret", "vocab_file": "/etc/hostname"},
        {"model_max_length": "x" * 1000},
    ],
    ids=lambda config: json.dumps(config)[:60],
)
def test_a_tokenizer_with_code_runs_none(load, folder, tmp_path, config):
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\nclass Evil:\n    pass\n".encode()
    settings = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps({**settings, **config}))
    for name in ("evil.py", "__init__.py", "tokenization_evil.py"):
        add_tokenizer_file(folder, name, code)
    for name in ("vocab.pkl", "pytorch_model.bin", "training_args.bin", "vocab.bin"):
        add_tokenizer_file(folder, name, pickle.dumps(Canary(canary)))
    if "auto_map" in config:
        add_tokenizer_file(
            folder, "config.json", json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}).encode()
        )
    try:
        load().attribute(make_gpt2(), "w1 w2 w3", top_k=6)
    except LorifError:
        pass
    finally:
        assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"model": {}}', b"\x80\x04N.", b"[" * 100_000])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_none_is_our_error(folder, name, content):
    (folder / "tokenizer" / name).write_bytes(content)
    sign(folder)
    index = InfluenceIndex.from_pretrained(folder)
    try:
        index.attribute(make_gpt2(), "w1 w2 w3", top_k=6)
    except LorifError:
        pass


def test_a_file_that_the_manifest_does_not_vouch_for_is_not_read_by_the_tokenizer(folder):
    template = "{{ 'injected' }}"
    (folder / "tokenizer/chat_template.jinja").write_text(template)
    index = InfluenceIndex.from_pretrained(folder)
    try:
        found = index.processing_class
    except LorifError:
        return
    assert found.chat_template != template


def test_a_chat_template_reaches_nothing_of_python(load, folder, tmp_path):
    canary = tmp_path / "canary"
    template = (
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}{{ ''.__class__.__mro__[1].__subclasses__() }}"
    ).replace("CANARY", str(canary))
    settings = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    sign(folder)
    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]
    with pytest.raises(Exception, match="unsafe|SecurityError|Security|access"):
        load().attribute(make_gpt2(), messages, top_k=6)
    assert not canary.exists()


def test_nothing_is_ever_unpickled(load, model, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    index = load()
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    again = load()
    result = again.attribute(model, "w1 w2 w3", top_k=6)
    assert result.indices.shape == (1, 6)
    assert "<table" in result._repr_html_()
    again.verify()
    assert len(again.self_influence()) == len(index) == 6


# Text


HOSTILE_TEXT = (
    "<script>alert(1)</script><img src=x onerror=alert(2)></td></table>{{ 7 * 191 }}{% include '/etc/passwd' %}"
    "\x1b[31mred\x1b]0;title\x07\x1b]8;;http://evil\x1b\\link\x9b2J\x08\r\u202egnp.exe [bold]markup[/bold] [/] $x$"
)


@pytest.fixture
def hostile(folder):
    """The text and the name of every row of the second table."""
    table = pq.read_table(folder / TABLE)
    column = pa.array([HOSTILE_TEXT, HOSTILE_TEXT])
    for name in ("example_id", "text"):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, folder / TABLE)
    sign(folder)
    return folder


def test_html_shows_text_and_runs_nothing(load, hostile, tmp_path):
    result = query(load())
    result.save_html(tmp_path / "page.html")
    for page in (result._repr_html_(), (tmp_path / "page.html").read_text(encoding="utf-8")):
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<script" not in page and "<img" not in page and "onerror=alert(2)&gt;" in page
        assert "{{ 7 * 191 }}" in page and "1337" not in page and "root:" not in page
        assert page.count("</table>") == 1
    assert "default-src 'none'" in (tmp_path / "page.html").read_text()


def test_hostile_text_comes_through_the_other_ways_as_it_is(hostile):
    result = query(InfluenceIndex.from_pretrained(hostile))
    assert HOSTILE_TEXT in [row["text"] for row in result.to_list()]
    assert HOSTILE_TEXT in result.to_dataset()["text"]
    result.plot().savefig("/dev/null", format="svg")


# What a terminal would act on: C0 but the line feed, DEL, C1, and marks that turn the direction of writing.
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def run(*arguments):
    ran = CliRunner().invoke(program, [str(argument) for argument in arguments])
    assert not CONTROLS.search(ran.output), CONTROLS.findall(ran.output)
    return ran


def test_the_command_line_prints_no_escape_of_an_example(hostile, model):
    ran = run("attribute", hostile, model, "w1 w2 w3", "--top-k", 6)
    assert ran.exit_code == 0, ran.output
    assert "<script>alert" in ran.output and "[bold]" in ran.output


ESCAPES = "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \u202e"


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["model"].update(name=ESCAPES, model_class=ESCAPES),
        lambda values: values["modules"][0].update(name=ESCAPES),
        lambda values: values.update(objective=ESCAPES),
        lambda values: values["config"].update(target_modules=[ESCAPES]),
    ],
    ids=["model", "module", "objective", "config"],
)
def test_info_prints_no_escape_of_the_manifest(folder, change):
    edit(folder, change)
    ran = run("info", folder)
    assert ran.exit_code == 0, ran.output


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(format_version=ESCAPES),
        lambda values: values["config"].update({ESCAPES: 1}),
        lambda values: values["config"].update(dtype=ESCAPES),
        lambda values: values["config"].update(target_modules="(" + ESCAPES),
        lambda values: values["curvature"].update(file=f"../{ESCAPES}"),
        lambda values: values["curvature"].update(file=ESCAPES),
        lambda values: values["curvature"].update(sha256=ESCAPES),
        lambda values: values["modules"][0].update(name=ESCAPES, d1=10**6),
        lambda values: values["modules"][0].update(name=ESCAPES),
        lambda values: values["model"].update(auto_class=None, model_class=ESCAPES),
        lambda values: values["model"].update(weights_sha256="0", name=ESCAPES),
        lambda values: values["shards"][0].update(file=ESCAPES),
    ],
    ids=range(12),
)
@pytest.mark.parametrize("command", ["attribute", "verify"])
def test_an_error_message_prints_no_escape_of_the_manifest(folder, model, change, command):
    edit(folder, change)
    ran = run("attribute", folder, model, "w1 w2") if command == "attribute" else run("verify", folder)
    assert "Traceback" not in ran.output and (ran.exit_code == 1 or command == "verify")
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception


def test_an_error_message_prints_no_escape_of_a_table(folder, model):
    table = pq.read_table(folder / TABLE)
    pq.write_table(table.append_column(ESCAPES, pa.array([1, 2])), folder / TABLE)
    sign(folder)
    ran = run("attribute", folder, model, "w1 w2")
    assert ran.exit_code == 1 and "expected 2 of row" in ran.output


def test_an_error_message_prints_no_escape_of_a_shard(folder, model):
    """A lying header is quoted in the message: its tensor is named by the author of the file."""
    content = (folder / SHARD).read_bytes()
    length = int.from_bytes(content[:8], "little")
    declared = json.loads(content[8 : 8 + length])
    declared[ESCAPES] = {**declared.pop(f"{MODULE}.u"), "shape": [5]}
    head = json.dumps(declared).encode()
    (folder / SHARD).write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
    sign(folder)
    ran = run("attribute", folder, model, "w1 w2")
    assert ran.exit_code == 1 and "claims bytes" in ran.output


def test_jinja_in_a_name_stays_text_in_the_card(hub, folder):
    edit(folder, lambda values: values["model"].update(name="{{ 7 * 191 }}", model_class="{% include 'x' %}"))
    edit(folder, lambda values: values["dataset"].update(name="<script>alert(1)</script>"))
    (folder / "README.md").unlink()
    InfluenceIndex.from_pretrained(folder).push_to_hub(REPO, token=hub.token)
    card = hub.files(REPO, "dataset")["README.md"].decode()
    assert "1337" not in card and "<script" not in card


def test_a_license_or_language_of_nonsense_is_refused_or_harmless(hub, folder):
    edit(folder, lambda values: values["dataset"].update(license="mit\n---\n<script>x</script>", language={"a": [1]}))
    (folder / "README.md").unlink()
    try:
        InfluenceIndex.from_pretrained(folder).push_to_hub(REPO, token=hub.token)
    except LorifError:
        return
    body = hub.files(REPO, "dataset")["README.md"].decode().split("\n---\n", 1)[1]
    assert "<script" not in body


def test_a_shard_of_text_is_not_shown(folder):
    edit_tensors(folder, SHARD, lambda tensors: tensors.update({ESCAPES: torch.zeros(1)}))
    assert query(InfluenceIndex.from_pretrained(folder)).indices.shape == (1, 6)
