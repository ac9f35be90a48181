"""Progress bars, with the looks and switches (`HF_HUB_DISABLE_PROGRESS_BARS`) of the Hugging Face libraries."""

from typing import Any

from huggingface_hub.utils import tqdm


def progress(total: int, what: str, unit: str, initial: int = 0) -> Any:
    """A bar that shows itself once the work has taken half a second."""
    return tqdm(total=total, desc=what, unit=f" {unit}", initial=initial, delay=0.5, name="lorif_hf")
