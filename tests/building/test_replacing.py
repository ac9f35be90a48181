"""An old index stays until the new one is whole; then that stands in its place, and what else lay there with it."""

import hashlib

import pytest
from tiny import make_gpt2, make_rows, plain_config
from transformers import GPT2LMHeadModel

from lorif_hf import InfluenceEnsemble, InfluenceIndex
from lorif_hf.building import replacing
from lorif_hf.building.builder import IndexBuilder
from lorif_hf.building.replacing import beside, folder_to_build
from lorif_hf.errors import BuildFolderError, StorageError
from lorif_hf.storage.claim import INDEX_FOLDER


OLD, NEW = plain_config(projection_factor=2, shard_size=4), plain_config(projection_factor=2, shard_size=4, seed=1)


def build(folder, config=NEW, **options):
    return InfluenceIndex.build(make_gpt2(), make_rows(8), folder, config=config, **options)


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def old(tmp_path):
    return build(tmp_path / "index", OLD).path


def broken(monkeypatch, error=ZeroDivisionError):
    """A build that ends before its curvature."""
    patch = monkeypatch.context()
    entered = patch.__enter__()

    def fail(self):
        raise error

    entered.setattr(IndexBuilder, "_fit_all", fail)
    return patch


def test_without_overwrite_another_index_is_refused(old):
    kept = contents(old)
    with pytest.raises(BuildFolderError, match="holds an index of another model, dataset or config"):
        build(old)
    assert contents(old) == kept and not beside(old).exists()


def test_the_new_index_is_that_of_an_empty_folder_and_nothing_of_the_old_stays(old, tmp_path):
    index = build(old, overwrite=True)
    assert index.path == old and index.config == NEW
    assert contents(old) == contents(build(tmp_path / "other").path)
    index.verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "other"]


def test_the_old_index_stays_until_the_new_one_is_whole_and_the_build_goes_on(old, monkeypatch, tmp_path):
    kept = contents(old)
    with pytest.raises(ZeroDivisionError):
        patch = broken(monkeypatch)
        try:
            build(old, overwrite=True)
        finally:
            patch.__exit__(None, None, None)
    assert contents(old) == kept
    InfluenceIndex.from_pretrained(old).verify()
    begun = beside(old) / "index" / "factors" / "factors-00001.safetensors"
    written = begun.stat().st_mtime_ns
    moments = []
    monkeypatch.setattr(replacing, "_settle", lambda *folders: moments.append(begun.stat().st_mtime_ns))
    monkeypatch.setattr(replacing.Path, "rename", lambda *_: None)
    build(old, overwrite=True)
    assert moments[0] == written, "the shard of the first try is not recorded again"


def test_another_build_beside_is_thrown_away(old, monkeypatch):
    patch = broken(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        build(old, overwrite=True)
    patch.__exit__(None, None, None)
    third = plain_config(projection_factor=2, shard_size=3, seed=2)
    index = build(old, third, overwrite=True)
    assert index.config == third and not beside(old).exists()
    index.verify()
    assert len(list((old / "factors").iterdir())) == 3


def test_an_unfinished_build_of_another_is_replaced_in_its_folder_and_the_same_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "index"
    patch = broken(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        build(folder, OLD)
    patch.__exit__(None, None, None)
    with pytest.raises(BuildFolderError, match="holds an unfinished build of another model"):
        build(folder)
    assert build(folder, overwrite=True).config == NEW
    assert contents(folder) == contents(build(tmp_path / "other").path)


@pytest.mark.parametrize("damage", ["no JSON", "{}", "[1]"])
def test_a_note_that_cannot_be_read_is_of_another_build(tmp_path, monkeypatch, damage):
    folder = tmp_path / "index"
    patch = broken(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        build(folder)
    patch.__exit__(None, None, None)
    (folder / ".lorif-build" / "build.json").write_text(damage)
    assert contents(build(folder, overwrite=True).path) == contents(build(tmp_path / "other").path)


def test_what_else_lies_there_and_the_owners_words_are_kept(old):
    (old / "notes.txt").write_text("mine")
    (old / "plots").mkdir()
    (old / "plots" / "a.txt").write_text("mine too")
    card = (old / "README.md").read_text()
    (old / "README.md").write_text(card.replace("---\n\n", "---\n\nMy words.\n\n", 1))
    build(old, overwrite=True)
    assert (old / "notes.txt").read_text() == "mine" and (old / "plots" / "a.txt").read_text() == "mine too"
    renewed = (old / "README.md").read_text()
    assert "My words." in renewed and "| `seed` | `1` |" in renewed and renewed.count("lorif-hf: begin") == 1


def test_a_card_that_cannot_be_read_costs_no_index(old, caplog):
    (old / "README.md").write_text("---\na: [\n---\nMine\n")
    index = build(old, overwrite=True)
    assert index.config == NEW and (old / "README.md").read_text() == "---\na: [\n---\nMine\n"
    assert "The YAML of README.md cannot be read" in caplog.text and "stays as it was" in caplog.text


def test_a_folder_of_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.tex").write_text("mine")
    with pytest.raises(BuildFolderError, match="is not empty and holds neither an index"):
        build(tmp_path / "index", overwrite=True)
    assert contents(tmp_path / "index").keys() == {"thesis.tex"}


def test_a_link_stays_a_link(old, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(old, target_is_directory=True)
    index = build(link, overwrite=True)
    assert link.is_symlink() and index.path == link and InfluenceIndex.from_pretrained(old).config == NEW


@pytest.mark.parametrize("renames", [1, 2], ids=["between the renames", "after both"])
def test_a_process_killed_while_it_replaces_loses_neither_index(old, tmp_path, monkeypatch, renames):
    (old / "notes.txt").write_text("mine")
    rename, done = replacing.Path.rename, []

    def killed(path, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(replacing.Path, "rename", killed)
        build(old, overwrite=True)
    assert (beside(old) / "replaced" / "notes.txt").read_text() == "mine"
    index = build(old, overwrite=True)
    assert index.config == NEW and (old / "notes.txt").read_text() == "mine" and not beside(old).exists()
    index.verify()


def test_a_folder_that_cannot_be_renamed_is_told_and_both_are_kept(old, monkeypatch):
    def refused(path, target):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="this user may not write there"):
        patch.setattr(replacing.Path, "rename", refused)
        build(old, overwrite=True)
    assert InfluenceIndex.from_pretrained(old).config == OLD
    assert build(old, overwrite=True).config == NEW


def test_only_one_process_replaces_an_index(old):
    with INDEX_FOLDER.held(beside(old)), pytest.raises(BuildFolderError, match="Another process is building"):
        build(old, overwrite=True)
    assert InfluenceIndex.from_pretrained(old).config == OLD


def test_where_nothing_is_replaced_the_build_is_in_its_folder(tmp_path):
    assert folder_to_build(tmp_path / "index", overwrite=True) == tmp_path / "index"
    build(tmp_path / "index", overwrite=True)
    assert folder_to_build(tmp_path / "index", overwrite=False) == tmp_path / "index"
    assert folder_to_build(tmp_path / "index", overwrite=True) == beside(tmp_path / "index") / "index"


def test_an_ensemble_is_replaced_while_it_is_unfinished_and_never_half(tmp_path, monkeypatch):
    checkpoints = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(checkpoints):
        make_gpt2(seed).save_pretrained(folder)

    def build_all(config, **options):
        how = {"weights": [1.0, 1.0], "config": config, **options}
        load = GPT2LMHeadModel.from_pretrained
        return InfluenceEnsemble.build(load, checkpoints, make_rows(8), tmp_path / "all", **how)

    build(tmp_path / "all" / "model-0001", OLD)  # which an ensemble of OLD had begun with
    patch = broken(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        build_all(NEW, overwrite=True)
    patch.__exit__(None, None, None)
    assert [index.config for index in build_all(NEW, overwrite=True).indices] == [NEW, NEW]
    assert len(list((tmp_path / "all").iterdir())) == 3
    with pytest.raises(BuildFolderError, match="half old and half new meanwhile: choose another folder"):
        build_all(OLD, overwrite=True)
    assert [index.config for index in InfluenceEnsemble.from_pretrained(tmp_path / "all").indices] == [NEW, NEW]


def test_the_same_index_is_left_as_it_is_unless_it_is_damaged(old, monkeypatch):
    before = (old / "factors" / "factors-00001.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(IndexBuilder, "record", None)
        assert build(old, OLD, overwrite=True).config == OLD
    assert (old / "factors" / "factors-00001.safetensors").stat().st_mtime_ns == before
    assert not beside(old).exists()
    content = bytearray((old / "factors" / "factors-00002.safetensors").read_bytes())
    content[-1] ^= 1
    (old / "factors" / "factors-00002.safetensors").write_bytes(content)
    build(old, OLD, overwrite=True).verify()
