"""The Trainer side: imports lorif_hf; nothing in lorif_hf imports it."""

from .influence import InfluenceCallback


__all__ = ["InfluenceCallback"]
