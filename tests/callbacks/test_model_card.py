"""An index goes beside the model that the Trainer pushes, with its token, as private as it, and the cards name one
another."""

from dataclasses import replace

import pytest
import torch
from huggingface_hub import DatasetCard, HfApi, ModelCard
from tiny import make_gpt2, make_rows, plain_config
from transformers import Trainer, TrainingArguments

from lorif_hf import InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.callbacks.model_card import destination_of, link_cards
from lorif_hf.errors import BuildFolderError
from lorif_hf.progress import bars_are_hidden


CONFIG = plain_config(projection_factor=2)


def collate(features):
    ids = torch.tensor([row["input_ids"][:3] for row in features])
    return {"input_ids": ids, "labels": ids}


def arguments(folder, **options):
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(str(folder / "out"), **{"max_steps": 1, **quiet, **options})


@pytest.fixture
def train(tmp_path):
    def trained(callback, **options):
        args = arguments(tmp_path, **options)
        trainer = Trainer(make_gpt2(), args, collate, train_dataset=make_rows(6), callbacks=[callback])
        trainer.train()
        assert callback.error is None
        return trainer

    return trained


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ((None, None, None), {}, ("my-index", None, None, None)),
        (
            (None, None, None),
            {"hub_model_id": "me/model", "hub_token": "t", "hub_private_repo": True},
            ("me/model-influence", True, "t", "me/model"),
        ),
        ((None, None, None), {"hub_model_id": "model"}, ("model-influence", None, None, None)),
        (
            ("me/other", False, "mine"),
            {"hub_model_id": "me/model", "hub_token": "t", "hub_private_repo": True},
            ("me/other", False, "mine", "me/model"),
        ),
    ],
    ids=["nothing", "the Trainer's", "no namespace", "the callback's own"],
)
def test_where_an_index_goes(tmp_path, given, options, expected):
    made = destination_of(None, arguments(tmp_path, **options), tmp_path / "my-index", *given)
    assert (made.repo_id, made.private, made.token, made.model_id) == expected


def test_both_cards_name_one_another_where_the_trainer_pushes(hub, train, tmp_path):
    callback = InfluenceCallback(tmp_path / "index", config=CONFIG, push_to_hub=True)
    trainer = train(callback, push_to_hub=True, hub_model_id="user/model", hub_token=hub.token, hub_private_repo=True)
    index_card = DatasetCard(hub.files("user/model-influence", "dataset")["README.md"].decode())
    assert index_card.data.base_model == "user/model" and '.from_pretrained("user/model")' in index_card.text
    assert hub.state.get("dataset", "user/model-influence").private and hub.state.get("model", "user/model").private
    told = 'InfluenceIndex.from_pretrained("user/model-influence")'
    assert told in hub.files("user/model")["README.md"].decode(), "said as soon as the index is there"
    trainer.push_to_hub(dataset="mine")  # which writes a card of its own, over the one that was there
    pushed = hub.files("user/model")["README.md"].decode()
    assert told in pushed and 'index.attribute("user/model"' in pushed and "the mine dataset" in pushed
    assert ModelCard(pushed).data.library_name == "transformers" and pushed.count("lorif-hf: begin") == 1
    loaded = InfluenceIndex.from_pretrained("user/model-influence", token=hub.token, cache_dir=tmp_path / "cache")
    assert len(loaded) == 6


def test_a_trainer_that_pushes_only_when_it_is_told_to_names_the_index_then(hub, train, tmp_path):
    callback = InfluenceCallback(tmp_path / "my-index", config=CONFIG, push_to_hub=True, token=hub.token)
    trainer = train(callback, hub_token=hub.token)
    assert callback.destination.repo_id == "user/my-index"
    assert not HfApi(token=hub.token).repo_exists("user/out")
    trainer.push_to_hub()
    assert 'from_pretrained("user/my-index")' in hub.files("user/out")["README.md"].decode()
    assert 'attribute("user/out"' in hub.files("user/out")["README.md"].decode()


def test_an_index_that_is_not_pushed_changes_no_card(hub, train, tmp_path):
    trainer = train(
        InfluenceCallback(tmp_path / "index", config=CONFIG),
        push_to_hub=True,
        hub_model_id="user/m",
        hub_token=hub.token,
    )
    trainer.push_to_hub()
    assert "lorif" not in hub.files("user/m")["README.md"].decode()


def test_a_card_that_cannot_be_reached_costs_nothing(hub, train, tmp_path, caplog, sleeps):
    hub.faults.add("POST /api/models/user/m/commit.*", "status", status=403, times=None)
    callback = InfluenceCallback(tmp_path / "index", config=CONFIG, push_to_hub=True)
    train(callback, push_to_hub=True, hub_model_id="user/m", hub_token=hub.token)
    assert callback.index is not None and "The card of user/m does not say yet" in caplog.text


def test_a_card_that_is_no_text_is_left_as_it_is(tmp_path, caplog):
    index = InfluenceIndex.build(make_gpt2(), make_rows(4), tmp_path / "index", config=CONFIG)
    trainer = Trainer(make_gpt2(), arguments(tmp_path), collate, train_dataset=make_rows(4))
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "README.md").write_bytes(b"\xff\xfe mine")
    link_cards(trainer, index, "me/index", None)
    assert (tmp_path / "out" / "README.md").read_bytes() == b"\xff\xfe mine"
    assert "does not say where the influence index is" in caplog.text


def test_the_models_card_names_the_dataset_that_was_trained_on(tmp_path):
    index = InfluenceIndex.build(make_gpt2(), make_rows(4), tmp_path / "index", config=CONFIG)
    known = {"name": "org/texts", "revision": "c0ffee"}
    index.manifest = replace(index.manifest, dataset=index.manifest.dataset | known)
    trainer = Trainer(make_gpt2(), arguments(tmp_path), collate, train_dataset=make_rows(4))
    link_cards(trainer, index, "me/index", None)
    trainer.create_model_card()
    card = ModelCard((tmp_path / "out" / "README.md").read_text())
    assert card.data.datasets == ["org/texts"] and "me/index" in card.text


def test_overwrite_replaces_the_index_of_an_earlier_training_at_its_end(train, tmp_path):
    train(InfluenceCallback(tmp_path / "index", config=CONFIG))
    with pytest.raises(BuildFolderError, match="or pass overwrite=True to replace it"):
        train(InfluenceCallback(tmp_path / "index", config=CONFIG))
    seen = []

    class Watching(InfluenceCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append(len(InfluenceIndex.from_pretrained(tmp_path / "index")))

    again = Watching(tmp_path / "index", config=replace(CONFIG, seed=1), overwrite=True)
    train(again)
    assert seen == [6] and again.index.path == tmp_path / "index" and again.index.config.seed == 1
    again.index.verify()


def test_a_push_that_failed_records_nothing_again(hub, train, tmp_path, monkeypatch):
    callback = InfluenceCallback(
        tmp_path / "index", config=CONFIG, overwrite=True, push_to_hub=True, repo_id="user/x", token=hub.token
    )
    InfluenceIndex.build(make_gpt2(seed=3), make_rows(4), tmp_path / "index", config=CONFIG)

    def fail(self, *args):
        raise ConnectionError("the line is dead")

    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(InfluenceIndex, "_push", fail)
        train(callback)
    assert isinstance(callback.error, ConnectionError) and len(InfluenceIndex.from_pretrained(tmp_path / "index")) == 6
    monkeypatch.setattr("lorif_hf.building.builder.IndexBuilder.record", None)
    assert len(callback.record()) == 6 and "influence_config.json" in hub.files("user/x", "dataset")


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_the_trainers_switch_hides_the_bars_of_the_pass(train, tmp_path, monkeypatch, disable_tqdm):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    shown = []

    class Watching(InfluenceCallback):
        def _recorded(self, *args):
            shown.append(not bars_are_hidden())
            return super()._recorded(*args)

    train(Watching(tmp_path / "index", config=CONFIG), disable_tqdm=disable_tqdm)
    assert shown == [not disable_tqdm] and not bars_are_hidden()
