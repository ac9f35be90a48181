"""The package as people install it: uv, which builds and installs, and a copy of the repository that may be built."""

import fnmatch
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
NO_NETWORK = "dns error", "error sending request", "Connection refused", "network was disabled", "timed out"


def uv(*arguments: str | Path) -> str:
    """What `uv` prints. A test is skipped where there is no network (or index) to install from."""
    import uv as package

    environment = os.environ | {"UV_SYSTEM_CERTS": "1", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    environment.pop("VIRTUAL_ENV", None)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        if name in os.environ:
            environment.setdefault(name.replace("PIP", "UV"), os.environ[name])
    command = [package.find_uv_bin(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT, timeout=400)
    if done.returncode and "No solution found" not in done.stderr and any(map(done.stderr.__contains__, NO_NETWORK)):
        pytest.skip(f"nothing can be installed here: {done.stderr.strip()}")
    assert done.returncode == 0, f"uv {' '.join(command[1:])}\n{done.stderr}"
    return done.stdout


def sources_at(folder: Path) -> Path:
    """A copy of the repository, links as links, without what is made in it: what is built there is not built here."""
    made = [name.strip("/") for name in (ROOT / ".gitignore").read_text(encoding="utf-8").split()] + [".git"]
    ignored = lambda _, names: [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in made)]  # noqa: E731
    return shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)


def environment_at(folder: Path) -> Path:
    """The Python of a new virtual environment with nothing in it, of this version."""
    uv("venv", "--python", sys.executable, folder)
    return folder / "bin" / "python"
