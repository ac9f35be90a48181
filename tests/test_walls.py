"""The walls of the house: who may import whom, how long a file may be, where its tests are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lorif_hf


ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"lorif_hf": "lorif_hf", "callbacks": "lorif_hf.callbacks", "model_cards": "lorif_hf.model_cards"}
FOLDERS = [*PACKAGES, "tests", "examples", "benchmarks"]
FACADES = {"lorif_hf", "lorif_hf.index", "lorif_hf.index_build", "lorif_hf.ensemble"}
ABOVE = ["lorif_hf.app", "lorif_hf.callbacks", "lorif_hf.commands", "lorif_hf.evaluation"]  # may import the facade

# What each room may import of ours, beside itself. Whoever adds an arrow says so here.
GROUND = {"checks", "config", "coverage", "errors", "progress", "registry"}  # the ground floor, open to all above
MAY_IMPORT = {
    "checks": set(),
    "coverage": set(),
    "errors": set(),
    "progress": set(),
    "registry": {"errors"},
    "config": {"checks", "errors", "registry"},
    "algebra": set(),
    "storage": {"checks", "coverage", "errors"},
    "layers": GROUND | {"algebra"},
    "codecs": GROUND | {"algebra"},
    "tasks": GROUND | {"layers"},
    "recording": GROUND | {"algebra", "layers", "tasks"},
    "curvature": GROUND | {"algebra", "codecs", "layers", "storage"},
    "building": GROUND | {"algebra", "codecs", "curvature", "layers", "recording", "storage", "tasks"},
    "querying": GROUND | {"algebra", "codecs", "curvature", "layers", "recording", "storage", "tasks"},
    "estimating": GROUND
    | {"algebra", "building", "codecs", "curvature", "layers", "recording", "reports", "storage", "tasks"},
    "hub": GROUND | {"storage"},
    "reports": GROUND | {"querying", "storage", "tasks"},
}

# What a function of it may import when it is called: an arrow upwards, which no import follows.
WHEN_CALLED = {"config": {"estimating"}}  # `InfluenceConfig.sized` lays out a model

# And of others: who knows nothing of models, of the Hub, of files.
MODELS, HUB = ["transformers", "peft", "datasets", "accelerate"], ["huggingface_hub", "httpx", "requests"]
FILES = ["safetensors", "pyarrow"]
FOREIGN = {
    "algebra": [*MODELS, *HUB, *FILES],
    "codecs": [*MODELS, *HUB, *FILES],
    "curvature": [*MODELS, *HUB, *FILES],
    "storage": [*MODELS, *HUB],
    "layers": [*HUB, *FILES],
    "tasks": [*HUB, *FILES],
    "recording": [*HUB, *FILES],
    "querying": [*HUB, *FILES],
    "building": HUB,
    "hub": MODELS,
    "checks": [*MODELS, *HUB, *FILES],
    "config": [*MODELS, *HUB, *FILES],
    "errors": [*MODELS, *HUB, *FILES],
    "registry": [*MODELS, *HUB, *FILES],
}


def module_name(path):
    """`lorif_hf/algebra/factors.py` -> `lorif_hf.algebra.factors`."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES[folder], *(part for part in rest if part != "__init__")])


SOURCES = {module_name(path): path for folder in PACKAGES for path in sorted((ROOT / folder).rglob("*.py"))}


def statements(tree, inside_functions=True):
    """All nodes of a source; without those in functions, only what runs when it is imported (and type checks)."""
    for node in ast.iter_child_nodes(tree):
        if inside_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from statements(node, inside_functions)


def imports_of(module, source, is_package=False, inside_functions=True):
    """Absolute names of all modules that a source imports, also inside functions and `if TYPE_CHECKING`."""
    found = set()
    for node in statements(ast.parse(source), inside_functions):
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


def imported(module, inside_functions=True):
    path = SOURCES[module]
    return imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py", inside_functions)


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


def test_imports_inside_functions_can_be_left_out():
    source = "import os\nclass A:\n    import sys\n    def f(self):\n        import json\nif os:\n    import re\n"
    assert imports_of("lorif_hf.config", source) == {"os", "sys", "json", "re"}
    assert imports_of("lorif_hf.config", source, inside_functions=False) == {"os", "sys", "re"}


def room(name):
    """`lorif_hf.algebra.factors` -> "algebra"; `None` for the facade itself and what is not ours."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] or None if first == "lorif_hf" else None


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_imports_what_stands_below_it_and_nothing_else(name):
    modules = modules_in(f"lorif_hf.{name}")
    assert modules, f"there is no lorif_hf.{name}"
    for module in modules:
        others = {other for other in imported(module) if within(other, ["lorif_hf"]) and room(other) != name}
        later = others - imported(module, inside_functions=False)
        known = {other for other in later if room(other) in WHEN_CALLED.get(name, ())}
        above = sorted(other for other in others - known if room(other) not in MAY_IMPORT[name])
        assert not above, f"{module} imports {', '.join(above)}"


@pytest.mark.parametrize("name", FOREIGN)
def test_a_room_knows_no_library_that_is_none_of_its_business(name):
    for module in modules_in(f"lorif_hf.{name}"):
        assert not [other for other in imported(module) if within(other, FOREIGN[name])], module


def test_every_room_has_its_walls_here():
    """Those above the facade may import it."""
    rooms = {room(module) for module in SOURCES} - {None}
    above = {"index", "index_build", "ensemble", "evaluation", "callbacks", "model_cards"}
    above |= {"app", "commands", "__main__"}
    assert rooms == set(MAY_IMPORT) | above


def test_nothing_imports_the_callbacks():
    for module in SOURCES:
        if not within(module, ["lorif_hf.callbacks"]):
            assert not [name for name in imported(module) if within(name, ["callbacks", "lorif_hf.callbacks"])], module


def packages_of(name):
    """The packages that Python imports before a module, its own name included, from the outermost in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def circle(graph):
    """The modules of a circle, or an empty list: depth first."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        for other in sorted(graph.get(module, ())):
            if around := visit(other):
                return around
        path.pop()
        done.add(module)
        return []

    return next((around for around in map(visit, sorted(graph)) if around), [])


@pytest.mark.parametrize(
    "graph, expected",
    [
        ({}, []),
        ({"a": {"b"}, "b": {"c"}, "d": {"b", "c"}}, []),
        ({"a": {"a"}}, ["a"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}}, ["b", "c"]),
    ],
)
def test_circles_are_found(graph, expected):
    assert circle(graph) == expected


def test_no_module_is_imported_by_one_that_it_imports():
    """Importing a module imports the packages around it first: all but those that the importing one is in itself."""
    graph = {}
    for module in SOURCES:
        named = imported(module, inside_functions=False)
        around = {package for name in named for package in packages_of(name)} - set(packages_of(module))
        graph[module] = (named | around) & set(SOURCES)
    assert "lorif_hf.codecs" in graph["lorif_hf.curvature.encoding"]
    assert circle(graph) == []


def test_nobody_below_the_facade_imports_it():
    for module in SOURCES:
        if module in FACADES or within(module, ABOVE):
            continue
        assert not imported(module) & {"lorif_hf", "lorif_hf.index"}, module


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_short_and_named_after_what_they_hold(folder):
    for path in (ROOT / folder).rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines: split it by what it does"
        assert path.name != "utils.py", f"{path.relative_to(ROOT)}: name it after what it holds"


TESTED = ["algebra", "app", "building", "codecs", "commands", "curvature", "estimating", "evaluation"]
TESTED += ["evaluation/retraining", "hub", "layers", "querying", "recording", "reports", "storage", "tasks"]


@pytest.mark.parametrize("package", TESTED)
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


LATE = {"datasets", "evaluate", "gradio", "jinja2", "matplotlib", "pandas", "peft", "rich", "sklearn", "trl", "typer"}
HEAVY = LATE | {"numpy", "torch", "transformers"}


def test_importing_the_library_loads_nothing_heavy_and_its_names_nothing_that_they_do_without():
    names = "from lorif_hf import *"
    late = LATE - {"jinja2"}  # renders results
    done = run_python(
        f"import sys, lorif_hf; print(sorted({HEAVY} & set(sys.modules))); {names}; "
        f"print(InfluenceIndex.__name__, sorted({late} & set(sys.modules)))"
    )
    assert done.stdout == "[]\nInfluenceIndex []\n", done.stdout + done.stderr
    assert "InfluenceIndex" in run_python("import lorif_hf; print(dir(lorif_hf))").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["--version"]], ids=" ".join)
def test_the_command_line_says_what_it_is_without_loading_what_it_runs(arguments):
    late = HEAVY - {"jinja2", "rich", "typer"}
    done = run_python(
        f"import sys; sys.argv = ['lorif-hf', *{arguments}]\nfrom lorif_hf.commands import main\n"
        f"try:\n    main()\nexcept SystemExit as end:\n    print(end.code, sorted({late} & set(sys.modules)))"
    )
    assert done.stdout.splitlines()[-1] == "0 []" and done.stderr == "", done.stdout + done.stderr


def test_a_name_that_is_none_is_told_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'lorif_hf' has no attribute 'InfluenceIndx'"):
        lorif_hf.InfluenceIndx  # noqa: B018


@pytest.mark.parametrize(
    "modules",
    [
        "lorif_hf.algebra.curvature, lorif_hf.algebra.scoring",
        "lorif_hf.config, lorif_hf.registry, lorif_hf.checks, lorif_hf.errors",
        "lorif_hf.storage.examples, lorif_hf.storage.shards",
        "lorif_hf.codecs",
    ],
)
def test_the_lower_floors_load_no_model_library(modules):
    seen = "print(sorted({'transformers', 'peft', 'datasets', 'huggingface_hub'} & set(sys.modules)))"
    done = run_python(f"import sys, {modules}; {seen}")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
