"""The app as a Space, on the local Hub."""

import re
from pathlib import Path

import pytest
import yaml
from app_rows import rows, talker, words
from huggingface_hub import HfApi
from tiny import plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.app import push_space
from lorif_hf.app.space import space_files
from lorif_hf.errors import HubAccessError, IndexNotFoundError, PublishError


EXAMPLE = Path(__file__).parents[2] / "examples" / "space"


@pytest.fixture
def published(hub, tmp_path, monkeypatch):
    """An index and its model on the Hub, and the version of Gradio that is pushed."""
    monkeypatch.setattr("lorif_hf.app.space._gradio", lambda: "6.31.0")
    model = talker()
    index = InfluenceIndex.build(model, rows(6), tmp_path / "index", config=plain_config(), processing_class=words())
    index.push_to_hub("user/my-index", token=hub.token)
    api = HfApi(token=hub.token)
    api.create_repo("user/my-model")
    model.save_pretrained(tmp_path / "model")
    api.upload_folder(repo_id="user/my-model", folder_path=tmp_path / "model")
    return hub


def test_the_example_is_what_is_pushed():
    made = space_files("me/my-index", "me/my-model", gradio="6.31.0")
    assert {path.name: path.read_text(encoding="utf-8") for path in EXAMPLE.iterdir()} == made
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", made["README.md"], re.DOTALL)[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["sdk_version"] == "6.31.0"
    assert front["models"] == ["me/my-model"] and front["datasets"] == ["me/my-index"]
    assert len(front["short_description"]) <= 60, "the Hub takes no more"
    compile(made["app.py"], "app.py", "exec")


def test_a_space_is_pushed_in_one_commit_and_again(published):
    commit = push_space("user/my-space", "user/my-index", "user/my-model", token=published.token)
    assert commit.repo_url.repo_id == "user/my-space"
    files = published.files("user/my-space", "space")
    assert files["app.py"].decode() == space_files("user/my-index", "user/my-model")["app.py"]
    assert len(published.commits("user/my-space", "space")) == 2, "the one of its making, and ours"
    api = HfApi(token=published.token)
    assert api.repo_info("user/my-space", repo_type="space").sdk == "gradio"
    names = {key: variable.value for key, variable in api.get_space_variables("user/my-space").items()}
    assert names == {"INDEX": "user/my-index", "MODEL": "user/my-model"}
    api.upload_file(path_or_fileobj=b"x", path_in_repo="own.txt", repo_id="user/my-space", repo_type="space")
    push_space("my-space", "user/my-index", "user/my-model", revision="main", token=published.token)
    assert api.get_space_variables("user/my-space")["REVISION"].value == "main"
    assert published.files("user/my-space", "space")["own.txt"] == b"x"
    push_space("my-space", "user/my-index", "user/my-model", token=published.token)
    assert "REVISION" not in api.get_space_variables("user/my-space")
    for text in published.files("user/my-space", "space").values():
        assert published.token.encode() not in text


@pytest.mark.parametrize(
    "names, error, message",
    [
        (("user/my-space", "./my-index", "user/my-model"), PublishError, "index from the Hub.*lorif-hf push"),
        (("user/my-space", "user/my-index", "/root/model"), PublishError, "model from the Hub.*push_to_hub"),
        (("user/my space", "user/my-index", "user/my-model"), PublishError, "is no repo id"),
        (("user/my-space", "user/none", "user/my-model"), IndexNotFoundError, "No dataset repo 'user/none'"),
        (("user/my-space", "user/my-index", "user/none"), IndexNotFoundError, "No model repo 'user/none'"),
    ],
    ids=["folder", "model folder", "space", "no index", "no model"],
)
def test_what_a_space_cannot_be_made_of_is_said_before_it_is_made(published, names, error, message):
    with pytest.raises(error, match=message):
        push_space(*names, token=published.token)
    assert not HfApi(token=published.token).repo_exists("user/my-space", repo_type="space")


def test_a_token_that_may_not_write_is_told(published):
    with pytest.raises(HubAccessError, match="needs the write role"):
        push_space("user/my-space", "user/my-index", "user/my-model", token=published.read_token)
