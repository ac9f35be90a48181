"""Is every byte of an index what was written? Read anew, whatever this process has read of it before."""

import hashlib
from collections.abc import Sequence

import torch

from ..config import InfluenceConfig
from ..curvature.encoding import checked_projection, stored_entries
from ..errors import IndexCorruptedError, ModelMismatchError
from ..progress import progress
from ..storage.examples import check_examples
from ..storage.files import TensorReader, header_sha256, tensor_bytes, verified
from ..storage.layout import MANIFEST, FactorShard, ModuleEntry, TensorEntry, read_manifest
from ..storage.measured_lds import read_lds
from ..storage.shards import ShardReader
from ..storage.store import LocalStore, Store
from .queried_index import QueriedIndex


_MOST_DRAWN = 1 << 34  # bytes of a layer's projection: a manifest from anybody could claim any size
_OF_BLOCKS = 40  # bytes for each output of a layer of experts, while their orders are drawn


def verify_index(index: QueriedIndex, store: Store) -> None:
    """Read every file of an index and check it; download what is not here.

    The manifest is read again and must hold its own hash; every file must have the size and hash that it says; the
    tensors must have the shapes that config and layers make, and the tables their rows, both finite throughout; the
    projections are drawn and compared with their hashes. Only the card's words are its owner's.

    Args:
        index (`QueriedIndex`): its manifest and config. A selection of rows is verified whole.
        store (`Store`): where its files are.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`], [`~lorif_hf.errors.IndexFormatError`]: name the first file that is
            not what it should be.
        [`~lorif_hf.errors.HubError`]: a file could not be downloaded.
    """
    manifest, config = index.manifest, index.config
    if read_manifest(store.folder) != manifest:
        raise IndexCorruptedError(MANIFEST, "it is no longer the one that was loaded")
    stored = stored_entries(config, manifest.modules)
    steps = len(manifest.files) + len(manifest.modules) + len(stored) + len(manifest.shards) + len(manifest.examples)
    with progress(steps, "Verifying", "checks") as bar:
        for entry in manifest.files:
            store.provide(entry.file)
            verified(store.folder, entry, again=True)
            bar.update(1)
        read_lds(store, manifest)
        for module in manifest.modules:
            _check_projection(module, config)
            bar.update(1)
        here = LocalStore(store.folder)  # with nothing mapped or kept by an earlier query
        _check_header(here, manifest.curvature)
        reader = ShardReader(here, manifest.shards, manifest.curvature, index.codec.layout)
        for module in stored:
            tensors, first_pass = reader.curvature(module), index.curvature.first_pass
            index.curvature.load(tensors, module)
            if first_pass is not None:
                first_pass.load(tensors, module)
            bar.update(1)
        for shard in manifest.shards:
            _check_shard(reader, shard, stored, config.weighted)
            bar.update(1)
        for table in manifest.examples:
            check_examples(here, table)
            bar.update(1)


def _check_projection(module: ModuleEntry, config: InfluenceConfig) -> None:
    """Draw a layer's projection and compare it with the hash of the one that was used."""
    (i, o), (d1, d2) = (module.in_features, module.out_features), (module.d1, module.d2)
    outputs = _OF_BLOCKS * o if module.widths[1] < o else o * d2 * (o != d2)
    drawn = i * d1 * (i != d1) + outputs + (0 if config.projection_dim is None else 12 * d1 * d2)
    if drawn > _MOST_DRAWN:
        raise IndexCorruptedError(MANIFEST, f"the projection of module '{module.name}' would take {drawn:,} bytes")
    try:
        checked_projection(module, config)
    except ModelMismatchError as error:
        raise IndexCorruptedError(
            MANIFEST,
            f"the projection of module '{module.name}' that its config and seed draw has another hash than "
            f"{module.projection_sha256[:12]!r}",
        ) from error


def _check_shard(reader: ShardReader, shard: FactorShard, stored: Sequence[ModuleEntry], weighted: bool) -> None:
    """The header by which single tensors are trusted, the tensors' own hashes, their shapes, and their numbers."""
    _check_header(reader.store, shard)
    _check_hashes(reader.store.tensors(shard))
    if weighted:
        reader.weights(shard)
    for name, parts in reader.load(shard, stored).items():
        if not all(bool(torch.isfinite(part).all()) for part in parts.values()):
            raise IndexCorruptedError(shard.file, f"the factors of '{name}' are not all finite numbers")


def _check_header(store: Store, entry: FactorShard | TensorEntry) -> None:
    if header_sha256(store.path(entry)) != entry.header_sha256:
        raise IndexCorruptedError(entry.file, "its header is not the one that the manifest vouches for")


def _check_hashes(file: TensorReader) -> None:
    for name, span in file.spans.items():
        if hashlib.sha256(tensor_bytes(file.read(name))).hexdigest() != span.sha256:
            raise IndexCorruptedError(file.file, f"tensor '{name}' does not have the hash that the header declares")
