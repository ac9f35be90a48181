"""The tokenizer that came with an index: in a process with limits for queries, or as it is for those who ask.

What an index holds for images and sounds is never used unasked: a size in its config may be any, and there is no
process with limits for it. Whoever trusts the index passes `processing_class=index.processing_class`.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import IndexFormatError
from ..storage.layout import TOKENIZER, Manifest
from ..storage.store import Store
from ..tasks.text import is_failure
from ..tasks.tokenizer_process import TokenizerProcess


_OF_MEDIA = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def confined_tokenizer(store: Store, manifest: Manifest) -> TokenizerProcess | None:
    """The tokenizer of an index from anybody, in a process of its own; `None`: the index holds none."""
    has_tokenizer = any(Path(entry.file).name not in _OF_MEDIA for entry in manifest.tokenizer)
    return TokenizerProcess(partial(_vouched_folder, store, manifest)) if has_tokenizer else None


def load_tokenizer(store: Store, manifest: Manifest) -> Any:
    """The processing class of an index, in this process: its tokenizer, or a processor, image processor or feature
    extractor; `None`: the index holds none.

    Raises:
        [`~lorif_hf.errors.IndexFormatError`]: transformers cannot load it.
        [`~lorif_hf.errors.IndexCorruptedError`]: a file of it is not what the manifest says.
    """
    if not manifest.tokenizer:
        return None
    from transformers import AutoProcessor, AutoTokenizer

    of_media = any(Path(entry.file).name in _OF_MEDIA for entry in manifest.tokenizer)
    with _vouched_folder(store, manifest) as folder:
        try:
            return (AutoProcessor if of_media else AutoTokenizer).from_pretrained(folder, trust_remote_code=False)
        except BaseException as error:  # whatever a damaged or hostile tokenizer makes transformers raise
            if not is_failure(error):
                raise
            raise IndexFormatError(
                f"The processing class of the index cannot be loaded ({type(error).__name__}): pass processing_class=."
            ) from error


@contextmanager
def _vouched_folder(store: Store, manifest: Manifest) -> Iterator[Path]:
    """A folder with the tokenizer's files for which the manifest vouches, and no others."""
    paths = {entry.file: store.path(entry) for entry in manifest.tokenizer}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in paths.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, Path(folder) / name)
        yield Path(folder) / TOKENIZER
