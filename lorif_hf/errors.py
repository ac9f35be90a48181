"""Everything that lorif-hf raises on purpose.

Each message says what was expected, what was found, and the way out.
"""

from collections.abc import Sequence


class LorifError(Exception):
    """Base class of all errors raised by lorif-hf."""


class ConfigError(LorifError, ValueError):
    """A choice in [`InfluenceConfig`] that no index can be built with."""


class DatasetError(LorifError, ValueError):
    """The dataset cannot be indexed as it is: empty, unsized, without the needed columns or without any target."""


class QueryError(LorifError, ValueError):
    """A query that cannot be turned into a model input with something to measure."""


class ObjectiveError(LorifError, ValueError):
    """No training objective fits the model, or a user's own returned something that is not one number per example."""


class BuildFolderError(LorifError, FileExistsError):
    """The folder of a new index already holds something that is not this build's."""


class RecordingError(LorifError):
    """The recording pass could not go on (out of memory, say). The finished shards are kept."""


class RecordingCheckError(RecordingError):
    """What would be recorded is not what was trained: the first rows show it before anything is recorded."""


class ProcessingClassError(LorifError, ValueError):
    """The tokenizer (or other processing class) cannot be kept in the index. What was recorded is kept."""


class StorageError(LorifError, OSError):
    """The system refuses to write a file of the index: no permission, a read-only or failing disk. What was finished
    before it is kept."""


class DiskFullError(StorageError):
    """A file of the index did not fit on the disk, into the quota, or under the limit of a file's size. What was
    finished before it is kept."""


class IndexFormatError(LorifError, ValueError):
    """The folder or repo is not an index that this version can read."""


class ResultFormatError(LorifError, ValueError):
    """The folder holds no attribution that this version can read, or one that is not as it was saved."""


class UnknownKindError(ConfigError, IndexFormatError):
    """A config or an index names a kind (of layer, task, curvature or codec) that nobody has registered here.

    Args:
        what (`str`): what sort of kind.
        name: the name that was asked for.
        known (`Sequence[str]`): the names that are registered.
        folder (`str`): the package whose `register` takes new kinds.
        module (`str`, *optional*): the module that registered it where the index was made.
    """

    def __init__(self, what: str, name: object, known: Sequence[str], folder: str, module: str | None = None):
        self.name = name
        shown = repr(name)[:80]
        # The module is the index's word, and it may come from anybody.
        where = "".join(filter(str.isprintable, module))[:80] if isinstance(module, str) else ""
        super().__init__(
            f"The {what} {shown} is not registered: known are {', '.join(known)}. If it is an extension, your own or "
            f"that of the index's author, import {where or 'its module'} first, which must call {folder}.register."
        )


class IndexCorruptedError(LorifError):
    """A file of the index is not what its manifest says.

    Args:
        file (`str`): path of the file inside the index.
        problem (`str`): what was expected and what was found.
    """

    def __init__(self, file: str, problem: str):
        self.file = file
        super().__init__(
            f"{file}: {problem}. The file was truncated, edited or damaged in transfer: "
            "restore or download it again, or rebuild the index."
        )


class CheckpointError(LorifError, ValueError):
    """A checkpoint of a training cannot be used as it is: no weights, others than the model has, or nothing known of
    its learning rates."""


class ModelMismatchError(LorifError, ValueError):
    """The query's model is not the one that was indexed. `strict=False` goes on with a warning."""


class UnsupportedModuleError(LorifError, ValueError):
    """A module that was asked for cannot be tracked, or nothing can.

    Args:
        message (`str`): what is wrong, and the way out.
        module (`str`, *optional*): the module, where its calls show it.
    """

    def __init__(self, message: str, module: str | None = None):
        self.module = module
        super().__init__(message)


class NonFiniteGradientError(LorifError, ArithmeticError):
    """A gradient holds NaN or infinity.

    Args:
        module (`str`): name of the module.
        rows (`Sequence[int]`): rows of the dataset (or numbers of the queries) with such a gradient.
    """

    def __init__(self, module: str, rows: Sequence[int]):
        self.module = module
        self.rows = list(rows)
        shown = ", ".join(map(str, self.rows[:10])) + (", ..." if len(self.rows) > 10 else "")
        super().__init__(
            f"The gradient of module '{module}' is NaN or infinite for row(s) {shown}. Check these rows and the "
            "weights; a float16 model may overflow: load it in bfloat16 or float32."
        )


class EvaluationError(LorifError, ValueError):
    """What an evaluation was given does not fit together, or holds numbers that nothing can be measured with."""


class HubError(LorifError, OSError):
    """Something on the way to or from the Hub."""


class IndexNotFoundError(HubError):
    """No such repo or revision on the Hub, as far as this token can see."""


class HubAccessError(HubError):
    """The Hub knows the repo but refuses this token."""


class HubConnectionError(HubError):
    """The Hub could not be reached, or gave up in the middle. Trying again goes on where this stopped."""


class PublishError(LorifError, ValueError):
    """What was to be pushed must not leave this machine as it is. Nothing was uploaded."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, somebody else's, says that memory ran out, of the machine or of a GPU."""
    text = str(error).lower()
    words = ("out of memory", "allocate memory", "alloc_failed")
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(word in text for word in words))
