"""Ways to tamper with an index, as somebody could who uploads one."""

import hashlib
import json

from huggingface_hub import CommitOperationAdd, HfApi
from safetensors import safe_open
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf.storage.files import file_entry, write_tensors
from lorif_hf.storage.layout import MANIFEST, signed


REPO = "user/hostile"
SHARD = "factors/factors-00002.safetensors"
CONFIG = plain_config(projection_factor=2, shard_size=2)
MODULE = "transformer.h.0.attn.c_attn"


def edit(folder, change):
    """Change the manifest's values in place."""
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    (folder / MANIFEST).write_text(signed(json.dumps(values)))


def sign(folder):
    """Make the manifest vouch for the files as they now are."""

    def change(values):
        for entry in [values["curvature"], *values["shards"], *values["examples"], *values["tokenizer"]]:
            path = folder / entry["file"]
            if path.is_file():
                now = file_entry(folder, entry["file"])
                entry.update(bytes=now.bytes, sha256=now.sha256)
                if "header_sha256" in entry:
                    content = path.read_bytes()
                    length = int.from_bytes(content[:8], "little")
                    entry["header_sha256"] = hashlib.sha256(content[: 8 + length]).hexdigest()

    edit(folder, change)


def edit_tensors(folder, file, change):
    with safe_open(folder / file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    change(tensors)
    write_tensors(folder / file, tensors)
    sign(folder)


def upload(hub, folder, repo=REPO):
    """Put a folder into a repo as it is, as an attacker would: nothing of ours looks at it."""
    api = HfApi(token=hub.token)
    api.create_repo(repo, repo_type="dataset", exist_ok=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files]
    api.create_commit(repo, added, commit_message="hostile", repo_type="dataset")


def query(index, **options):
    return index.attribute(make_gpt2(), make_rows(1), top_k=6, **options)
