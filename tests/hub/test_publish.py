"""Publishing: checked first, then one commit; what was interrupted goes on, and a reader never sees half an index."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from tiny import make_gpt2, make_rows, plain_config
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from lorif_hf import InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import HubAccessError, HubConnectionError, IndexCorruptedError, PublishError
from lorif_hf.hub.cards import index_card
from lorif_hf.hub.destination import Destination
from lorif_hf.hub.publish import FORMAT_TAG, publish
from lorif_hf.storage.files import file_entry
from lorif_hf.storage.layout import signed
from lorif_hf.tasks.collation import PaddingCollator


REPO = "user/my-index"
CONFIG = plain_config(projection_factor=2, shard_size=2)
TOKEN = "hf_" + "aB3" * 11 + "x"  # 34 characters after the prefix, as real ones have


def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")


def build(path, count=8, **options):
    return InfluenceIndex.build(make_gpt2(), make_rows(count), path, config=CONFIG, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built") / "index", processing_class=tokenizer()).path


@pytest.fixture
def index(built, tmp_path):
    """An index of 4 shards with a tokenizer, in a folder of the test's own."""
    shutil.copytree(built, tmp_path / "index")
    return InfluenceIndex.from_pretrained(tmp_path / "index")


@pytest.fixture
def older(hub, tmp_path):
    """A larger index that the repo holds already; returns its files there."""
    build(tmp_path / "older", count=13).push_to_hub(REPO, token=hub.token)
    files = hub.files(REPO, "dataset")
    hub.reset_log()
    return files


def sent(hub):
    return [sha256 for sha256, _ in hub.uploaded()]


def large_files(index):
    """The hashes of what goes to the Hub as LFS objects."""
    return sorted(e.sha256 for e in index.manifest.files if e.file.endswith((".safetensors", ".parquet")))


def writes(hub):
    """The requests that change or send anything but the repo itself."""
    kinds = ("preupload", "lfs", "commit/", "/tag/", "/branch/")
    return [r.path for r in hub.requests if r.method in ("POST", "PUT") and any(kind in r.path for kind in kinds)]


def test_one_commit_holds_everything(hub, index):
    commit = index.push_to_hub(REPO, token=hub.token, commit_message="My words", commit_description="And more")
    newest, first = hub.commits(REPO, "dataset")
    assert isinstance(commit, CommitInfo) and commit.oid == newest.oid and commit.pr_url is None
    assert (newest.title, newest.description) == ("My words", "And more")
    assert list(first.files) == [".gitattributes"], "before it there was nothing"
    files = hub.files(REPO, "dataset")
    wanted = {entry.file for entry in index.manifest.files} | {"influence_config.json", "README.md", ".gitattributes"}
    assert set(files) == wanted
    assert all(files[name] == (index.path / name).read_bytes() for name in wanted - {"README.md", ".gitattributes"})
    assert sorted(sent(hub)) == large_files(index) and not hub.state.get("dataset", REPO).private


def test_every_commit_ever_seen_is_a_whole_index(hub, older, index, tmp_path):
    index.push_to_hub(REPO, token=hub.token)
    build(tmp_path / "third", count=5).push_to_hub(REPO, token=hub.token)
    commits = [commit.oid for commit in hub.commits(REPO, "dataset")][:-1]
    seen = [InfluenceIndex.from_pretrained(REPO, revision=commit) for commit in commits]
    for whole in seen:
        whole.verify()
    assert [len(whole) for whole in seen] == [5, 8, 13]


def test_an_unchanged_push_makes_no_commit_and_sends_nothing(hub, index):
    first = index.push_to_hub(REPO, token=hub.token)
    hub.reset_log()
    again = index.push_to_hub(REPO, token=hub.token)
    assert again.oid == first.oid and len(hub.commits(REPO, "dataset")) == 2
    assert sent(hub) == [] and not any("/commit/" in request.path for request in hub.requests)


@pytest.mark.parametrize(
    ("match", "fault"),
    [
        ("PUT /_lfs/{shard}", {"kind": "drop", "after": 100}),
        ("PUT /_lfs/{shard}", {"kind": "drop", "after": 100, "reset": True}),
        ("PUT /_lfs/{shard}", {"kind": "status", "status": 500}),
        ("PUT /_lfs/{shard}", {"kind": "corrupt", "offset": 50}),
        ("POST .*/objects/batch", {"kind": "status", "status": 503}),
        ("POST .*/commit/main", {"kind": "status", "status": 500}),
    ],
    ids=["drop", "reset", "500", "corrupt", "batch 503", "commit 500"],
)
def test_an_interrupted_push_leaves_the_old_index_and_goes_on_where_it_stopped(
    hub, older, index, sleeps, match, fault
):
    hub.faults.add(match.format(shard=index.manifest.shards[1].sha256), times=None, **fault)
    with pytest.raises(
        HubConnectionError, match=rf"The Hub failed at {REPO} \(\w.*\)\. Try again: what is done is kept"
    ):
        index.push_to_hub(REPO, token=hub.token)
    assert hub.files(REPO, "dataset") == older
    assert len(InfluenceIndex.from_pretrained(REPO, token=hub.token)) == 13
    hub.faults.clear()
    index.push_to_hub(REPO, token=hub.token)
    assert sorted(sent(hub)) == large_files(index), "each object was sent once, over both pushes"
    InfluenceIndex.from_pretrained(REPO, token=hub.token).verify()


@pytest.mark.slow
def test_a_push_killed_before_its_commit_is_not_seen(hub, older, index, tmp_path):
    last = index.manifest.shards[-1].sha256
    hub.faults.add(f"PUT /_lfs/{last}", "slow", seconds=30)
    script = "import sys, lorif_hf; lorif_hf.InfluenceIndex.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2])"
    command = [sys.executable, "-c", script, str(index.path), REPO]
    process = subprocess.Popen(command, env=hub.environment(tmp_path / "home"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(sent(hub)) < len(large_files(index)) - 1 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len(sent(hub)) == len(large_files(index)) - 1
    assert hub.files(REPO, "dataset") == older
    hub.reset_log()
    index.push_to_hub(REPO, token=hub.token)
    assert sent(hub) == [last]
    assert len(InfluenceIndex.from_pretrained(REPO, token=hub.token)) == 8


def test_a_branch_is_made_and_main_is_left_alone(hub, older, index):
    index.push_to_hub(REPO, token=hub.token, revision="next")
    assert hub.files(REPO, "dataset") == older
    assert len(InfluenceIndex.from_pretrained(REPO, revision="next")) == 8
    assert hub.state.get("dataset", REPO).tags[FORMAT_TAG] == hub.commits(REPO, "dataset")[0].oid


def test_a_pull_request_does_not_touch_main_also_in_someone_elses_repo(hub, older, index):
    commit = index.push_to_hub(REPO, token=hub.add_token("hf_stranger", "stranger"), create_pr=True)
    assert commit.pr_url.endswith(f"/datasets/{REPO}/discussions/1") and commit.pr_revision == "refs/pr/1"
    assert hub.files(REPO, "dataset") == older
    assert len(InfluenceIndex.from_pretrained(REPO, revision="refs/pr/1")) == 8
    build(index.path.parent / "better", count=6).push_to_hub(REPO, token=hub.token, revision="refs/pr/1")
    assert len(InfluenceIndex.from_pretrained(REPO, revision="refs/pr/1")) == 6
    assert hub.files(REPO, "dataset") == older


def test_shards_of_an_older_index_go_and_the_owners_files_stay(hub, older, index):
    mine = {"notes.md": b"mine", "images/x.png": b"\x89PNG"}
    operations = [CommitOperationAdd(name, content) for name, content in mine.items()]
    HfApi(token=hub.token).create_commit(REPO, operations, commit_message="mine", repo_type="dataset")
    index.push_to_hub(REPO, token=hub.token)
    newest, mine_too, *_ = hub.commits(REPO, "dataset")
    assert newest.parent == mine_too.oid, "additions and deletions are one commit"
    files = hub.files(REPO, "dataset")
    ours = {entry.file for entry in index.manifest.files}
    assert set(files) == ours | set(mine) | {"influence_config.json", "README.md", ".gitattributes"}
    assert "factors/factors-00007.safetensors" in older
    assert mine.items() <= files.items()


def test_someone_elses_commit_meanwhile_is_not_overwritten(hub, older, index):
    asked = []

    def meanwhile(name, existing):
        asked.append(existing)
        if len(asked) == 1:  # of the card beside the index, before the repo is looked at
            return ""
        HfApi(token=hub.token).upload_file(
            path_or_fileobj=b"theirs", path_in_repo="notes.md", repo_id=REPO, repo_type="dataset"
        )
        return index_card(index.manifest, index.config, name, existing)

    with pytest.raises(HubConnectionError, match=f"'{REPO}' was changed by someone else meanwhile: push again"):
        publish(index._store, index.manifest, Destination(REPO, token=hub.token), meanwhile)
    assert hub.files(REPO, "dataset") == {**older, "notes.md": b"theirs"}


@pytest.mark.parametrize("failing", [None, "POST .*/tag/", "DELETE .*/tag/"])
def test_the_format_tag_follows_main_also_after_a_push_that_failed_at_it(hub, older, index, sleeps, failing):
    tags = hub.state.get("dataset", REPO).tags
    assert FORMAT_TAG == "lorif-format-1" and tags == {FORMAT_TAG: hub.commits(REPO, "dataset")[0].oid}
    if failing:
        hub.faults.add(failing, "status", times=None)
        with pytest.raises(HubConnectionError):
            index.push_to_hub(REPO, token=hub.token)
        hub.faults.clear()
    commit = index.push_to_hub(REPO, token=hub.token)
    assert tags == {FORMAT_TAG: commit.oid}


@pytest.mark.parametrize("exists", [False, True], ids=["new repo", "existing repo"])
@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        (REPO, "hf_read", "This token may not do that with 'user/my-index': it needs the write role"),
        (REPO, "hf_wrong", r"does not accept this token for 'user/my-index': log in again \(hf auth login\)"),
        (REPO, False, r"log in( again)? \(hf auth login\)"),
        ("stranger/index", "hf_write", "the repo must be yours or your organisation's"),
    ],
    ids=["read-only", "wrong", "none", "foreign namespace"],
)
def test_a_token_that_may_not_is_told_what_to_do(hub, index, exists, repo, token, message):
    if exists:
        HfApi(token=hub.add_token("hf_owner", repo.split("/")[0])).create_repo(repo, repo_type="dataset")
    with pytest.raises(HubAccessError, match=message):
        index.push_to_hub(repo, token=token)
    assert sent(hub) == []


@pytest.mark.parametrize("repo", ["", "user/my index", "a/b/c", "user/", "/my-index", "user/-index", "x" * 97, "ü/x"])
def test_a_bad_repo_id_is_refused_before_any_request(hub, index, repo, tmp_path):
    for push in (index.push_to_hub, lambda repo: build(tmp_path / "new", push_to_hub=True, repo_id=repo or "user/")):
        with pytest.raises(PublishError, match="is no repo id .*it must look like 'user/my-index'"):
            push(repo)
    assert hub.requests == [] and not (tmp_path / "new" / "factors").exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("number", [0, 3, 6, 9], ids=["curvature", "factors", "examples", "tokenizer"])
def test_a_damaged_file_is_found_before_the_first_byte_leaves(hub, index, number, damage):
    file = index.manifest.files[number].file
    content = (index.path / file).read_bytes()
    (index.path / file).unlink()
    if damage != "delete":
        changed = content[:-1] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1])
        (index.path / file).write_bytes(changed)
    with pytest.raises(IndexCorruptedError, match="restore or download it again, or rebuild") as caught:
        InfluenceIndex.from_pretrained(index.path).push_to_hub(REPO, token=hub.token)
    assert caught.value.file == file and writes(hub) == []


def leak(index, where, secret):
    """The index with `secret` in one of its files."""
    if where in {"text", "example_id"}:
        rows = make_rows(4).map(lambda row, i: {"text": f"it says {secret}, {i}"}, with_indices=True)
        if where == "example_id":
            rows = rows.rename_columns({"text": "example_id", "example_id": "text"})
        return InfluenceIndex.build(make_gpt2(), rows, index.path.parent / "leaking")
    if where == "README.md":
        (index.path / where).write_text(f"# Mine\n\n`{secret}`\n")
        return index
    changed = (index.path / where).read_text().replace("{", f'{{"note": {json.dumps(secret)}, ', 1)
    (index.path / where).write_text(changed)
    manifest = json.loads((index.path / "influence_config.json").read_text())
    entry = file_entry(index.path, where)  # vouched for by whoever made it
    (described,) = [described for described in manifest["tokenizer"] if described["file"] == where]
    described.update(bytes=entry.bytes, sha256=entry.sha256)
    (index.path / "influence_config.json").write_text(signed(json.dumps(manifest)))
    return InfluenceIndex.from_pretrained(index.path)


@pytest.mark.parametrize("secret", [TOKEN, "hf_my-own-token"], ids=["looks like one", "the one in use"])
@pytest.mark.parametrize("where", ["text", "example_id", "tokenizer/tokenizer.json", "README.md"])
def test_an_access_token_does_not_leave_the_machine(hub, index, where, secret):
    token = hub.add_token("hf_my-own-token", "user")
    leaking = leak(index, where, secret)
    file = where if "." in where else "data/train-00001.parquet"
    with pytest.raises(PublishError, match=f"{file} holds an access token of Hugging Face. .*revoke it"):
        leaking.push_to_hub(REPO, token=token)
    assert writes(hub) == []


@pytest.mark.parametrize("home", ["{tmp}/somebody", "{tmp}/Jörg", "/train", None], ids=["home", "ö", "short", "cwd"])
def test_a_path_of_this_machine_does_not_leave_it_unless_a_person_wrote_it(hub, index, home, tmp_path, monkeypatch):
    path = (home or "{tmp}").format(tmp=tmp_path)
    monkeypatch.setenv("HOME", path) if home else monkeypatch.chdir(path)
    leak(index, "text", f"{path}/models").push_to_hub(REPO, token=hub.token)
    hub.reset_log()
    leaking = leak(index, "tokenizer/tokenizer_config.json", f"{path}/models")
    with pytest.raises(PublishError, match="tokenizer/tokenizer_config.json holds a path of this machine. Take it"):
        leaking.push_to_hub(REPO, token=hub.token)
    assert writes(hub) == []


def test_a_selection_is_a_view_and_stays_here(hub, index, tmp_path):
    view = index.select([1, 2])
    for leave in (lambda: view.push_to_hub(REPO), lambda: view.save_pretrained(tmp_path / "copy")):
        with pytest.raises(PublishError, match="A selection of rows is a view: save or push the index that it was"):
            leave()
    assert hub.requests == [] and not (tmp_path / "copy").exists()


def test_shards_leave_before_the_build_ends_and_leave_once(hub, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ArithmeticError("the curvature cannot be fitted")

    options = {"push_to_hub": True, "repo_id": REPO, "token": hub.token, "private": True}
    with monkeypatch.context() as patch, pytest.raises(ArithmeticError):
        patch.setattr("lorif_hf.curvature.low_rank.LowRankCurvature.fit", fail)
        build(tmp_path / "index", **options)
    early = sent(hub)
    assert len(early) == 4 and hub.state.get("dataset", REPO).private
    assert list(hub.files(REPO, "dataset")) == [".gitattributes"], "nobody sees them yet"
    index = build(tmp_path / "index", **options)
    assert {shard.sha256 for shard in index.manifest.shards} == set(early)
    assert sorted(sent(hub)) == large_files(index), "none was sent twice"
    assert len(hub.commits(REPO, "dataset")) == 2


def test_an_early_upload_that_fails_is_made_up_for_by_the_push(hub, tmp_path, sleeps, caplog):
    hub.faults.add("PUT /_lfs/", "status", status=500, times=6)  # the client gives up on the first shard
    index = build(tmp_path / "index", push_to_hub=True, repo_id=REPO, token=hub.token)
    assert "A file could not be uploaded early: The Hub failed at factors/factors-00001" in caplog.text
    assert sorted(sent(hub)) == large_files(index)
    InfluenceIndex.from_pretrained(REPO, token=hub.token).verify()


@pytest.mark.parametrize("token", ["hf_wrong", "hf_read"])
def test_a_token_that_may_not_push_shows_before_anything_is_recorded(hub, tmp_path, token):
    with pytest.raises(HubAccessError):
        build(tmp_path / "index", push_to_hub=True, repo_id=REPO, token=token)
    assert not (tmp_path / "index" / "factors").exists()
    callback = InfluenceCallback(tmp_path / "index", push_to_hub=True, repo_id=REPO, token=token)
    with pytest.raises(HubAccessError):
        train(tmp_path, callback)
    assert callback.index is None


def train(folder, callback):
    arguments = TrainingArguments(str(folder / "out"), max_steps=1, report_to="none", save_strategy="no", use_cpu=True)
    collator = PaddingCollator(0, make_labels=True)
    Trainer(make_gpt2(), arguments, collator, make_rows(6), callbacks=[callback]).train()


def test_the_callback_and_save_pretrained_push(hub, index, tmp_path):
    callback = InfluenceCallback(tmp_path / "trained", push_to_hub=True, repo_id=REPO, token=hub.token, private=True)
    train(tmp_path, callback)
    loaded = InfluenceIndex.from_pretrained(REPO, token=hub.token)
    assert loaded.manifest == callback.index.manifest and hub.state.get("dataset", REPO).private
    index.save_pretrained(tmp_path / "copy", push_to_hub=True, repo_id="user/saved", token=hub.token)
    index.save_pretrained(tmp_path / "named-by-folder", push_to_hub=True, token=hub.token)
    for repo in ("user/saved", "user/named-by-folder"):
        assert InfluenceIndex.from_pretrained(repo, token=hub.token).manifest == index.manifest
