"""The local Hub, asked by the real client."""

import hashlib
import subprocess
import sys

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from local_hub.sample import CONTENT, DATASET, REPO, SHARD


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_create_upload_download_delete(hub, api, tmp_path, kind):
    options = {"space_sdk": "static"} if kind == "space" else {}
    url = api.create_repo("user/x", repo_type=kind, private=True, **options)
    assert (url.repo_id, url.repo_type) == ("user/x", kind)
    assert api.create_repo("user/x", repo_type=kind, exist_ok=True, **options) == url
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("user/x", repo_type=kind, **options)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a b/c.txt", repo_id="user/x", repo_type=kind)
    path = hf_hub_download(
        "user/x", "a b/c.txt", repo_type=kind, endpoint=hub.endpoint, token=hub.token, cache_dir=tmp_path
    )
    assert open(path, "rb").read() == b"1"
    info = api.repo_info("user/x", repo_type=kind, files_metadata=True)
    assert getattr(info, "sdk", None) == options.get("space_sdk")
    assert info.private and {s.rfilename: s.size for s in info.siblings}["a b/c.txt"] == 1
    api.delete_repo("user/x", repo_type=kind)
    assert not api.repo_exists("user/x", repo_type=kind)


def test_lfs_upload_and_unchanged_commit(hub, api, repo, tmp_path):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert hub.uploaded() == [(sha256, len(CONTENT))]
    assert hub.files(REPO, "dataset")[SHARD] == CONTENT
    (tmp_path / "shards").mkdir()
    (tmp_path / "a.txt").write_bytes(b"hello")
    (tmp_path / SHARD).write_bytes(CONTENT)
    hub.reset_log()
    again = api.upload_folder(repo_id=REPO, folder_path=tmp_path, **DATASET)
    assert again.oid == repo.oid and len(hub.commits(REPO, "dataset")) == 2
    assert not hub.uploaded() and not any("commit/main" in request.path for request in hub.requests)
    api.upload_file(path_or_fileobj=CONTENT, path_in_repo="copy.parquet", repo_id=REPO, **DATASET)
    assert not hub.uploaded() and hub.files(REPO, "dataset")["copy.parquet"] == CONTENT


def test_deletions_history_and_listings(hub, api, repo):
    tree = {entry.path: entry for entry in api.list_repo_tree(REPO, recursive=True, expand=True, **DATASET)}
    assert set(tree) == {".gitattributes", "a.txt", "shards", SHARD} and tree[SHARD].lfs.size == len(CONTENT)
    assert [e.path for e in api.get_paths_info(REPO, ["shards", "a.txt", "no"], **DATASET)] == ["shards", "a.txt"]
    with pytest.raises(RemoteEntryNotFoundError):
        api.delete_file("no.txt", REPO, **DATASET)
    api.delete_folder("shards", REPO, **DATASET)
    assert set(hub.files(REPO, "dataset")) == {".gitattributes", "a.txt"}
    assert hub.files(REPO, "dataset", repo.oid)[SHARD] == CONTENT
    assert len(api.list_repo_commits(REPO, **DATASET)) == 3


def test_refs_pull_requests_and_parent(hub, api, repo):
    api.create_branch(REPO, branch="dev/x", **DATASET)
    api.create_tag(REPO, tag="v1", **DATASET)
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=REPO, revision="dev/x", **DATASET)
    pull = api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id=REPO, create_pr=True, **DATASET)
    assert (pull.pr_num, pull.pr_revision) == (1, "refs/pr/1")
    api.upload_file(path_or_fileobj=b"4", path_in_repo="b.txt", repo_id=REPO, revision="refs/pr/1", **DATASET)
    contents = {rev: hub.files(REPO, "dataset", rev)["a.txt"] for rev in ("main", "v1", "dev/x", "refs/pr/1")}
    assert contents == {"main": b"hello", "v1": b"hello", "dev/x": b"2", "refs/pr/1": b"3"}
    refs = api.list_repo_refs(REPO, include_pull_requests=True, **DATASET)
    assert [[ref.name for ref in group] for group in (refs.branches, refs.tags, refs.pull_requests)] == [
        ["main", "dev/x"],
        ["v1"],
        ["refs/pr/1"],
    ]
    with pytest.raises(HfHubHTTPError, match="412"):
        operation = CommitOperationAdd("c.txt", b"5")
        api.create_commit(REPO, [operation], commit_message="late", parent_commit="0" * 40, **DATASET)
    api.delete_branch(REPO, branch="dev/x", **DATASET)
    api.delete_tag(REPO, tag="v1", **DATASET)
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(REPO, revision="v1")


def test_ranges(hub, repo, download, read_range):
    assert read_range() == CONTENT[1000:5000] and hub.bytes_served(".safetensors") == 4000
    assert download() == CONTENT and hub.bytes_served() == 4000 + len(CONTENT)
    url = f"{hub.endpoint}/datasets/{REPO}/resolve/main/{SHARD}"
    answers = [httpx2.get(url, headers={"Range": f"bytes={wanted}"}) for wanted in ("5-", "-5", "9999999-")]
    assert [a.status_code for a in answers] == [206, 206, 416]
    assert [a.headers["Content-Range"] for a in answers] == [
        "bytes 5-1023999/1024000",
        "bytes 1023995-1023999/1024000",
        "bytes */1024000",
    ]


def test_who_may_do_what(hub, api, repo, download):
    other = hub.add_token("hf_other", "other")
    api.create_repo("user/secret", private=True, **DATASET)
    for token, missing in [(False, "user/none"), (False, "user/secret"), (other, "user/secret"), (other, "data")]:
        with pytest.raises(RepositoryNotFoundError):
            download(repo_id=missing, token=token)
    assert HfApi(endpoint=hub.endpoint, token=hub.read_token).dataset_info("user/secret").private
    assert download(token=False) == CONTENT
    with pytest.raises(HfHubHTTPError, match="401"):  # a wrong token is refused even where none is needed
        download("a.txt", token="hf_wrong")
    for token, status in [(hub.read_token, 403), (other, 403), (False, 401)]:
        with pytest.raises(HfHubHTTPError, match=str(status)):
            HfApi(endpoint=hub.endpoint, token=token).delete_file("a.txt", REPO, **DATASET)
    with pytest.raises(RevisionNotFoundError):
        download(revision="no")
    with pytest.raises(RemoteEntryNotFoundError):
        download("no.txt")
    hub.set_gated(REPO, "dataset", allowed_users=("friend",))
    assert download(token=hub.add_token("hf_friend", "friend"), force_download=True) == CONTENT
    with pytest.raises(GatedRepoError):
        download("a.txt", token=other)


def test_readme_metadata(api, repo):
    upload = {"path_in_repo": "README.md", "repo_id": REPO, **DATASET}
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        api.upload_file(path_or_fileobj=b"# no metadata", **upload)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\nnot a mapping\n---\n", **upload)
    api.upload_file(path_or_fileobj=b"---\ntags:\n- a\n---\n# fine\n", **upload)


def test_load_dataset_then_offline(hub, api, tmp_path):
    api.create_repo("user/rows", private=True, **DATASET)
    rows = b'{"x": 1}\n{"x": 2}\n'
    api.upload_file(path_or_fileobj=rows, path_in_repo="train.jsonl", repo_id="user/rows", **DATASET)
    code = "import datasets; print(datasets.load_dataset('user/rows', split='train')['x'][:])"

    def load(**extra):
        environment = {**hub.environment(tmp_path), **extra}
        run = subprocess.run(
            [sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True
        )
        assert run.stdout.strip() == "[1, 2]", run.stderr

    load()
    assert hub.bytes_served("train.jsonl") == len(rows)
    hub.reset_log()
    load(HF_HUB_OFFLINE="1")
    assert hub.requests == []
