"""An index in a folder of a repo, of a dataset or a model, and of a folder here; and no way out of either."""

import shutil

import pytest
import torch
from huggingface_hub import HfApi
from published import queries, served
from tiny import make_gpt2

from lorif_hf import InfluenceIndex
from lorif_hf.errors import ConfigError, IndexFormatError, IndexNotFoundError


MODEL = "user/my-model"


@pytest.fixture
def uploaded(hub, built):
    """The index in a folder of a model's repo, and in one of a dataset's."""
    api = HfApi(token=hub.token)
    for kind in ("model", "dataset"):
        api.create_repo(MODEL, repo_type=kind)
        api.upload_folder(repo_id=MODEL, folder_path=built[0].path, path_in_repo="runs/first", repo_type=kind)
    hub.reset_log()
    return built


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_an_index_in_a_folder_of_a_repo_scores_as_it_does_here(hub, uploaded, load, repo_type, streaming):
    index = load(MODEL, subfolder="runs/first/", repo_type=repo_type, streaming=streaming)
    assert index.commit == hub.commits(MODEL, repo_type)[0].oid
    assert torch.equal(index.scores(make_gpt2(), queries()), uploaded[1])
    assert index.attribute(make_gpt2(), queries(), top_k=1).to_list()[0]["text"] is not None
    assert all(name.startswith("runs/first/") for name in served(hub))
    index.verify()


def test_an_index_in_a_folder_of_a_folder(built, tmp_path):
    shutil.copytree(built[0].path, tmp_path / "all" / "first")
    assert len(InfluenceIndex.from_pretrained(tmp_path / "all", subfolder="first")) == 24
    with pytest.raises(IndexFormatError, match="holds no index: expected a folder with influence_config.json"):
        InfluenceIndex.from_pretrained(tmp_path / "all")
    with pytest.raises(IndexFormatError, match=r"all/second does not exist"):
        InfluenceIndex.from_pretrained(tmp_path / "all", subfolder="second")


@pytest.mark.parametrize(
    "subfolder", ["..", "../x", "a/../../x", "/etc", "a\\b", "C:/x", "a\0b", "a//b", "./a", 3, ["a"]], ids=repr
)
def test_a_way_out_is_refused_before_anything_is_asked_for(hub, uploaded, tmp_path, subfolder):
    for path in (MODEL, str(tmp_path)):
        with pytest.raises(IndexFormatError, match="must be a plain path inside the repo or folder"):
            InfluenceIndex.from_pretrained(path, subfolder=subfolder)
    assert hub.requests == []


def test_a_link_out_of_the_folder_is_refused(built, tmp_path):
    (tmp_path / "cloned").mkdir()
    (tmp_path / "cloned" / "first").symlink_to(built[0].path, target_is_directory=True)
    with pytest.raises(IndexFormatError, match="must be a plain path inside"):
        InfluenceIndex.from_pretrained(tmp_path / "cloned", subfolder="first")


def test_what_is_not_there_is_told_with_its_folder(hub, uploaded, load):
    with pytest.raises(IndexFormatError, match="The model repo .* it has no other/influence_config.json"):
        load(MODEL, subfolder="other", repo_type="model")
    with pytest.raises(
        IndexFormatError, match="The model repo .* it has no influence_config.json. Check the name, the"
    ):
        load(MODEL, repo_type="model")
    with pytest.raises(IndexNotFoundError, match="No model repo 'user/nothing'"):
        load("user/nothing", repo_type="model", subfolder="a")


@pytest.mark.parametrize("repo_type", ["space", "models", None, 1])
def test_another_type_of_repo_is_refused(repo_type):
    with pytest.raises(ConfigError, match="repo_type must be one of dataset, model, got"):
        InfluenceIndex.from_pretrained(MODEL, repo_type=repo_type)
