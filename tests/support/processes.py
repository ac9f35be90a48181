"""The same code in other processes: what must not depend on one."""

import os
import subprocess
import sys
from pathlib import Path


def printed_twice(code: str, folder: Path) -> list[str]:
    """What a program prints in two processes with different hash seeds, in a folder of tests."""
    program = f"import sys; sys.path[:0] = {sys.path!r}; {code}"
    return [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
