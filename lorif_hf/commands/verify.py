"""`lorif-hf verify`."""

from ..errors import IndexCorruptedError
from .options import INDEX, JSON, REVISION, TOKEN, loaded_index
from .printing import print_json, print_line


def verify(index: INDEX, revision: REVISION = None, token: TOKEN = None, as_json: JSON = False) -> None:
    """Read every file of an index and check it against the manifest."""
    try:
        loaded = loaded_index(index, revision, token)
        loaded.verify()
    except IndexCorruptedError as error:
        if as_json:
            print_json({"intact": False, "files": None, "bytes": None, "file": error.file, "problem": str(error)})
        raise
    if as_json:
        sizes = [entry.bytes for entry in loaded.manifest.files]
        print_json({"intact": True, "files": len(sizes), "bytes": sum(sizes), "file": None, "problem": None})
        return
    print_line("Every file is as it was written.")
