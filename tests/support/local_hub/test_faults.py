"""What the real client makes of each fault: facts that the product has to live with."""

import os

import httpx2
import pytest
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from local_hub.sample import CONTENT, DATASET, REPO, SHARD


def test_status_on_head_is_retried(hub, download, sleeps):
    hub.faults.add(f"HEAD .*{SHARD}", "status", status=500, times=2)
    assert download() == CONTENT and sleeps == [1]
    assert [r.status for r in hub.requests if r.method == "HEAD"] == [500, 500, 200]


def test_status_on_get_of_a_download_is_not_retried(hub, download, sleeps):
    hub.faults.add(f"GET .*{SHARD}", "status", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        download()
    assert sleeps == [] and download() == CONTENT


def test_drop_in_a_download_is_resumed(hub, api, download, sleeps):
    content = os.urandom(constants.DOWNLOAD_CHUNK_SIZE + 1000)
    api.upload_file(path_or_fileobj=content, path_in_repo="big.parquet", repo_id=REPO, **DATASET)
    hub.faults.add("GET .*big.parquet", "drop", after=constants.DOWNLOAD_CHUNK_SIZE + 500)
    assert download("big.parquet") == content and sleeps == [1]
    ranges = [r.range for r in hub.requests if r.method == "GET"]
    assert ranges == [None, f"bytes={constants.DOWNLOAD_CHUNK_SIZE}-"]


def test_reset_in_a_download_is_not_retried(hub, download, sleeps):
    hub.faults.add(f"GET .*{SHARD}", "drop", after=500_000, reset=True)
    with pytest.raises(httpx2.ReadError):
        download()
    assert sleeps == []


def test_drop_of_a_head_is_not_retried_at_once(hub, download, sleeps):
    fault = hub.faults.add("HEAD", "drop")
    with pytest.raises(httpx2.RemoteProtocolError):
        download()
    assert fault.fired == 1 and sleeps == []


def test_corrupt_download_goes_unnoticed(hub, download):
    hub.faults.add(f"GET .*{SHARD}", "corrupt", offset=7)
    content = download()
    assert len(content) == len(CONTENT) and [i for i in range(20) if content[i] != CONTENT[i]] == [7]


def test_slow_download_times_out_and_is_retried(hub, download, sleeps, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    fault = hub.faults.add(f"GET .*{SHARD}", "slow", seconds=1)
    assert download() == CONTENT and fault.fired == 1 and sleeps == [1]


@pytest.mark.parametrize(
    "kind, options", [("status", {"status": 503}), ("drop", {"after": 10}), ("drop", {"after": 10, "reset": True})]
)
def test_range_reads_are_retried(hub, read_range, sleeps, kind, options):
    hub.faults.add("GET .*resolve", kind, times=5, **options)
    assert read_range() == CONTENT[1000:5000] and sleeps == [1, 2, 4, 8, 8]
    hub.faults.add("GET .*resolve", kind, times=6, **options)
    with pytest.raises((HfHubHTTPError, httpx2.TransportError)):
        read_range()


@pytest.mark.parametrize("kind, options", [("status", {"status": 500}), ("drop", {"after": 300_000})])
def test_uploads_are_retried(hub, api, repo, sleeps, kind, options):
    hub.faults.add("PUT", kind, times=2, **options)
    api.upload_file(path_or_fileobj=CONTENT[1:], path_in_repo="b.parquet", repo_id=REPO, **DATASET)
    assert hub.files(REPO, "dataset")["b.parquet"] == CONTENT[1:] and sleeps == [1, 2]


def test_corrupt_upload_is_refused(hub, api, repo):
    hub.faults.add("PUT", "corrupt")
    with pytest.raises(RuntimeError, match="b.parquet") as error:
        api.upload_file(path_or_fileobj=CONTENT[1:], path_in_repo="b.parquet", repo_id=REPO, **DATASET)
    assert error.value.__cause__.response.status_code == 400
    assert "b.parquet" not in hub.files(REPO, "dataset")


def test_commit_is_not_retried(hub, api, repo, sleeps):
    upload = {"path_in_repo": "b.txt", "repo_id": REPO, **DATASET}
    hub.faults.add("POST .*commit", "status", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        api.upload_file(path_or_fileobj=b"1", **upload)
    hub.faults.add("POST .*commit", "drop")  # made, but the answer is lost
    with pytest.raises(httpx2.RemoteProtocolError):
        api.upload_file(path_or_fileobj=b"1", **upload)
    assert sleeps == [] and hub.files(REPO, "dataset")["b.txt"] == b"1"


def test_endpoint_down(hub, download, tmp_path, sleeps):
    hub.close()
    with pytest.raises(LocalEntryNotFoundError):
        download()
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(REPO, endpoint=hub.endpoint, token=hub.token, cache_dir=tmp_path, **DATASET)
