"""The processing class in the index's folder: whole or absent, like every file of it."""

import os
import shutil
from pathlib import Path
from typing import Any

from ..errors import DiskFullError, IndexCorruptedError, ProcessingClassError, StorageError
from .files import sync, temporary_name
from .layout import TOKENIZER, check_relative
from .system_errors import system_errors


_WAY_OUT = (
    "Pass another one, or processing_class=None: the index then answers text queries only where it is given one "
    "(index.attribute(model, text, processing_class=...))."
)


def save_processing_class(processing_class: Any, folder: Path) -> None:
    """Save a tokenizer, processor, ... with its own `save_pretrained`; what was in the folder goes.

    Args:
        processing_class: what has a `save_pretrained`.
        folder (`Path`): where its files go. They are written to a temporary folder beside it, which is renamed.

    Raises:
        [`~lorif_hf.errors.ProcessingClassError`]: it cannot be saved; says what to pass instead.
        [`~lorif_hf.errors.StorageError`]: the disk is full or refuses it.
    """
    kind = type(processing_class).__name__
    if not callable(getattr(processing_class, "save_pretrained", None)):
        raise ProcessingClassError(f"A {kind} has no save_pretrained, so the index cannot keep it. {_WAY_OUT}")
    temporary = folder.with_name(temporary_name(folder.name))
    try:
        with system_errors(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _save(processing_class, temporary, folder, f"The {kind} cannot be saved, so the index cannot keep it")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(processing_class: Any, temporary: Path, folder: Path, failed: str) -> None:
    """Save it, see that an index can hold each of its files, and bring them to the disk."""
    try:
        with system_errors(folder):
            processing_class.save_pretrained(temporary)
    except (DiskFullError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a user's code, and what panics in Rust is no Exception
        shown = error.__cause__ if isinstance(error, StorageError) else error
        raise ProcessingClassError(f"{failed} ({type(shown).__name__}: {shown}). {_WAY_OUT}") from error
    files = [path for path in temporary.rglob("*") if not path.is_dir()]
    if not files:
        raise ProcessingClassError(f"{failed} (its save_pretrained wrote no file). {_WAY_OUT}")
    for path in files:
        name = path.relative_to(temporary).as_posix()
        try:
            check_relative(f"{TOKENIZER}/{name}")
        except IndexCorruptedError:
            raise ProcessingClassError(
                f"{failed} (no index may hold a file of the name {name!r}). {_WAY_OUT}"
            ) from None
        if path.is_symlink():
            raise ProcessingClassError(f"{failed} (its save_pretrained made {name!r} a link). {_WAY_OUT}")
        sync(path)
