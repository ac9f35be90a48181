"""Fixtures of the local Hub's own tests."""

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem, hf_hub_download

from local_hub import LocalHub
from local_hub.sample import CONTENT, DATASET, REPO, SHARD


@pytest.fixture
def hub():
    """A Hub of the test's own: some tests take it down."""
    with LocalHub() as own_hub:
        yield own_hub
    assert own_hub.errors == []


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def repo(api):
    """A dataset repo of a text and an LFS shard."""
    api.create_repo(REPO, **DATASET)
    operations = [CommitOperationAdd("a.txt", b"hello"), CommitOperationAdd(SHARD, CONTENT)]
    return api.create_commit(REPO, operations, commit_message="first", **DATASET)


@pytest.fixture
def download(hub, repo, tmp_path):
    def run(filename=SHARD, repo_id=REPO, token=hub.token, **options):
        path = hf_hub_download(
            repo_id, filename, endpoint=hub.endpoint, token=token, cache_dir=tmp_path, **DATASET, **options
        )
        with open(path, "rb") as file:
            return file.read()

    return run


@pytest.fixture
def read_range(hub, repo):
    def run(start=1000, stop=5000):
        filesystem = HfFileSystem(endpoint=hub.endpoint, token=hub.token, skip_instance_cache=True)
        with filesystem.open(f"datasets/{REPO}/{SHARD}", cache_type="none") as file:
            file.seek(start)
            return file.read(stop - start)

    return run
