"""The lower bounds of pyproject.toml hold: what they allow is installed, and used."""

import importlib.metadata
import json
import os
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
def without_torch(tmp_path_factory):
    """What makes uv leave PyTorch alone, whoever asks for it: the file for its option --override."""
    path = tmp_path_factory.mktemp("override") / "without-torch.txt"
    path.write_text(f"{HERE} ; python_version < '0'\n")
    return path


@pytest.fixture(scope="module")
def resolved(without_torch):
    """The lowest versions that go together, as lines "name==version"."""
    asked = [part for extra in EXTRAS for part in ("--extra", extra)]
    command = ["--resolution", "lowest-direct", "--only-binary", ":all:", "--override", without_torch]
    command += ["--python", sys.executable, "--no-annotate", "--no-header"]
    return uv("pip", "compile", *command, *asked, "pyproject.toml").splitlines()


def torch_alone(folder):
    """A folder for the path of another environment, with the PyTorch that is installed here and nothing else.

    It lies outside of that environment: what installs and removes packages there must not follow links into this one.
    """
    distribution = importlib.metadata.distribution(HERE)
    folder.mkdir()
    for name in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
        (folder / name).symlink_to(distribution.locate_file(name))
    return folder


def needs_of_torch(known):
    """Lines for what PyTorch itself needs and nobody else asks for, as it is installed here."""
    needed = [Requirement(text) for text in importlib.metadata.requires(HERE)]
    names = [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{name}=={importlib.metadata.version(name)}" for name in names if canonicalize_name(name) not in known]


def test_every_bound_is_a_version_that_is_tested(resolved):
    """No other requirement raises it; but that there may be no wheel of it for a newer Python."""
    found = dict(line.split("==") for line in resolved)
    for name, bound in bounds(*EXTRAS).items():
        if name == HERE:
            continue
        lowest = Version(found[name])
        assert lowest == bound or (lowest > bound and sys.version_info >= (3, 12)), (
            f"pyproject.toml allows {name} {bound}, which goes with none of the others' lowest: write >={lowest}"
        )


@pytest.mark.slow
def test_everything_runs_with_the_lowest_versions(resolved, without_torch, tmp_path, hub):
    python, lines = environment_at(tmp_path / "environment"), tmp_path / "lowest.txt"
    lines.write_text("\n".join([*resolved, *needs_of_torch({line.split("==")[0] for line in resolved})]))
    uv("pip", "install", "--python", python, "--override", without_torch, "--requirement", lines)
    uv("pip", "install", "--python", python, "--no-deps", sources_at(tmp_path / "tree"))
    names = sorted(bounds(*EXTRAS))
    path = [str(ROOT / "tests" / "support"), str(torch_alone(tmp_path / "torch-alone"))]
    environment = hub.environment(tmp_path / "home", hub.token)
    environment |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", ROOT / "tests" / "support" / "lowest_smoke.py", *names]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    versions = json.loads(ran.stdout.splitlines()[-1])
    assert {f"{name}=={versions[name]}" for name in names if name != HERE} <= set(resolved)
