"""`make docs` builds the site."""

import subprocess
import sys

import pytest
from installed import environment_at, sources_at, uv


@pytest.mark.slow
def test_make_docs_builds_a_site_without_a_warning(tmp_path):
    """Its environment is made by uv, in a tenth of pip's time, and then is what make takes as made."""
    tree = sources_at(tmp_path / "tree")
    python = environment_at(tree / ".venv-docs")
    asked = subprocess.run(
        [sys.executable, "docs/tooling/requirements.py"], cwd=tree, capture_output=True, text=True, check=True
    )
    (tmp_path / "requirements.txt").write_text(asked.stdout)
    command = ["--constraint", tree / "constraints.txt", "--requirement", tmp_path / "requirements.txt"]
    uv("pip", "install", "--python", python, *command)
    (tree / ".venv-docs" / "installed").touch()
    built = subprocess.run(["make", "docs"], cwd=tree, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    pages = {path.with_suffix("").name for path in (tree / "docs").glob("*.md")}
    assert pages <= {path.stem for path in (tree / "site").glob("*.html")}
