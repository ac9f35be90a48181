"""Which documents a training packed into its rows, by whatever trace it left of them.

Looked at are, in this order, the columns `seq_lengths` (TRL's bfd packing), `cu_seq_lens_q` and the like,
`position_ids` and `seq_idx`; what the collator tells the model of a row by the same names; and, where the Trainer says
that it packs, the tokens that begin or end a document (TRL's wrapped packing leaves nothing else).
"""

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DatasetError
from .documents import UNKNOWN, DocumentCollator, Documents, places_of, tokens_of
from .row_access import columns_of, must_pass, read_rows


logger = logging.getLogger(__name__)

_TOGETHER = 256  # rows that are read at once
_PROBED = 8  # rows whose batches are looked at for traces
_LENGTHS, _POSITIONS, _NUMBERS, _MASK = "seq_lengths", "position_ids", "seq_idx", "attention_mask"
_CUMULATIVE = ("cu_seq_lens_q", "cu_seqlens_q", "cu_seq_lens", "cu_seqlens")

Pieces = list[tuple[int, int]]
"""Start and stop of each document of a row."""


@dataclass(frozen=True)
class Packing:
    """What a Trainer says of how it packs.

    Args:
        length (`int` or `None`): tokens of a full row.
        shuffled (`bool`): whether rows were shuffled after they were packed.
    """

    length: int | None = None
    shuffled: bool = False


def packing_of(trainer: Any) -> Packing | None:
    """How a Trainer packs; `None`: it does not, or took rows as they were."""
    args = getattr(trainer, "args", None)
    prepared = not (getattr(args, "dataset_kwargs", None) or {}).get("skip_prepare_dataset", False)
    if getattr(args, "packing", False) is not True or not prepared:
        return None
    return Packing(getattr(args, "max_length", None), bool(getattr(args, "shuffle_dataset", False)))


def find_documents(
    dataset: Any, count: int, collate: Callable[[list[Any]], Any] | None, tokenizer: Any, packing: Packing | None
) -> Documents | None:
    """The documents of a dataset; `None`: its rows are not packed.

    Args:
        dataset: map-style.
        count (`int`): its rows.
        collate (`Callable` or `None`): the training's collator, where one was given.
        tokenizer: whose tokens begin and end a document.
        packing (`Packing` or `None`): what the Trainer says of it.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: rows are packed, and nothing tells where a document begins.
    """
    (first,) = read_rows(dataset, [0])
    if not isinstance(first, Mapping) or "input_ids" not in first:
        return None
    pieces = pieces_reader(first, tokenizer)
    found = None if pieces is None else _of_columns(dataset, count, pieces)
    if found is None and collate is not None:
        found = _of_batches(dataset, count, collate, tokenizer)
    if found is None and packing is not None:
        found = _of_tokens(dataset, count, tokenizer, packing)
    return found


def document_collator(dataset: Any, tokenizer: Any) -> DocumentCollator | None:
    """How packed rows are collated where nobody says: `None` where an attention mask of theirs joins the documents."""
    (first,) = read_rows(dataset, [0])
    pieces = pieces_reader(first, tokenizer)
    if pieces is None or (_MASK in first and _LENGTHS not in first):
        return None
    return DocumentCollator(pieces)


def pieces_reader(first: Mapping[str, Any], tokenizer: Any) -> "PiecesReader | None":
    """What reads the documents of a row from its columns, if these are such columns."""
    for name in (_LENGTHS, *_CUMULATIVE, _POSITIONS, _NUMBERS):
        values = _numbers(first.get(name))
        if values is not None and values.ndim == 1:
            return PiecesReader(name, getattr(tokenizer, "pad_token_id", None))
    return None


@dataclass(frozen=True)
class PiecesReader:
    """Reads the documents of a row from one of its columns.

    Args:
        name (`str`): the column.
        padding (`int` or `None`): the token that pads.
    """

    name: str
    padding: int | None

    def __call__(self, row: Mapping[str, Any]) -> Pieces:
        tokens, values = tokens_of(row), _numbers(row.get(self.name))
        if tokens is None or values is None:
            raise ValueError("it has no value there")
        if self.name in (_POSITIONS, _NUMBERS):
            step = 1 if self.name == _POSITIONS else 0
            return _of_positions(values, step, _numbers(row.get(_MASK)), tokens, self.padding)
        if not len(values) and not len(tokens):
            return []
        ends = np.cumsum(values) if self.name == _LENGTHS else values[1:] if values[:1] == 0 else values
        starts = np.r_[0, ends[:-1]] if len(ends) else ends
        if len(ends) == 0 or (ends < starts).any() or ends[-1] > len(tokens) or starts[0] < 0:
            raise ValueError(f"they end at {ends.tolist()[-4:]} of {len(tokens)} tokens")
        if self.name == _LENGTHS and ends[-1] != len(tokens):
            raise ValueError(f"they add up to {ends[-1]}, and the row has {len(tokens)} tokens")
        return [(int(start), int(stop)) for start, stop in zip(starts, ends, strict=True) if stop > start]


def _of_columns(dataset: Any, count: int, pieces: PiecesReader) -> Documents | None:
    """By a column; `None` where it tells no more than that each row is one document."""

    def read() -> Iterator[tuple[int, Pieces]]:
        for number, row in _rows(dataset, count, ["input_ids", pieces.name, _MASK]):
            try:
                yield number, pieces(row)
            except (ValueError, TypeError, AttributeError) as error:
                raise DatasetError(
                    f"Row {number} of the dataset has documents in column '{pieces.name}' that are not those of its "
                    f"'input_ids': {error}. Pack the dataset again, or remove the column."
                ) from error

    documents = Documents.of(read())
    return documents if pieces.name == _LENGTHS or len(documents.following()) else None


def _of_batches(dataset: Any, count: int, collate: Callable[[list[Any]], Any], tokenizer: Any) -> Documents | None:
    """By what the collator makes of each row alone, where a few of them show that it tells documents apart."""
    padding = getattr(tokenizer, "pad_token_id", None)
    probed = sorted({number * count // _PROBED for number in range(_PROBED)})
    seen = [_pieces_of_batch(row, collate, padding) for row in read_rows(dataset, probed)]
    if not any(inside is not None and len(inside) > 1 for inside in seen):
        return None

    def read() -> Iterator[tuple[int, Pieces]]:
        for number, row in _rows(dataset, count, None):
            inside, tokens = _pieces_of_batch(row, collate, padding), tokens_of(row)
            whole = [] if tokens is None or not len(tokens) else [(0, len(tokens))]
            yield number, whole if inside is None else inside

    return Documents.of(read())


def _pieces_of_batch(row: Any, collate: Callable[[list[Any]], Any], padding: int | None) -> Pieces | None:
    """The documents that a batch of a single row tells of; `None` where it tells nothing of them."""
    tokens = tokens_of(row)
    try:
        batch = collate([row])
    except Exception as error:  # whatever a stranger's collator raises is told where the row is recorded
        if must_pass(error):
            raise
        return None
    if tokens is None or not isinstance(batch, Mapping) or places_of([tokens], batch) != [(0, 0)]:
        return None
    seen = {"input_ids": tokens}
    for name in (*_CUMULATIVE, _POSITIONS, _NUMBERS, _MASK):
        values = _numbers(batch.get(name))
        if values is not None and values.ndim == 1:
            # Padding behind the row is documents of their own to some collators.
            seen[name] = np.minimum(values, len(tokens)) if name in _CUMULATIVE else values[: len(tokens)]
    name = next((name for name in (*_CUMULATIVE, _POSITIONS, _NUMBERS) if name in seen), "")
    try:
        return PiecesReader(name, padding)(seen) if name else None
    except (ValueError, TypeError):
        return None


def _of_positions(
    positions: np.ndarray, step: int, mask: np.ndarray | None, tokens: np.ndarray, padding: int | None
) -> Pieces:
    """A document begins where a position (or a number of a document) is not `step` after that before it. Padding is of
    none."""
    if positions.shape != tokens.shape:
        raise ValueError(f"{len(positions)} positions of {len(tokens)} tokens")
    if not len(tokens):
        return []
    begins = np.r_[True, np.diff(positions) != step]
    kept = np.ones(len(tokens), dtype=bool)
    if mask is not None and mask.shape == tokens.shape:
        kept = mask != 0
        begins |= np.r_[True, np.diff(mask) != 0]
    starts = np.flatnonzero(begins)
    pieces = list(zip(starts.tolist(), [*starts[1:].tolist(), len(tokens)], strict=True))
    pieces = [(start, stop) for start, stop in pieces if kept[start]]
    while len(pieces) > 1 and pieces[-1][1] - pieces[-1][0] == 1 and tokens[pieces[-1][0]] == padding:
        pieces.pop()  # positions of padding stand still
    return pieces


def _of_tokens(dataset: Any, count: int, tokenizer: Any, packing: Packing) -> Documents:
    """By the token that begins each document, else by the one that ends it."""
    begin, end = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    begins = ends = False
    longest = 0
    for block in _blocks(dataset, count):
        begins |= begin is not None and begin != end and bool((block == begin).any())
        ends |= end is not None and bool((block == end).any())
        longest = max(longest, len(block))
    if not begins and not ends:
        raise DatasetError(
            f"The Trainer packs its rows (packing=True), and nothing tells the documents in them apart: there is no "
            f"column 'seq_lengths' or 'position_ids', and in none of the {count} rows is a token that begins or ends "
            f"one (bos_token_id {begin}, eos_token_id {end} of the processing class). Pack with "
            "packing_strategy='bfd', or end each document with the EOS token before it is packed."
        )
    numbers = array("q")
    pieces = _cut(_blocks(dataset, count), begin if begins else None, end, packing, packing.length or longest, numbers)
    documents = Documents.of(enumerate(pieces), numbers)
    logger.info(
        "%d packed rows hold %d pieces of documents, told apart by token %d of the processing class.",
        count,
        len(documents),
        begin if begins else end,
    )
    return documents


def _cut(
    blocks: Iterable[np.ndarray], begin: int | None, end: int | None, packing: Packing, longest: int, numbers: Any
) -> Iterator[Pieces]:
    """The pieces of documents in blocks that were cut from them one after another.

    Args:
        blocks (`Iterable[np.ndarray]`): int64 (T,) tokens.
        begin (`int` or `None`): the token that begins a document; `None`: the one after `end` does.
        end (`int` or `None`): the token that ends one.
        packing (`Packing`): whether the blocks are in their order.
        longest (`int`): tokens of a whole block.
        numbers (`array`): gets the number of each piece's document.
    """
    last = -1  # the number of the document that was begun last
    ended = True  # with the block before
    for block in blocks:
        if begin is not None:
            inside = np.flatnonzero(block == begin)
        else:  # of several ends in a row, the last is it
            inside = np.flatnonzero((block[:-1] == end) & (block[1:] != end)) + 1
        starts = np.union1d(0, inside).tolist() if len(block) else []
        fresh = 0 in inside or (ended and not packing.shuffled)
        for place in starts:
            last += place > 0 or fresh
            numbers.append(UNKNOWN if packing.shuffled and not place and not fresh else last)
        yield list(zip(starts, [*starts[1:], len(block)], strict=True)) if starts else []
        # TRL cuts a thousand documents at a time: after the last, shorter block the next document begins.
        ended = len(block) < longest or (begin is None and block[-1] == end)


def _blocks(dataset: Any, count: int) -> Iterator[np.ndarray]:
    """The tokens of each row."""
    for _, row in _rows(dataset, count, ["input_ids"]):
        tokens = tokens_of(row)
        yield np.zeros(0, dtype=np.int64) if tokens is None else tokens


def _rows(dataset: Any, count: int, names: list[str] | None) -> Iterator[tuple[int, Any]]:
    """Every row with its number; of the given columns where the others need not be read."""
    form = getattr(dataset, "format", None)
    if names is not None and isinstance(form, Mapping) and form.get("type") != "custom":
        dataset = dataset.select_columns([name for name in names if name in columns_of(dataset)])
    for start in range(0, count, _TOGETHER):
        part = range(start, min(start + _TOGETHER, count))
        yield from zip(part, read_rows(dataset, part), strict=True)


def _numbers(value: Any) -> np.ndarray | None:
    """A column's or a batch's whole numbers, int64; those of a batch of one row without its axis."""
    try:
        numbers = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        return None
    if numbers.dtype.kind not in "iub" and numbers.size:
        return None
    numbers = numbers.astype(np.int64)
    return numbers[0] if numbers.ndim == 2 and len(numbers) == 1 else numbers
