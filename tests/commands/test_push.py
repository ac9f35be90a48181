"""`lorif-hf push`."""

from terminal import REPO, run


def test_push_makes_one_commit_and_prints_its_address(hub, saved):
    arguments = ["--private", "--commit-message", "By hand", "--tag", "one", "--tag", "two"]
    result = run("push", saved / "index", REPO, *arguments, HF_TOKEN=hub.token)
    newest = hub.commits(REPO, "dataset")[0]
    assert result.stdout == f"{hub.endpoint}/datasets/{REPO}/commit/{newest.oid}\n"
    assert newest.title == "By hand" and hub.state.get("dataset", REPO).private
    assert "- one\n- two\n" in hub.files(REPO, "dataset")["README.md"].decode()
    result = run(
        "push", saved / "index", REPO, "--create-pr", "--commit-message", "x", "--tag", "three", "--token", hub.token
    )
    assert result.stdout == f"{hub.endpoint}/datasets/{REPO}/discussions/1\n"
    run("push", saved / "index", REPO, "--revision", "next", HF_TOKEN=hub.token)
    assert "influence_config.json" in hub.files(REPO, "dataset", "next")
