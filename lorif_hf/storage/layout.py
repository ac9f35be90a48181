"""Every file name of an index and its manifest, in one place."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args, get_origin

from ..coverage import Coverage
from ..errors import IndexCorruptedError, IndexFormatError


FORMAT_VERSION = "1.0"

_LARGEST_MANIFEST = 1 << 25  # bytes of JSON that are read at all

MANIFEST = "influence_config.json"
CARD = "README.md"
CURVATURE = "curvature/curvature.safetensors"
TOKENIZER = "tokenizer"
FOLDERS = ("factors", "curvature", "data", TOKENIZER, "evaluation")  # they hold an index's files alone
LDS = "evaluation/lds.json"  # how good the index was measured to be, once it was: not part of the manifest
STAGING = ".lorif-build"  # an unfinished build's own notes; gone when the index is whole

_OWN_HASH = "manifest_sha256"
_UNSIGNED = 64 * "0"


def factor_file(shard: int) -> str:
    """Name of the factor file of shard 0, 1, ... It does not say how many there are: rows may be appended."""
    return f"factors/factors-{shard + 1:05d}.safetensors"


def example_file(shard: int) -> str:
    """Name of the example table of shard 0, 1, ..."""
    return f"data/train-{shard + 1:05d}.parquet"


@dataclass(frozen=True)
class FileEntry:
    """A file of the index: its path inside, its size in bytes and its SHA-256."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorEntry(FileEntry):
    """A safetensors file of which single tensors are read.

    Args:
        header_sha256 (`str`): of the file's header: a reader of single tensors can trust the hashes that stand in it.
    """

    header_sha256: str


@dataclass(frozen=True)
class Shard(FileEntry):
    """A file with one entry per example: rows `start` to `start + rows`."""

    start: int
    rows: int

    @property
    def stop(self) -> int:
        return self.start + self.rows


@dataclass(frozen=True)
class FactorShard(Shard):
    """A factor file.

    Args:
        header_sha256 (`str`): as of a [`TensorEntry`].
    """

    header_sha256: str


@dataclass(frozen=True)
class ModuleEntry:
    """A tracked layer: I x O projected to d1 x d2, with the hash of its projection's signs.

    Args:
        followed (`bool`): whether its weight is followed through functions, since its calls do not tell all.
        parameter (`str`): what the module calls the parameter.
        in_width, out_width (`int`, *optional*): how much of a side is kept at most, where that is less than all of it.
            Outputs then come in blocks of that width (experts).
        input_of (`str`, *optional*): the last module that has the same inputs: their projection and their whitener
            are kept under its name.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    d1: int
    d2: int
    projection_sha256: str
    followed: bool = False
    parameter: str = "weight"
    in_width: int | None = None
    out_width: int | None = None
    input_of: str | None = None

    @property
    def widths(self) -> tuple[int, int]:
        """What a projection with `projection_factor=1` keeps of (I, O)."""
        return self.in_width or self.in_features, self.out_width or self.out_features

    @property
    def is_table(self) -> bool:
        """Whether the side of I is too wide for a matrix I x I, so that its second moment is the diagonal of one."""
        return self.in_width is not None


@dataclass(frozen=True)
class Manifest:
    """`influence_config.json`: what the index is, and every file of it.

    Args:
        config (`dict`): the `InfluenceConfig` as JSON values.
        objective (`str`): name of the training objective.
        model (`dict`): identity of the model that was recorded.
        dataset (`dict`): what is known of where the rows come from.
        num_examples (`int`): N.
        modules (`list[ModuleEntry]`): the tracked layers, in the model's order.
        shards (`list[FactorShard]`): factor files, in row order.
        examples (`list[Shard]`): example tables, in row order.
        curvature (`TensorEntry`): the curvature file.
        tokenizer (`list[FileEntry]`): files of the processing class, if one was given.
        build (`str`): fingerprint of config, model and rows.
        coverage (`Coverage`): which of the trained parameters are tracked.
        alone (`bool`): whether rows went, and queries go, through the model one at a time.
        extensions (`dict[str, str]`): the kinds that are none of this library's, by name -> the module that registers
            them, for people to import.
    """

    config: dict[str, Any]
    objective: str
    model: dict[str, Any]
    num_examples: int
    modules: list[ModuleEntry]
    shards: list[FactorShard]
    examples: list[Shard]
    curvature: TensorEntry
    build: str
    dataset: dict[str, Any] = field(default_factory=dict)
    tokenizer: list[FileEntry] = field(default_factory=list)
    extensions: dict[str, str] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)
    alone: bool = False
    format_version: str = FORMAT_VERSION

    @property
    def files(self) -> list[FileEntry]:
        """Every file that the manifest vouches for."""
        return [self.curvature, *self.shards, *self.examples, *self.tokenizer]

    def to_json(self) -> str:
        """The text of the file. It holds its own hash: what it says of the other files is itself checked."""
        return signed_json(asdict(self), _OWN_HASH)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read a manifest that may come from anybody. Fields that this version does not know are ignored.

        Raises:
            [`~lorif_hf.errors.IndexFormatError`]: it is no manifest, or of a format this version does not know.
            [`~lorif_hf.errors.IndexCorruptedError`]: a field has an impossible value, a path leaves the folder, or the
            text is not the one that was written.
        """
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise IndexFormatError(f"{MANIFEST} is not JSON ({error}): this is not a lorif-hf index.") from error
        if not isinstance(values, dict) or not isinstance(values.get("format_version"), str):
            raise IndexFormatError(f"{MANIFEST} has no format_version: this is not a lorif-hf index.")
        check_version(values["format_version"])
        held = _checked(values.get(_OWN_HASH), _OWN_HASH, str)
        _require(signature(text, _OWN_HASH) == held, f"its {_OWN_HASH} is another")
        manifest = cls(**{known.name: _field(values, known) for known in fields(cls)})
        manifest._check()
        return manifest

    def _check(self) -> None:
        for entry in self.files:
            check_relative(entry.file)
            _require(re.fullmatch(r"[0-9a-f]{64}", entry.sha256) is not None, f"the SHA-256 of {entry.file} is none")
        names = [entry.file for entry in self.files]
        _require(len(set(names)) == len(names), "a file is listed twice")
        for shards, what in ((self.shards, "shards"), (self.examples, "examples")):
            row = 0
            for shard in shards:
                _require(shard.rows > 0 and shard.start == row, f"the {what} do not follow one another at row {row}")
                row = shard.stop
            _require(row == self.num_examples, f"the {what} hold {row} rows, num_examples says {self.num_examples}")
        _require(bool(self.modules), "there is no module")
        _require(all(isinstance(name, str) for name in self.extensions.values()), "an extension is no module's name")
        _require(len({module.name for module in self.modules}) == len(self.modules), "a module is listed twice")
        for module in self.modules:
            widths = module.widths
            sides = (module.in_features, widths[0], module.d1), (module.out_features, widths[1], module.d2)
            good = all(1 <= d <= width <= full for full, width, d in sides) and module.out_features % widths[1] == 0
            _require(good, f"module '{module.name}' has an impossible shape")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the index in a folder.

    Raises:
        [`~lorif_hf.errors.IndexFormatError`], [`~lorif_hf.errors.IndexCorruptedError`]: as in
            [`~Manifest.from_json`]; also where the file cannot be read.
    """
    try:
        if (folder / MANIFEST).stat().st_size > _LARGEST_MANIFEST:
            raise IndexFormatError(f"{MANIFEST} of {folder} has over {_LARGEST_MANIFEST:,} bytes: no index has.")
        text = (folder / MANIFEST).read_bytes().decode(errors="replace")  # with the line ends that are hashed
    except OSError as error:
        raise IndexCorruptedError(MANIFEST, f"it is missing or cannot be read ({error})") from error
    return Manifest.from_json(text)


def signed_json(values: Mapping[str, Any], field: str) -> str:
    """A JSON file's text, keys sorted, that holds its own hash in `field`."""
    return signed(json.dumps({**values, field: _UNSIGNED}, indent=2, sort_keys=True, allow_nan=False) + "\n", field)


def signed(text: str, field: str = _OWN_HASH) -> str:
    """A text with its own hash in place of the one that its `field` holds, whatever that is.

    The hash is the SHA-256 of the text in which 64 zeros stand for it.
    """
    return _own_hash(field).sub(rf"\g<1>{signature(text, field)}\2", text, count=1)


def signature(text: str, field: str) -> str:
    """The hash that a text should hold in its `field`."""
    unsigned = _own_hash(field).sub(rf"\g<1>{_UNSIGNED}\2", text, count=1)
    return hashlib.sha256(unsigned.encode(errors="replace")).hexdigest()


def _own_hash(field: str) -> re.Pattern[str]:
    """A field and its value; no string holds this: quotes in it would be escaped."""
    return re.compile(rf'("{field}":\s*")[^"]*(")')


def check_relative(path: str) -> None:
    """Refuse a path that could lead out of the index's folder."""
    pure = PurePosixPath(path)
    bad = not pure.parts or pure.is_absolute() or ".." in pure.parts or any(c in path for c in "\\:\0")
    writable = path.encode(errors="replace").decode() == path  # no half of a surrogate pair
    bad = bad or len(path) > 1024 or any(len(part.encode(errors="replace")) > 255 for part in pure.parts)
    _require(
        not bad and writable and pure.as_posix() == path, f"the path {path!r} is not a plain path inside the index"
    )


def inside(folder: Path, file: str) -> Path:
    """The path of an index's file, refusing one that a link leads elsewhere.

    A Hub cache is made of links, but only from its snapshots to blobs of the same repo.
    """
    check_relative(file)
    path = folder / file
    root = folder.resolve()
    allowed = [root, *(place.parent / "blobs" for place in root.parents if place.name == "snapshots")]
    resolved = path.resolve()
    if not any(resolved.is_relative_to(place) for place in allowed):
        raise IndexCorruptedError(file, f"it is a link that leads out of the index, to {resolved}")
    return path


def is_newer(version: str) -> bool:
    """Whether a format version, already checked, has fields that this version may not know."""
    return int(version.partition(".")[2]) > int(FORMAT_VERSION.partition(".")[2])


def check_version(version: str) -> None:
    """Refuse a format version that is none, or of a later major one."""
    parts = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", version)
    if parts is None:
        raise IndexFormatError(f"format_version must look like {FORMAT_VERSION!r}, got {version!r}.")
    newest = FORMAT_VERSION.partition(".")[0]
    if int(parts[1]) > int(newest):
        raise IndexFormatError(
            f"This index has format version {version}; this lorif-hf reads up to {newest}.x. "
            f'Install a newer one: pip install "lorif-hf>={parts[1]}.0".'
        )


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise IndexCorruptedError(MANIFEST, problem)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _checked(value: Any, where: str, kind: type) -> Any:
    # Of JSON's values, only a bool is of its own type and of another.
    good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(good, f"'{where}' must be a JSON {kind.__name__}")
    return value


def _field(values: Mapping[str, Any], known: Field[Any], where: str = "") -> Any:
    """A field of the manifest or of an entry in it, or its default where it is absent and has one."""
    name = f"{where}.{known.name}" if where else known.name
    kind: Any = get_origin(known.type) or known.type
    if known.name not in values:
        if known.default_factory is not MISSING:
            return known.default_factory()
        if known.default is not MISSING:
            return known.default
        _require(not where, f"{where} lacks the field '{known.name}'")
    value = values.get(known.name)
    if kind is list:
        (entry,) = get_args(known.type)
        return [_record(item, f"{name}[{i}]", entry) for i, item in enumerate(_checked(value, name, list))]
    if is_dataclass(kind):
        return _record(_checked(value, name, dict), name, kind)
    if known.type in (int | None, str | None):
        if value is None:
            return None
        (kind,) = (part for part in get_args(known.type) if part is not type(None))
    if where and kind is int:
        _require(type(value) is int and 0 <= value < 2**63, f"{name} must be a natural number")
        return value
    if where and kind is str:
        _require(isinstance(value, str), f"{name} must be a string")
        return value
    return _checked(value, name, kind)


def _record(item: Any, where: str, kind: Any) -> Any:
    """An entry of the manifest; fields that this version does not know are ignored."""
    _require(isinstance(item, dict), f"{where} must be a JSON object")
    return kind(**{known.name: _field(item, known, where) for known in fields(kind)})
