"""One virtual environment per system, made at the first use and kept."""

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class System:
    """How one system is installed.

    Args:
        requirement: what pip is asked for.
        options: more options of pip.
        unwanted: dependencies to take away again. They come from PyPI as CUDA builds, beside a CPU build of torch
            make transformers fail at import, and no runner uses them.
        beside: what else the runner needs.
        environment: variables that the runner needs.
        note: what a reader of the table should know.
    """

    requirement: str
    options: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    note: str = ""


SYSTEMS = {
    "dattri": System("dattri==0.3.0"),
    "dattri-llm": System("dattri-llm[transformers]==0.1.0", beside=("peft",)),
    "kronfluence": System("kronfluence==1.0.1", unwanted=("torchvision",)),
    "logix": System(
        "logix-ai==0.1.1",
        options=("--ignore-requires-python",),
        environment=(("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"),),
        note="says it needs Python < 3.11: installed with --ignore-requires-python",
    ),
    "bergson": System("bergson==2.5.1", unwanted=("torchvision", "torchaudio")),
}


class InstallError(RuntimeError):
    """pip could not install a system; the message is its first error."""


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of a system's environment, installed if it is not there yet."""
    system, home = SYSTEMS[name], folder / name
    python, done = home / "bin" / "python", home / "installed"
    if done.exists() and done.read_text() == system.requirement:
        return python
    venv.create(home, clear=True, with_pip=True)
    # The constraints pin torch and transformers, so that every system runs on the same ones.
    wanted = [system.requirement, "torch", "transformers", "numpy", *system.beside]
    constraints = str(ROOT / "constraints.txt")
    _pip(python, "install", "--quiet", "--constraint", constraints, *system.options, *wanted)
    if system.unwanted:
        _pip(python, "uninstall", "--quiet", "--yes", *system.unwanted)
    done.write_text(system.requirement)
    return python


def version_of(python: Path, package: str) -> str:
    """The installed version of a package, as pip's metadata has it."""
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    return subprocess.run([python, "-c", code, package], capture_output=True, text=True, check=True).stdout.strip()


def _pip(python: Path, *arguments: str) -> None:
    print(f"{python.parents[1].name}: pip {' '.join(arguments)}", file=sys.stderr)
    ran = subprocess.run([python, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError((errors or [f"pip exited with {ran.returncode}"])[-1])
