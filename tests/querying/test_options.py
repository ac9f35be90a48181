"""What cannot be asked is refused before anything is read."""

import pytest

from lorif_hf.errors import QueryError
from lorif_hf.querying.options import QueryOptions


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "8", True, None])
def test_a_batch_size_that_is_none_is_refused(batch_size):
    with pytest.raises(QueryError) as caught:
        QueryOptions(batch_size=batch_size)
    assert str(caught.value) == f"batch_size must be an integer of at least 1, got {batch_size!r}."
