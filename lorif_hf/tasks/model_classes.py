"""Which classes of transformers are trained for what, by its own tables."""

from functools import lru_cache

from transformers.models.auto import modeling_auto


@lru_cache
def classes_of(table: str) -> frozenset[str]:
    """The names of the model classes in `MODEL_FOR_{table}_MAPPING_NAMES`; none where there is no such table."""
    named: dict[str, str | tuple[str, ...]] = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {})
    return frozenset(
        name for names in named.values() for name in ((names,) if isinstance(names, str) else names) if name
    )
