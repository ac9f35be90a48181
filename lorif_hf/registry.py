"""Kinds by name: of layers, tasks, curvatures and codecs. An index names its kinds, and its readers look them up.

The kinds that come with the library register themselves when their folder is imported, which happens at the latest
when a kind is looked up. Others are registered by the module that defines them.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from .errors import UnknownKindError


class Registry:
    """The kinds of one sort, by name.

    Args:
        what (`str`): what errors call a kind.
        folder (`str`): the package whose `register` takes new kinds.
        instances (`bool`, *optional*, defaults to `False`): kept are instances, else classes.
    """

    def __init__(self, what: str, folder: str, instances: bool = False):
        self.what, self.folder, self.instances = what, folder, instances
        self._kinds: dict[str, Any] = {}

    def register(self, kind: Any) -> Any:
        """Make a kind known under its `name`; usable as a decorator of its class. The same class may come again (a
        notebook's cell runs twice).

        Raises:
            `ValueError`: it has no name, or another kind has it.

        Example:

        ```python
        >>> @lorif_hf.tasks.register
        ... class SquaredError(Task):
        ...     name = "squared-error"
        ```
        """
        given, kind = kind, kind() if self.instances and isinstance(kind, type) else kind
        name = getattr(kind, "name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{kind!r} needs a class attribute `name`, a string by which an index finds it again.")
        known = self._kinds.get(name)
        if known is not None and _origin(known) != _origin(kind):
            raise ValueError(f"The {self.what} {name!r} is there already, {_origin(known)}: choose another name.")
        self._kinds[name] = kind
        return given

    def get(self, name: str, hint: str | None = None) -> Any:
        """The kind of a name.

        Args:
            name (`str`): as in the config or the manifest.
            hint (`str`, *optional*): the module that registered it where the index was made.

        Raises:
            [`~lorif_hf.errors.UnknownKindError`]: says which are known, and what to import.
        """
        import_module(self.folder)
        if not isinstance(name, str) or name not in self._kinds:
            raise UnknownKindError(self.what, name, list(self._kinds), self.folder, hint)
        return self._kinds[name]

    def __iter__(self) -> Iterator[Any]:
        """The kinds, the last registered first: a user's own goes before the library's."""
        import_module(self.folder)
        return reversed(list(self._kinds.values()))


def _class(kind: Any) -> type:
    """The class of a kind; curvatures and codecs are registered as classes, layers and tasks as instances."""
    return kind if isinstance(kind, type) else type(kind)


def _origin(kind: Any) -> str:
    """Where a kind's class is defined: "package.module.Class"."""
    return f"{_class(kind).__module__}.{_class(kind).__qualname__}"


def outside_module(kind: Any) -> str | None:
    """The module that defines a kind, where it is none of this library's."""
    module = _class(kind).__module__
    return None if module.partition(".")[0] == "lorif_hf" else module


LAYER_KINDS = Registry("kind of layer", "lorif_hf.layers", instances=True)
TASKS = Registry("task", "lorif_hf.tasks", instances=True)
CURVATURES = Registry("curvature", "lorif_hf.curvature")
CODECS = Registry("codec", "lorif_hf.codecs")
