"""The command line: one file a command. What it prints, and with which exit codes, is in docs/command-line.md.

`--help` must come at once, so that nothing here imports torch before a command runs: each imports what it needs.
"""

from .program import main, program


__all__ = ["main", "program"]
