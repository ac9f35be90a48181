"""The fast path of torch's own attention is off while anybody records, and back afterwards."""

import pytest
import torch

from lorif_hf.recording.attention import whole_attention


@pytest.mark.parametrize("enabled", [True, False])
def test_the_last_holder_restores_it(enabled):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        first, second = whole_attention(), whole_attention()
        first.__enter__()
        second.__enter__()  # of another thread, say: it begins before the first one ends, and ends after it
        assert not torch.backends.mha.get_fastpath_enabled()
        first.__exit__(None, None, None)
        assert not torch.backends.mha.get_fastpath_enabled()
        second.__exit__(None, None, None)
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_an_error_restores_it_too():
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError), whole_attention():
        1 / 0  # noqa: B018
    assert torch.backends.mha.get_fastpath_enabled() == before
