"""The walls of the house (DESIGN, section 2): who may import whom, how long a file may be, where its tests are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"lorif_hf": "lorif_hf", "callbacks": "lorif_hf.callbacks", "model_cards": "lorif_hf.model_cards"}
FOLDERS = [*PACKAGES, "tests", "examples", "benchmarks"]
FACADES = {"lorif_hf", "lorif_hf.index", "lorif_hf.ensemble", "lorif_hf.cli"}


def module_name(path):
    """`lorif_hf/algebra/factors.py` -> `lorif_hf.algebra.factors`."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES[folder], *(part for part in rest if part != "__init__")])


SOURCES = {module_name(path): path for folder in PACKAGES for path in sorted((ROOT / folder).rglob("*.py"))}


def imports_of(module, source, is_package=False):
    """Absolute names of all modules that a source imports, also inside functions and `if TYPE_CHECKING`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*package, *filter(None, [node.module])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in SOURCES else base)
    return found


def imported(module):
    path = SOURCES[module]
    return imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def modules_in(package):
    return [module for module in SOURCES if within(module, [package])]


@pytest.mark.parametrize(
    "module, source, is_package, expected",
    [
        ("lorif_hf.storage.shards", "from .files import x", False, {"lorif_hf.storage.files"}),
        ("lorif_hf.storage.shards", "from ..index import InfluenceIndex", False, {"lorif_hf.index"}),
        ("lorif_hf.storage.shards", "from .. import index", False, {"lorif_hf.index"}),
        ("lorif_hf.storage.shards", "from .. import InfluenceIndex", False, {"lorif_hf"}),
        ("lorif_hf.storage", "from .files import x", True, {"lorif_hf.storage.files"}),
        ("lorif_hf.storage", "from ..index import x", True, {"lorif_hf.index"}),
        ("lorif_hf.callbacks", "from .influence import x", True, {"lorif_hf.callbacks.influence"}),
        ("lorif_hf.config", "def f():\n    import transformers.models as m, os", False, {"transformers.models", "os"}),
        ("lorif_hf.config", "from lorif_hf import callbacks", False, {"lorif_hf.callbacks"}),
    ],
)
def test_the_reader_of_imports_finds_them(module, source, is_package, expected):
    assert imports_of(module, source, is_package) == expected


def test_the_reader_sees_the_imports_of_this_package():
    assert "lorif_hf.algebra.gram" in imported("lorif_hf.algebra.curvature")
    assert "lorif_hf.errors" in imported("lorif_hf.storage.files")
    assert {"lorif_hf.algebra", "lorif_hf.recording", "lorif_hf.storage", "lorif_hf.callbacks"} <= set(SOURCES)


def test_algebra_imports_nothing_of_ours_and_knows_no_file_no_model_and_no_hub():
    foreign = ["transformers", "datasets", "huggingface_hub", "safetensors", "pyarrow", "peft", "lorif_hf"]
    for module in modules_in("lorif_hf.algebra"):
        names = imported(module)
        assert not [n for n in names if within(n, foreign) and not within(n, ["lorif_hf.algebra"])], module


UPWARDS = [
    "lorif_hf.index",
    "lorif_hf.building.builder",
    "lorif_hf.querying.measure",
    "lorif_hf.reports.attribution",
    "lorif_hf.recording.rows",
]


@pytest.mark.parametrize(
    "package, forbidden",
    [
        ("lorif_hf.storage", ["lorif_hf.algebra", "lorif_hf.recording", "transformers", "peft", *UPWARDS]),
        ("lorif_hf.recording", ["lorif_hf.storage", "huggingface_hub", "safetensors", "pyarrow", *UPWARDS]),
        ("lorif_hf", ["callbacks", "lorif_hf.callbacks"]),
    ],
)
def test_no_package_imports_what_stands_above_or_beside_it(package, forbidden):
    for module in modules_in(package):
        if within(module, ["lorif_hf.callbacks"]):
            continue
        assert not [name for name in imported(module) if within(name, forbidden)], module


def test_nobody_below_the_facade_imports_it():
    for module in SOURCES:
        if module in FACADES or within(module, ["lorif_hf.callbacks", "lorif_hf.evaluation"]):
            continue
        assert not imported(module) & {"lorif_hf", "lorif_hf.index"}, module


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_short_and_named_after_what_they_hold(folder):
    for path in (ROOT / folder).rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines: split it by what it does"
        assert path.name != "utils.py", f"{path.relative_to(ROOT)}: name it after what it holds"


@pytest.mark.parametrize("package", ["algebra", "evaluation", "recording", "storage"])
def test_every_module_has_its_file_of_tests(package):
    modules = {path.stem for path in (ROOT / "lorif_hf" / package).glob("*.py")} - {"__init__"}
    assert modules, f"lorif_hf/{package} holds no module"
    missing = [name for name in sorted(modules) if not (ROOT / "tests" / package / f"test_{name}.py").is_file()]
    assert not missing, f"tests/{package} lacks " + ", ".join(f"test_{name}.py" for name in missing)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


# accelerate is never the only one missing: PEFT needs it, and transformers' TrainerCallback imports any PEFT it finds.
# Trainer itself needs accelerate too, but to import the callback takes no Trainer.
@pytest.mark.parametrize(
    "missing", [["peft"], ["evaluate", "matplotlib"], ["peft", "evaluate", "matplotlib", "accelerate"]], ids=str
)
def test_optional_dependencies_stay_optional(missing):
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in missing)
    code = f"import sys; {blocked}import lorif_hf, lorif_hf.callbacks; print(lorif_hf.callbacks.InfluenceCallback)"
    done = run_python(code)
    assert done.returncode == 0 and "InfluenceCallback" in done.stdout, done.stderr


def test_importing_the_library_loads_no_optional_or_slow_dependency():
    done = run_python("import sys, lorif_hf; print(sorted({'evaluate', 'matplotlib', 'datasets'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("modules", ["lorif_hf.algebra", "lorif_hf.storage.examples, lorif_hf.storage.shards"])
def test_the_lower_floors_load_no_model_library(modules):
    """With an empty stand-in for the facade, which loads everything."""
    facade = (
        f"import sys, types; facade = types.ModuleType('lorif_hf'); facade.__path__ = [{str(ROOT / 'lorif_hf')!r}]"
    )
    seen = "print(sorted({'transformers', 'peft', 'datasets', 'huggingface_hub'} & set(sys.modules)))"
    done = run_python(f"{facade}; sys.modules['lorif_hf'] = facade; import {modules}; {seen}")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
