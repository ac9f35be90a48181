"""`verify`: any flipped bit of any file is found, and whatever else no build writes."""

import json
import os
import random
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from tampering import REPO, edit, edit_tensors, sign, upload
from tiny import make_gpt2, make_rows, plain_config
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.curvature.encoding import draw_projection
from lorif_hf.errors import IndexCorruptedError, IndexFormatError
from lorif_hf.querying import verify
from lorif_hf.storage.examples import SCHEMA, write_examples
from lorif_hf.storage.layout import CARD, CURVATURE, LDS, MANIFEST, ModuleEntry
from lorif_hf.storage.measured_lds import LDSRecord


SHARD, TABLE = "factors/factors-00002.safetensors", "data/train-00002.parquet"
MODULE = "transformer.h.0.attn.c_attn"
CONFIGS = {
    "whitened": InfluenceConfig(factor_rank=2, shard_size=2),
    "low-rank": plain_config(projection_factor=2, shard_size=2),
    "weighted": InfluenceConfig.trak(projection_dim=16, shard_size=2),
}
FLIPS = int(os.environ.get("LORIF_FLIPS", "200"))


def with_everything(folder, config):
    """An index with every file that one can have."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")
    index = InfluenceIndex.build(make_gpt2(), make_rows(6), folder, config=config, processing_class=tokenizer)
    index.save_lds(LDSRecord(0.5, 0.95, 0.4, 0.6, None, None, 3, 50, 2, 0.9, "user/bank", index.manifest.build))
    return folder


@pytest.fixture(scope="module", params=CONFIGS)
def built(request, tmp_path_factory):
    return with_everything(tmp_path_factory.mktemp("built") / "index", CONFIGS[request.param])


@pytest.fixture(scope="module")
def low_rank(tmp_path_factory):
    return with_everything(tmp_path_factory.mktemp("low-rank") / "index", CONFIGS["low-rank"])


@pytest.fixture
def folder(low_rank, tmp_path):
    return shutil.copytree(low_rank, tmp_path / "index")


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def flip(path, bit):
    """Flip a bit in place; size and time stay what they were."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_index_as_it_was_built_is_good(built):
    index = InfluenceIndex.from_pretrained(built)
    index.verify()
    index.select([0, 3]).verify()
    assert {MANIFEST, CARD, LDS, CURVATURE, SHARD, TABLE, "tokenizer/tokenizer.json"} <= set(files_of(built))


def test_every_flipped_bit_of_every_file_is_found(built, tmp_path):
    """By one process, which has verified and read the index before, and keeps neither sizes nor times from it."""
    folder = shutil.copytree(built, tmp_path / "index")
    index = InfluenceIndex.from_pretrained(folder)
    index.verify()
    index.self_influence()
    chooser = random.Random(str(built.parent.name))
    names = [name for name in files_of(folder) if name != CARD]
    missed = []
    for number in range(FLIPS):
        name = names[number % len(names)]
        bit = chooser.randrange(8 * (folder / name).stat().st_size)
        flip(folder / name, bit)
        try:
            index.verify()
            missed.append((name, bit))
        except (IndexCorruptedError, IndexFormatError) as error:
            assert name in str(error), f"bit {bit} of {name}: {error}"
        flip(folder / name, bit)
    print(f"found {FLIPS - len(missed)} of {FLIPS} flipped bits, in {len(names)} files")
    assert not missed
    index.verify()


def test_a_flipped_bit_of_the_manifest_is_found_when_the_index_is_loaded(folder):
    chooser = random.Random(0)
    for _ in range(50):
        bit = chooser.randrange(8 * (folder / MANIFEST).stat().st_size)
        flip(folder / MANIFEST, bit)
        with pytest.raises((IndexCorruptedError, IndexFormatError), match=MANIFEST.partition(".")[0]):
            InfluenceIndex.from_pretrained(folder)
        flip(folder / MANIFEST, bit)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", [MANIFEST, SHARD, TABLE, CURVATURE, "tokenizer/tokenizer.json", LDS])
def test_a_flipped_bit_in_the_cache_of_the_hub_is_found(hub, folder, tmp_path, streaming, name):
    upload(hub, folder)
    index = InfluenceIndex.from_pretrained(REPO, cache_dir=tmp_path / "cache", streaming=streaming)
    index.verify()
    flip((index.path / name).resolve(), 3001)
    with pytest.raises((IndexCorruptedError, IndexFormatError), match=name):
        index.verify()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_is_missing_on_the_hub_is_named(hub, folder, tmp_path, streaming):
    (folder / SHARD).unlink()
    upload(hub, folder)
    with pytest.raises(IndexCorruptedError, match=f"{SHARD}: it is missing"):
        InfluenceIndex.from_pretrained(REPO, cache_dir=tmp_path / "cache", streaming=streaming).verify()


@pytest.mark.parametrize("name", [MANIFEST, SHARD, TABLE, CURVATURE, "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "a folder", "empty"])
def test_a_file_that_went_or_became_something_else_is_named(folder, name, damage):
    index = InfluenceIndex.from_pretrained(folder)
    index.verify()
    (folder / name).unlink()
    if damage == "a folder":
        (folder / name).mkdir()
    elif damage == "empty":
        (folder / name).touch()
    with pytest.raises((IndexCorruptedError, IndexFormatError), match=name):
        index.verify()


def test_a_file_that_the_disk_does_not_give_is_named(folder, monkeypatch):
    index = InfluenceIndex.from_pretrained(folder)

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("lorif_hf.storage.files.file_sha256", fail)
    with pytest.raises(IndexCorruptedError, match=f"{CURVATURE}: it cannot be opened or read .*Input/output error"):
        index.verify()


def test_a_manifest_that_is_another_good_one_by_now_is_told(folder, tmp_path):
    index = InfluenceIndex.from_pretrained(folder)
    edit(folder, lambda values: values["dataset"].update(name="another"))
    InfluenceIndex.from_pretrained(folder).verify()
    with pytest.raises(IndexCorruptedError, match=f"{MANIFEST}: it is no longer the one that was loaded"):
        index.verify()


# What a manifest vouches for and is wrong all the same


@pytest.mark.parametrize("number", [0, -1], ids=["the first layer", "the last layer"])
def test_a_projection_that_is_not_the_one_that_was_used_is_found_for_every_layer(folder, number):
    names = []

    def change(values):
        names.append(values["modules"][number]["name"])
        values["modules"][number]["projection_sha256"] = "0" * 64

    edit(folder, change)
    with pytest.raises(
        IndexCorruptedError, match=rf"{MANIFEST}: the projection of module '{names[0]}' .* another hash"
    ):
        InfluenceIndex.from_pretrained(folder).verify()


def test_another_seed_draws_other_projections(folder):
    edit(folder, lambda values: values["config"].update(seed=values["config"]["seed"] + 1))
    with pytest.raises(IndexCorruptedError, match=f"the projection of module '{MODULE}'"):
        InfluenceIndex.from_pretrained(folder).verify()


def test_a_projection_of_any_size_that_somebody_claims_is_not_drawn(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(verify, "checked_projection", lambda module, config: drawn.append(module))
    edit(folder, lambda values: values["modules"][0].update(in_features=2**40))
    with pytest.raises(
        IndexCorruptedError, match=rf"the projection of module '{MODULE}' would take [\d,]{{13,}} bytes"
    ):
        InfluenceIndex.from_pretrained(folder).verify()
    assert drawn == []


def test_experts_are_drawn_where_a_dense_layer_of_as_many_outputs_would_be_too_large():
    config = InfluenceConfig.grad_dot(projection_factor=1)
    entry = ModuleEntry("experts", "experts", 4, 1 << 21, 4, 1 << 15, "", out_width=1 << 15)
    with pytest.raises(IndexCorruptedError, match="another hash"):
        verify._check_projection(entry, config)
    verify._check_projection(replace(entry, projection_sha256=draw_projection(entry, config)[1]), config)
    with pytest.raises(IndexCorruptedError, match="would take 43,980,465,111,040 bytes"):
        verify._check_projection(replace(entry, out_features=1 << 40, out_width=1 << 15), config)


def test_a_header_that_is_not_the_one_that_is_vouched_for_is_found(folder):
    edit(folder, lambda values: values["shards"][1].update(header_sha256="0" * 64))
    with pytest.raises(IndexCorruptedError, match=f"{SHARD}: its header is not the one that the manifest vouches for"):
        InfluenceIndex.from_pretrained(folder).verify()


@pytest.mark.parametrize("change", ["another", "none"])
def test_a_tensor_without_its_hash_in_the_header_is_found(folder, change):
    """Whoever streams the index trusts them."""
    tensors = load_file(folder / SHARD)
    hashes = dict.fromkeys(tensors, "0" * 64) if change == "another" else {}
    save_file(tensors, folder / SHARD, {"sha256": json.dumps(hashes)})
    sign(folder)
    with pytest.raises(IndexCorruptedError, match=f"{SHARD}: tensor '.*' does not have the hash that the header"):
        InfluenceIndex.from_pretrained(folder).verify()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "both"])
def test_a_factor_that_is_no_number_is_found(folder, value):
    def change(tensors):
        flat = tensors[f"{MODULE}.v"].view(-1)
        flat[-1] = float("inf") if value == "both" else value
        flat[0] = -float("inf") if value == "both" else flat[0]

    edit_tensors(folder, SHARD, change)
    with pytest.raises(IndexCorruptedError, match=f"{SHARD}: the factors of '{MODULE}' are not all finite numbers"):
        InfluenceIndex.from_pretrained(folder).verify()


def test_factors_that_are_large_but_finite_are_good(folder):
    edit_tensors(folder, SHARD, lambda tensors: tensors[f"{MODULE}.v"].fill_(3e38))
    InfluenceIndex.from_pretrained(folder).verify()


def test_a_weight_that_is_no_number_is_found(tmp_path):
    folder = with_everything(tmp_path / "index", CONFIGS["weighted"])
    edit_tensors(folder, SHARD, lambda tensors: tensors["weights"].__setitem__(1, float("nan")))
    with pytest.raises(IndexCorruptedError, match=f"{SHARD}: tensor 'weights' holds numbers that no weight has"):
        InfluenceIndex.from_pretrained(folder).verify()


def table_of(folder, **changes):
    """The second table, rows 2 and 3, with other columns."""
    columns = pq.read_table(folder / TABLE).to_pydict()
    write_examples(folder / TABLE, columns | changes)
    sign(folder)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("column", ["loss", "self_influence", "num_tokens"])
def test_a_number_that_is_none_is_found_in_every_row_of_the_tables(folder, column, value, place):
    if column == "num_tokens" and value is not None:
        pytest.skip("the column cannot hold it")
    columns = pq.read_table(folder / TABLE).to_pydict()
    columns[column][place] = value
    table_of(folder, **{column: columns[column]})
    with pytest.raises(
        IndexCorruptedError, match=f"{TABLE}: row {2 + place} calls itself {2 + place} or holds no finite"
    ):
        InfluenceIndex.from_pretrained(folder).verify()


@pytest.mark.parametrize("rows, row", [([3, 2], 2), ([2, 2], 3), ([0, 1], 2), ([2, None], 3)])
def test_rows_that_are_numbered_otherwise_are_found(folder, rows, row):
    table_of(folder, row=rows)
    with pytest.raises(IndexCorruptedError, match=f"{TABLE}: row {row} calls itself"):
        InfluenceIndex.from_pretrained(folder).verify()


def test_a_damaged_page_that_the_manifest_vouches_for_is_found(folder):
    content = (folder / TABLE).read_bytes()
    place = content.index(b"text 3")
    (folder / TABLE).write_bytes(content[:place] + b"Text" + content[place + 4 :])
    sign(folder)
    with pytest.raises(IndexCorruptedError, match=f"{TABLE}: it is no Parquet file .*(?i:crc|checksum|page)"):
        InfluenceIndex.from_pretrained(folder).verify()


def test_a_text_that_is_not_utf8_is_found(folder):
    table = pq.read_table(folder / TABLE)
    bad = pa.array([b"\xff\xfe", b"x"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(2, "text", bad).cast(SCHEMA), folder / TABLE)
    sign(folder)
    with pytest.raises(IndexCorruptedError, match=TABLE):
        InfluenceIndex.from_pretrained(folder).verify()


def test_a_score_that_was_edited_is_found(folder):
    values = json.loads((folder / LDS).read_text())
    (folder / LDS).write_text(json.dumps(values | {"mean": 0.9}))
    with pytest.raises(IndexCorruptedError, match=f"{LDS}: its record_sha256 is another"):
        InfluenceIndex.from_pretrained(folder).verify()


def test_the_words_of_the_card_are_its_owners(folder):
    (folder / CARD).write_text((folder / CARD).read_text().replace("index", "Index") + "\nMy own words.\n")
    InfluenceIndex.from_pretrained(folder).verify()
    (folder / CARD).unlink()
    InfluenceIndex.from_pretrained(folder).verify()


def test_it_shows_how_far_it_is(folder, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, what, unit):
            self.total, self.what, self.done = total, what, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            self.done += count

    monkeypatch.setattr(verify, "progress", Bar)
    index = InfluenceIndex.from_pretrained(folder)
    index.verify()
    assert [(bar.what, bar.done) for bar in bars] == [("Verifying", bars[0].total)]
    assert bars[0].total == len(index.manifest.files) + 2 * 8 + 3 + 3
