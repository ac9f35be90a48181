"""The package as it is shipped: what is in it, what it says of itself, and that it works where only it is."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from installed import ROOT, environment_at, sources_at, uv

import lorif_hf


if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOME = PROJECT["urls"]["Homepage"]
PYTHONS = [f"3.{minor}" for minor in range(10, 14)]


def test_the_top_folders_are_packages_inside():
    for name in ("callbacks", "model_cards"):
        module = Path(importlib.import_module(f"lorif_hf.{name}").__file__)
        assert module.resolve() == ROOT / name / "__init__.py"
    assert lorif_hf.__version__


def contents(path):
    """Each file of a wheel or an sdist, and its bytes; of an sdist without the folder that it unpacks to."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(path) as archive:
        files = [member for member in archive.getmembers() if not member.isdir()]
        return {member.name.partition("/")[2]: archive.extractfile(member).read() for member in files}


@pytest.mark.slow
def test_what_is_built_is_whole_and_runs_without_the_repository(tmp_path):
    tree = sources_at(tmp_path / "tree")
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    uv("build", "--wheel", "--out-dir", tmp_path / "of-tree", tree)
    shutil.rmtree(tree / "build")
    uv("build", "--out-dir", tmp_path / "built", tree)  # the sdist, and the wheel from that
    sdist, (path,) = contents(*(tmp_path / "built").glob("*.tar.gz")), (tmp_path / "built").glob("*.whl")
    wheel = contents(path)
    assert wheel == contents(*(tmp_path / "of-tree").glob("*.whl"))
    missing = files - sdist.keys()
    assert not missing, f"MANIFEST.in leaves out {', '.join(sorted(missing))}"

    packaged = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lorif_hf").rglob("*.*")}
    for folder in ("callbacks", "model_cards"):
        packaged |= {f"lorif_hf/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.*")}
    missing = {name for name in packaged - wheel.keys() if "__pycache__" not in name}
    assert not missing, f"[tool.setuptools] of pyproject.toml leaves out {', '.join(sorted(missing))}"
    assert any(name.endswith("licenses/LICENSE") for name in wheel)

    zipfile.ZipFile(path).extractall(tmp_path / "site")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import evaluate, lorif_hf, lorif_hf.callbacks, lorif_hf.evaluation, lorif_hf.model_cards\n"
        "for name in lorif_hf.evaluation.metric_names(): assert evaluate.load(lorif_hf.metric(name)).name == name\n"
        "assert lorif_hf.metric('lds').startswith(sys.path[0])\n"
        "print(lorif_hf.callbacks.__file__)"
    )
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ran.stdout.strip() == str(tmp_path / "site" / "lorif_hf" / "callbacks" / "__init__.py")


TYPED = """\
from lorif_hf import InfluenceConfig
from lorif_hf.callbacks import InfluenceCallback

callback = InfluenceCallback("my-index", config=InfluenceConfig())
wrong: str = InfluenceConfig().seed
InfluenceCallback("my-index", config=1)
"""


@pytest.mark.slow
def test_mypy_sees_the_types_of_an_editable_install(tmp_path):
    """Of what it imports nothing need be there."""
    tree, python = sources_at(tmp_path / "tree"), environment_at(tmp_path / "environment")
    uv("pip", "install", "--python", python, "--no-deps", "--editable", tree)
    (tmp_path / "typed.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--ignore-missing-imports", "typed.py"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    errors = [line for line in ran.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, ran.stdout + ran.stderr
    assert 'expression has type "int"' in errors[0] and 'expected "InfluenceConfig | None"' in errors[1]


def test_every_source_is_python_3_10():
    for path in sorted(ROOT.rglob("*.py")):
        if not {".venv", ".venv-docs", "build"} & set(path.relative_to(ROOT).parts):
            ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_it_says_for_which_pythons_it_is():
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert named == PYTHONS and PROJECT["requires-python"] == f">={PYTHONS[0]}"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("resolution", ["highest", "lowest-direct"])
def test_every_python_has_wheels_of_all_that_is_needed(python, resolution, tmp_path):
    """Of every extra but those for working on the project, all at once: nothing is installed here."""
    extras = [
        part for name in PROJECT["optional-dependencies"] if name not in ("docs", "test") for part in ("--extra", name)
    ]
    command = ["--resolution", resolution, "--python-version", python, "--only-binary", ":all:", *extras]
    assert "transformers==5" in uv("pip", "compile", "--python-platform", "linux", *command, "pyproject.toml")


@pytest.mark.parametrize("python", PYTHONS)
def test_the_pins_can_be_installed(python):
    """Those of constraints.txt, with the extras that `make` installs."""
    command = ["--python-version", python, "--constraint", "constraints.txt", "--extra", "test"]
    assert "torch==2.13.0" in uv("pip", "compile", "--python-platform", "linux", *command, "pyproject.toml")


def test_links_of_the_readme_lead_to_the_repository():
    """PyPI shows the README without the files that lie beside it."""
    text = re.sub(
        r"^```.*?^```|`[^`\n]+`", "", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    links = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"\s]+)", text)
    relative = [link for link in links if not re.match(r"https://|#|mailto:", link)]
    assert not relative, f"write {HOME}/blob/main/... (of pictures {HOME}/raw/main/...): {', '.join(relative)}"
    own = [re.match(rf"{HOME}/(?:blob|raw|tree)/main/([^#?]+)", link) for link in links]
    missing = [link[1] for link in own if link and not (ROOT / link[1]).exists()]
    assert any(own) and not missing, f"README.md links to {', '.join(missing)}"


def test_the_citation_is_of_this_version_and_of_the_paper():
    """In the Citation File Format 1.2.0: what it requires of the file and of each reference."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited.keys() >= {"cff-version", "message", "title", "authors"} and cited["cff-version"] == "1.2.0"
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert [cited["repository-code"], cited["authors"]] == [PROJECT["urls"]["Source"], PROJECT["authors"]]
    (paper,) = cited["references"]
    assert paper.keys() >= {"type", "title", "authors"} and paper["url"] == PROJECT["urls"]["Paper"]
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Le", "Xu", "Salzmann"]
