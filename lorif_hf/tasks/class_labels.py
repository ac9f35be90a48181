"""Labels of a classifier by name or by number."""

from typing import Any

from ..errors import QueryError


def class_number(config: Any, label: Any, number: int) -> Any:
    """The number of a label that a config knows by name; other labels as they come.

    Args:
        config: the model's config, or `None`.
        label: a name, a number, or the numbers of several labels.
        number (`int`): the query's, for errors.

    Raises:
        [`~lorif_hf.errors.QueryError`]: the model has no such label; lists those that it has.
    """
    names = getattr(config, "id2label", None) or {}
    if isinstance(label, str):
        known = getattr(config, "label2id", None) or {name: place for place, name in names.items()}
        if label not in known:
            raise QueryError(f"Query {number} has label '{label}'; the model's labels are {', '.join(known)}.")
        label = known[label]
    if isinstance(label, int) and len(names) > 1 and label not in names:
        raise QueryError(f"Query {number} has label {label}; the model's labels are {', '.join(names.values())}.")
    return label
