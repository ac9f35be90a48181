"""A Hugging Face Hub on the loopback interface, for tests that run the real `huggingface_hub` client.

    with LocalHub() as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)

Every instance has its own state, its own tokens and its own log. Set `HF_HUB_DISABLE_XET=1` before anything of
Hugging Face is imported: with xet on, an upload needs a xet server, which this is not.
"""

from .faults import Fault, Faults
from .log import Request
from .server import LocalHub
from .state import HubError


__all__ = ["Fault", "Faults", "HubError", "LocalHub", "Request"]
