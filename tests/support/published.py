"""An index of 24 rows in 12 shards on the local Hub, and what tests ask about it."""

import torch
from huggingface_hub import HfApi
from tiny import make_gpt2, make_rows, plain_config


REPO = "user/my-index"
DATASET = {"repo_type": "dataset"}
SEVENTH = "factors/factors-00007.safetensors"
CONFIG = plain_config(projection_factor=2, shard_size=2)


def queries():
    return make_rows(24).select([3, 17])


def commit(hub, *operations):
    return HfApi(token=hub.token).create_commit(REPO, list(operations), commit_message="change", **DATASET)


def served(hub):
    """The files that were served, in the order of their requests."""
    return [r.path_in_repo for r in hub.requests if r.method == "GET" and r.path_in_repo and r.bytes_sent]


def is_right(index, expected):
    return torch.equal(index.scores(make_gpt2(), queries()), expected)
