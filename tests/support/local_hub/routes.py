"""What the Hub answers, path by path. No sockets here."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from .calls import REPO_API, REPO_PAGE, REVISION, Call, Reply, json_reply, route
from .commits import commit_payload
from .listing import path_entries, repo_info, tree_entries
from .state import MAIN, HubError, require_writer


LFS_SUFFIXES = (".parquet", ".safetensors")
LFS_SIZE = 10_000_000


# Accounts and repositories


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Reply:
    if call.token is None:
        raise HubError(401, "Invalid username or password.")
    role = "write" if call.token.write else "read"
    auth = {"type": "access_token", "accessToken": {"displayName": call.token.value, "role": role}}
    orgs = [{"type": "org", "name": org} for org in call.token.orgs]
    user = {"type": "user", "name": call.token.user, "fullname": call.token.user}
    return json_reply({**user, "orgs": orgs, "auth": auth})


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Reply:
    """A front matter is asked for, and its top level has to look like a mapping; more would need a YAML parser."""
    front_matter = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", call.json()["content"], re.DOTALL)
    if front_matter is None:
        return json_reply({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    for line in front_matter[1].splitlines():
        if line.startswith("\t") or not (line == "" or line[0] in " #-]}" or ":" in line):
            return json_reply({"errors": [{"message": f"bad yaml: {line!r}"}], "warnings": []}, 400)
    return json_reply({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create_repo(call: Call) -> Reply:
    payload = call.json()
    kind = payload.get("type") or "model"
    repo_id = f"{payload.get('organization') or require_writer(call.token).user}/{payload['name']}"
    private = payload.get("visibility") == "private" or bool(payload.get("private"))
    try:
        repo = call.state.create_repo(kind, repo_id, call.token, private)
        repo.sdk = payload.get("sdk")
    except HubError as error:
        if error.status == 409:  # with exist_ok the client reads the url from the error
            error.extra["url"] = call.repo_url(call.state.get(kind, repo_id))
        raise
    return json_reply({"url": call.repo_url(repo), "name": repo_id, "id": repo_id})


@route("DELETE", "/api/repos/delete")
def delete_repo(call: Call) -> Reply:
    payload = call.json()
    namespace = payload.get("organization") or require_writer(call.token).user
    call.state.delete_repo(payload.get("type") or "model", f"{namespace}/{payload['name']}", call.token)
    return json_reply({})


@route("PUT", f"{REPO_API}/settings")
def update_settings(call: Call) -> Reply:
    repo, payload = call.writable(), call.json()
    if "visibility" in payload:
        repo.private = payload["visibility"] == "private"
    if "gated" in payload:
        repo.gated = bool(payload["gated"])
    return json_reply({"private": repo.private, "gated": repo.gated})


@route("GET POST DELETE", r"/api/(?P<kind>space)s/(?P<repo_id>[^/]+/[^/]+)/variables")
def variables(call: Call) -> Reply:
    """What a space's program finds in its environment; whoever may write to the space may see them."""
    repo = call.writable()
    if call.method != "GET":
        payload = call.json()
        if call.method == "POST":
            repo.variables[payload["key"]] = payload["value"]
        else:
            repo.variables.pop(payload["key"], None)
    return json_reply({key: {"value": value} for key, value in repo.variables.items()})


@route("GET", f"{REPO_API}(?:/revision/{REVISION})?")
def info(call: Call) -> Reply:
    repo = call.readable()
    return json_reply(repo_info(repo, repo.resolve(call.revision), with_blobs=call.flag("blobs")))


@route("GET", f"{REPO_API}/auth-check")
def auth_check(call: Call) -> Reply:
    call.state.readable_content(call.kind, call.repo_id, call.token)
    return json_reply({})


# Refs and history


@route("GET", f"{REPO_API}/refs")
def refs(call: Call) -> Reply:
    repo = call.readable()

    def entries(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()]

    listing = {"branches": entries(repo.branches, "refs/heads/"), "tags": entries(repo.tags, "refs/tags/")}
    return json_reply({**listing, "converts": [], "pullRequests": entries(repo.pull_requests, "")})


@route("GET", f"{REPO_API}/commits/{REVISION}")
def commits(call: Call) -> Reply:
    return json_reply(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in call.readable().history(call.revision)
        ]
    )


@route("POST", f"{REPO_API}/branch/{REVISION}")
def create_branch(call: Call) -> Reply:
    repo = call.writable()
    if call.revision in repo.branches:
        raise HubError(409, f"Reference already exists: {call.revision}")
    repo.branches[call.revision] = repo.resolve(call.json().get("startingPoint") or MAIN).oid
    return json_reply({})


@route("DELETE", f"{REPO_API}/branch/{REVISION}")
def delete_branch(call: Call) -> Reply:
    repo = call.writable()
    if call.revision == MAIN:
        raise HubError(403, "Cannot delete the main branch")
    if repo.branches.pop(call.revision, None) is None:
        raise HubError(404, f"Branch not found: {call.revision}", "RevisionNotFound")
    return json_reply({})


@route("POST", f"{REPO_API}/tag/{REVISION}")
def create_tag(call: Call) -> Reply:
    repo, tag = call.writable(), call.json()["tag"]
    if tag in repo.tags:
        raise HubError(409, f"Tag already exists: {tag}")
    repo.tags[tag] = repo.resolve(call.revision).oid
    return json_reply({})


@route("DELETE", f"{REPO_API}/tag/{REVISION}")
def delete_tag(call: Call) -> Reply:
    if call.writable().tags.pop(call.revision, None) is None:
        raise HubError(404, f"Tag not found: {call.revision}", "RevisionNotFound")
    return json_reply({})


# Uploads


@route("POST", f"{REPO_API}/preupload/{REVISION}")
def preupload(call: Call) -> Reply:
    """Tell the client which files go through LFS, and what is there already."""
    present = call.writable(call.as_pull_request).resolve(call.revision).files
    files = []
    for file in call.json()["files"]:
        path = file["path"]
        is_lfs = path.endswith(LFS_SUFFIXES) or file["size"] > LFS_SIZE
        oid = present[path].content_oid if path in present else None
        files.append({"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, "oid": oid})
    return json_reply({"files": files})


@route("POST", rf"{REPO_PAGE}\.git/info/lfs/objects/batch")
def lfs_batch(call: Call) -> Reply:
    """Hand out an upload URL for each object that is not there yet."""
    payload = call.json()
    repo = call.writable(as_pull_request="ref" not in payload)  # the client names no ref where it wants a PR
    objects = []
    for item in payload["objects"]:
        entry = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in repo.blobs:
            ticket = call.state.issue_upload_ticket(repo, item["oid"])
            entry["actions"] = {"upload": {"href": f"{call.endpoint}/_lfs/{item['oid']}?ticket={ticket}"}}
        objects.append(entry)
    return json_reply({"transfer": "basic", "objects": objects})


@route("PUT", r"/_lfs/[0-9a-f]{64}")
def lfs_upload(call: Call) -> Reply:
    oid = call.state.redeem_upload_ticket(call.query.get("ticket", [""])[0], call.body)
    return Reply(log={"oid": oid})


@route("POST", f"{REPO_API}/commit/{REVISION}")
def commit(call: Call) -> Reply:
    repo, author = call.writable(call.as_pull_request), require_writer(call.token)
    made, number = commit_payload(repo, call.revision, call.body, author, call.as_pull_request)
    url = call.repo_url(repo)
    result: dict[str, object] = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}"}
    if number:
        result["pullRequestUrl"] = f"{url}/discussions/{number}"
    return json_reply(result, commit=made.oid)


# Listings and downloads


@route("GET", f"{REPO_API}/tree/{REVISION}(?:/(?P<path>.*))?")
def tree(call: Call) -> Reply:
    found = call.readable().resolve(call.revision)
    folder = call.groups.get("path", "").strip("/")
    entries = tree_entries(found, folder, recursive=call.flag("recursive"), expand=call.flag("expand"))
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist on {call.revision}", "EntryNotFound")
    return json_reply(entries, commit=found.oid)


@route("POST", f"{REPO_API}/paths-info/{REVISION}")
def paths_info(call: Call) -> Reply:
    """The client posts a form; the documented API takes JSON as well."""
    found = call.readable().resolve(call.revision)
    if call.headers.get("Content-Type", "").startswith("application/json"):
        paths, expand = call.json()["paths"], bool(call.json().get("expand"))
    else:
        form = parse_qs(call.body.decode())
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
    return json_reply(path_entries(found, paths, expand), commit=found.oid)


@route("GET HEAD", f"{REPO_PAGE}/resolve/{REVISION}/(?P<path>.+)")
def resolve(call: Call) -> Reply:
    repo = call.state.readable_content(call.kind, call.repo_id, call.token)
    found, path = repo.resolve(call.revision), call.groups["path"]
    file = repo.file(found, path)
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Repo-Commit": found.oid,
        "ETag": f'"{file.content_oid}"',
        "Accept-Ranges": "bytes",
    }
    if file.is_lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    reply = Reply(200, repo.blobs[file.sha256], headers, {"commit": found.oid, "path_in_repo": path})
    return _cut_to_range(reply, call.headers.get("Range")) if call.method == "GET" else reply


def _cut_to_range(reply: Reply, wanted: str | None) -> Reply:
    """Answer one range with 206; as HTTP allows, ignore a header that is not one range of bytes."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if match is None or not any(match.groups()):
        return reply
    first, last, size = match[1], match[2], len(reply.body)
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        error = HubError(416, "The range cannot be satisfied")
        error.headers["Content-Range"] = f"bytes */{size}"
        raise error
    reply.status, reply.body = 206, reply.body[start:stop]
    reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return reply


# Last: a repo id without a namespace is nobody's repo, rather than a path that this server does not know


@route("GET HEAD POST", r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+)(?:/(?:revision|tree|preupload)/.*)?")
@route("GET HEAD", rf"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+)/resolve/{REVISION}/.+")
def without_namespace(call: Call) -> Reply:
    call.readable()
    raise AssertionError("every repo has a namespace")
