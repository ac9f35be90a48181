"""The package as it is shipped: callbacks/ and model_cards/ lie inside lorif_hf, in a wheel and when editable."""

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lorif_hf
from lorif_hf.evaluation import metric_names


ROOT = Path(__file__).parent.parent


def test_the_editable_install_maps_the_top_folders_in():
    assert Path(importlib.import_module("lorif_hf.callbacks").__file__) == ROOT / "callbacks" / "__init__.py"
    assert Path(importlib.import_module("lorif_hf.model_cards").__file__) == ROOT / "model_cards" / "__init__.py"
    assert lorif_hf.__version__


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_runs_without_the_repository(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lorif_hf").rglob("*.py")}
    for folder in ("callbacks", "model_cards"):
        expected |= {f"lorif_hf/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    metrics = ROOT / "lorif_hf" / "evaluation" / "metrics"
    shims = {path.relative_to(ROOT).as_posix() for name in metric_names() for path in (metrics / name).glob("*.*")}
    assert len(shims) == 2 * len(metric_names()) and expected | shims <= names
    assert "lorif_hf/py.typed" in names and "lorif_hf/reports/templates/page.html" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import evaluate, lorif_hf, lorif_hf.callbacks, lorif_hf.model_cards\n"
        "from lorif_hf.reports.templating import TEMPLATES\n"
        "TEMPLATES.get_template('page.html')\n"
        "for name in lorif_hf.evaluation.metric_names(): assert evaluate.load(lorif_hf.metric(name)).name == name\n"
        "assert lorif_hf.metric('lds').startswith(sys.path[0])\n"
        "print(lorif_hf.callbacks.__file__)"
    )
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ran.stdout.strip() == str(tmp_path / "site" / "lorif_hf" / "callbacks" / "__init__.py")


def test_every_lower_bound_is_the_one_that_was_promised():
    text = (ROOT / "pyproject.toml").read_text()
    promised = {
        "torch": "2.6",
        "transformers": "5.0",
        "datasets": "4.0",
        "huggingface_hub": "1.0",
        "safetensors": "0.5",
        "peft": "0.18",
        "evaluate": "0.4.6",
    }
    for name, bound in promised.items():
        assert f'"{name}>={bound}"' in text
    assert 'requires-python = ">=3.10"' in text
