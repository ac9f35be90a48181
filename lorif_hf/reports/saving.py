"""An `Attribution` in a folder: JSON for what people read, safetensors for what is numbers. Nothing is pickled."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BuildFolderError, IndexCorruptedError, ResultFormatError
from ..storage.files import TensorFile, file_entry, write_tensors, write_text
from ..storage.layout import FileEntry
from .distribution import ScoreDistribution
from .provenance import Provenance
from .shading import Pairs, Shading


if TYPE_CHECKING:
    from .attribution import Attribution


FORMAT = "1.0"
TEXTS, TENSORS = "attribution.json", "attribution.safetensors"
_MOST_BYTES = 1 << 30  # of the JSON
_RESULTS = (("scores", "indices"), ("opponent_scores", "opponent_indices"))


def save(result: "Attribution", folder: Path) -> None:
    """Write a result to a folder, whole or not at all.

    Raises:
        [`~lorif_hf.errors.BuildFolderError`]: the folder holds something else.
        [`~lorif_hf.errors.StorageError`]: the system refuses it.
    """
    if folder.exists():
        strange = [] if not folder.is_dir() else sorted({path.name for path in folder.iterdir()} - {TEXTS, TENSORS})
        if strange or not folder.is_dir():
            what = f"holds {strange[0]}" if strange else "is a file"
            raise BuildFolderError(f"{folder} {what}: a saved attribution needs a folder of its own. Choose another.")
    # Without its texts it is no result: those of an earlier one are taken away first, and these come last.
    (folder / TEXTS).unlink(missing_ok=True)
    write_tensors(folder / TENSORS, _tensors(result))
    entry = file_entry(folder, TENSORS)
    texts = {
        "format_version": FORMAT,
        "tensors": {"bytes": entry.bytes, "sha256": entry.sha256},
        "measure": result.measure,
        "queries": list(result.queries),
        "losses": list(result.losses),
        "prompts": None if result.prompts is None else list(result.prompts),
        "tokens": None if result.tokens is None else [list(tokens) for tokens in result.tokens],
        "layers": None if result.layers is None else list(result.layers),
        "copies": [[row, list(copies)] for row, copies in result.copies.items()],
        "examples": [[row, dict(example)] for row, example in result.examples.items()],
        "provenance": asdict(result.provenance),
        "distribution": None if result.distribution is None else [_spread(spread) for spread in result.distribution],
        "shading": None if result.shading is None else _shaded_texts(result.shading),
    }
    write_text(folder / TEXTS, json.dumps(texts, indent=1))


def load(folder: Path) -> dict[str, Any]:
    """The fields of the result in a folder, which may come from anybody.

    Raises:
        [`~lorif_hf.errors.ResultFormatError`]: there is none, or it is not what [`save`] wrote.
    """
    texts = _texts(folder)
    try:
        return _fields(texts, _tensor_file(folder, texts))
    except IndexCorruptedError as error:
        raise _damaged(folder, str(error).partition(". ")[0]) from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise _damaged(folder, f"its fields do not fit together ({reason})") from error


def _texts(folder: Path) -> dict[str, Any]:
    path = folder / TEXTS
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise _damaged(folder, f"{TEXTS} has {size} bytes; expected at most {_MOST_BYTES}")
        texts = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ResultFormatError(
            f"{folder} holds no attribution: expected a folder with {TEXTS}, which result.save(folder) writes."
        ) from None
    except ResultFormatError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"{TEXTS} cannot be read ({type(error).__name__}: {error})"[:300]) from error
    version = texts.get("format_version") if isinstance(texts, dict) else None
    if not isinstance(version, str) or version.partition(".")[0] != FORMAT.partition(".")[0]:
        raise ResultFormatError(
            f"{path} is of format {version!r:.40}, this version reads {FORMAT}: upgrade lorif-hf, or save it again."
        )
    return texts


def _tensor_file(folder: Path, texts: dict[str, Any]) -> TensorFile:
    known = texts["tensors"]
    size, sha256 = known["bytes"], known["sha256"]
    if type(size) is not int or not isinstance(sha256, str):
        raise ValueError("no size and hash of the tensors")
    return TensorFile(folder, FileEntry(TENSORS, size, sha256))


def _fields(texts: dict[str, Any], file: TensorFile) -> dict[str, Any]:
    """What an [`Attribution`] is made of, each of it checked against the rest."""
    queries = _strings(texts["queries"])
    count = len(queries)
    tokens = None if texts["tokens"] is None else _listed(texts["tokens"], count, _strings)
    examples = {_row(row): _example(example) for row, example in texts["examples"]}
    shape: tuple[int, ...] = (count,) if tokens is None else (count, max(map(len, tokens), default=0))
    sides: dict[str, Tensor | None] = {}
    for scores, indices in _RESULTS:
        if indices not in file.spans:
            sides |= {scores: None, indices: None}
            continue
        rows = _tensor(file, indices, torch.int64, len(shape) + 1)
        if rows.shape[:-1] != shape:
            raise ValueError(f"{indices} is of shape {tuple(rows.shape)}, its queries and tokens make it {shape}")
        sides |= {indices: rows, scores: _tensor(file, scores, torch.float32, rows.dim(), rows.shape)}
        missing = {row for row in rows.flatten().tolist() if row >= 0} - examples.keys()
        if missing:
            raise ValueError(f"row {min(missing)} has no example")
    if sides["indices"] is None:
        raise ValueError("it has no rows")
    layers = None if texts["layers"] is None else _strings(texts["layers"])
    prompts, spreads = texts["prompts"], texts["distribution"]
    provenance = {name: texts["provenance"].get(name) for name in Provenance.__dataclass_fields__}
    return {
        **sides,
        "examples": examples,
        "queries": queries,
        "losses": [float(loss) for loss in _listed(texts["losses"], count)],
        "measure": str(texts["measure"]),
        "tokens": tokens,
        "copies": {_row(row): [_row(copy) for copy in copies] for row, copies in texts["copies"]},
        "layers": layers,
        "layer_scores": None if layers is None else _pairs(file, "layer", count, examples, len(layers)),
        "shading": _shading(texts["shading"], file, count, examples),
        "distribution": None if spreads is None else _spreads(spreads, count, tokens),
        "prompts": None if prompts is None else _listed(prompts, count, _characters),
        "provenance": _provenance(provenance),
    }


def _tensors(result: "Attribution") -> dict[str, Tensor]:
    tensors = {}
    for names in _RESULTS:
        for name in names:
            if (held := getattr(result, name)) is not None:
                tensors[name] = held.float() if "scores" in name else held.long()
    if result.layer_scores is not None:
        tensors |= _pair_tensors("layer", result.layer_scores)
    if result.shading is not None:
        tensors |= _pair_tensors("query_share", result.shading.query_shares)
        tensors |= _pair_tensors("row_share", result.shading.row_shares)
    return tensors


def _pair_tensors(name: str, pairs: Pairs) -> dict[str, Tensor]:
    """Lists of numbers by query and row: the pairs, how many numbers each has, and the numbers one after another."""
    return {
        f"{name}.pairs": torch.tensor(list(pairs), dtype=torch.int64).view(-1, 2),
        f"{name}.lengths": torch.tensor([len(values) for values in pairs.values()], dtype=torch.int64),
        f"{name}.values": torch.tensor([v for values in pairs.values() for v in values], dtype=torch.float64),
    }


def _pairs(
    file: TensorFile, name: str, queries: int, examples: Mapping[int, Any], length: int | None = None
) -> dict[tuple[int, int], list[float]]:
    pairs = _tensor(file, f"{name}.pairs", torch.int64, 2)
    lengths = _tensor(file, f"{name}.lengths", torch.int64, 1, pairs.shape[:1])
    values = _tensor(file, f"{name}.values", torch.float64, 1)
    sizes = lengths.tolist()
    if min(sizes, default=0) < 0 or sum(sizes) != len(values) or (length is not None and {*sizes} - {length}):
        raise ValueError(f"{name}.lengths do not add up")
    made = {}
    for (query, row), part in zip(pairs.tolist(), values.split(sizes) if sizes else (), strict=True):
        if not 0 <= query < queries or row not in examples:
            raise ValueError(f"{name} names query {query} and row {row}")
        made[query, row] = part.tolist()
    return made


def _tensor(file: TensorFile, name: str, dtype: torch.dtype, dims: int, shape: Sequence[int] | None = None) -> Tensor:
    span = file.span(name)
    if span.dtype != dtype or len(span.shape) != dims or (shape is not None and tuple(shape) != span.shape):
        raise ValueError(f"tensor '{name}' is {span.dtype} {span.shape}")
    return file.read(name).clone()


def _shaded_texts(shading: Shading) -> dict[str, Any]:
    return {
        "query_tokens": [list(tokens) for tokens in shading.query_tokens],
        "row_tokens": [[row, list(tokens)] for row, tokens in shading.row_tokens.items()],
    }


def _shading(texts: Any, file: TensorFile, count: int, examples: Mapping[int, Any]) -> Shading | None:
    if texts is None:
        return None
    shading = Shading(
        _listed(texts["query_tokens"], count, _strings),
        _pairs(file, "query_share", count, examples),
        {_row(row): _strings(tokens) for row, tokens in texts["row_tokens"]},
        _pairs(file, "row_share", count, examples),
    )
    for (query, _), shares in shading.query_shares.items():
        if len(shares) != len(shading.query_tokens[query]):
            raise ValueError(f"query {query} has {len(shares)} shares of other tokens")
    for (_, row), shares in shading.row_shares.items():
        if len(shares) != len(shading.row_tokens[row]):
            raise ValueError(f"row {row} has {len(shares)} shares of other tokens")
    return shading


def _spread(spread: Any) -> Any:
    return asdict(spread) if isinstance(spread, ScoreDistribution) else [asdict(held) for held in spread]


def _spreads(spreads: Any, count: int, tokens: Any) -> list[Any]:
    if tokens is None:
        return _listed(spreads, count, _distribution)
    return [
        _listed(of_query, len(texts), _distribution)
        for of_query, texts in zip(_listed(spreads, count), tokens, strict=True)
    ]


def _distribution(held: Any) -> ScoreDistribution:
    counts = [_row(number) for number in held["counts"]]
    edges = _listed(held["edges"], len(counts) + 1, _number)
    if sum(counts) != held["count"]:
        raise ValueError(f"a histogram of {sum(counts)} scores says that it is of {held['count']}")
    return ScoreDistribution(
        _row(held["count"]), _number(held["mean"]), _number(held["standard_deviation"]), edges, counts
    )


def _provenance(held: dict[str, Any]) -> Provenance:
    for name in ("config", "versions"):
        if not isinstance(held[name], dict):
            raise ValueError(f"provenance has no {name}")
    for name in ("model", "repo_id", "commit", "index", "date"):
        if not isinstance(held[name], (str, type(None))):
            raise ValueError(f"its {name} is no text")
    rows = held["num_examples"]
    versions = {str(name): str(version) for name, version in held["versions"].items()}
    return Provenance(**{**held, "num_examples": None if rows is None else _row(rows), "versions": versions})


def _listed(values: Any, count: int, read: Callable[[Any], Any] = lambda value: value) -> list[Any]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"expected a list of {count}, got {values!r:.60}")
    return [read(value) for value in values]


def _strings(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"expected texts, got {values!r:.60}")
    return values


def _row(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"expected a natural number, got {value!r:.60}")
    return value


def _characters(value: Any) -> int | None:
    return None if value is None else _row(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r:.60}")
    return float(value)


def _example(held: Any) -> dict[str, Any]:
    """An example: plain values by name, and the pieces of a document."""
    if not isinstance(held, dict) or "row" not in held or "text" not in held:
        raise ValueError(f"expected an example, got {held!r:.60}")
    for name, value in held.items():
        if name == "pieces":
            held[name] = [_row(piece) for piece in value]
        elif not isinstance(value, (str, bool, int, float, type(None))):
            raise ValueError(f"an example's {name!r:.60} is no plain value")
    return held


def _damaged(folder: Path, why: str) -> ResultFormatError:
    return ResultFormatError(
        f"{folder} holds an attribution that is not as it was saved: {why}. Restore it, or ask again and save that."
    )
