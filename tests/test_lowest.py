"""The lower bounds of pyproject.toml hold: what they allow is installed, and used."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
from installed import ROOT, environment_at, sources_at, uv
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = "trainer", "peft", "evaluate"
# The PyTorch that runs these tests: another would be gigabytes of CUDA, which its own index alone spares.
HERE = "torch"


def bounds(*extras):
    """The lowest version of each requirement, by its name."""
    asked = [*PROJECT["dependencies"], *(one for name in extras for one in PROJECT["optional-dependencies"][name])]
    requirements = [Requirement(text) for text in asked if not text.startswith("lorif-hf")]
    return {canonicalize_name(one.name): min(Version(part.version) for part in one.specifier) for one in requirements}


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    """The lowest versions that go together, as lines "name==version", without PyTorch and what only it needs."""
    folder = tmp_path_factory.mktemp("lowest")
    (folder / "without-torch.txt").write_text(f"{HERE} ; python_version < '0'\n")
    asked = [part for extra in EXTRAS for part in ("--extra", extra)]
    command = ["--resolution", "lowest-direct", "--only-binary", ":all:", "--python-version", sys.version.split()[0]]
    command += ["--no-annotate", "--no-header", "--override", folder / "without-torch.txt"]
    return uv("pip", "compile", *command, *asked, "pyproject.toml").split("\n")[:-1]


def test_every_bound_is_a_version_that_is_tested(resolved):
    """No other requirement raises it; but that there may be no wheel of it for a newer Python."""
    found = dict(line.split(" ")[0].split("==") for line in resolved)
    for name, bound in bounds(*EXTRAS).items():
        if name == HERE:
            continue
        lowest = Version(found[name])
        assert lowest == bound or (lowest > bound and sys.version_info >= (3, 12)), (
            f"pyproject.toml allows {name} {bound}, which goes with none of the others' lowest: write >={lowest}"
        )


@pytest.mark.slow
def test_everything_runs_with_the_lowest_versions(resolved, tmp_path, hub):
    python = environment_at(tmp_path / "environment")
    packages = (
        tmp_path / "environment" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    )
    for name in {path.parts[0] for path in importlib.metadata.files(HERE)} - {"..", "__pycache__"}:
        where = importlib.metadata.distribution(HERE).locate_file(name)
        (packages / name).symlink_to(where)
    known = {line.split("==")[0] for line in resolved}
    needed = [Requirement(text) for text in importlib.metadata.requires(HERE)]
    needed = [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    lines = [*resolved, *(f"{name}=={importlib.metadata.version(name)}" for name in needed if name not in known)]
    (tmp_path / "lowest.txt").write_text("\n".join(lines))
    (tmp_path / "torch.txt").write_text(f"{HERE}=={importlib.metadata.version(HERE)}\n")
    uv("pip", "install", "--python", python, "--requirement", tmp_path / "lowest.txt")
    uv("pip", "install", "--python", python, "--no-deps", sources_at(tmp_path / "tree"))
    names = sorted(bounds(*EXTRAS))
    environment = hub.environment(tmp_path / "home", hub.token)
    environment |= {"PYTHONPATH": str(ROOT / "tests" / "support"), "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", ROOT / "tests" / "support" / "lowest_smoke.py", *names]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    versions = json.loads(ran.stdout.splitlines()[-1])
    assert [f"{name}=={versions[name]}" for name in names if name != HERE] == [
        line for line in resolved if line.split("==")[0] in names
    ]
