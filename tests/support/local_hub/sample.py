"""A repo to try the local Hub with."""

REPO = "user/data"
SHARD = "shards/a.safetensors"
CONTENT = bytes(range(256)) * 4000  # about 1 MB
DATASET = {"repo_type": "dataset"}
