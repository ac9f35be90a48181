"""Where an index is pushed."""

from dataclasses import FrozenInstanceError

import pytest

from lorif_hf.hub.destination import Destination


def test_a_destination_needs_a_name_alone_and_stays_as_it_is():
    destination = Destination("me/my-index")
    assert (destination.private, destination.token, destination.revision) == (None, None, None)
    assert not destination.create_pr and destination.commit_message is destination.commit_description is None
    with pytest.raises(FrozenInstanceError):
        destination.repo_id = "me/another"
