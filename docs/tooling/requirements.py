"""Print what the extra `docs` of pyproject.toml asks for, one a line: pip itself would install PyTorch beside it."""

from pathlib import Path


try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
print("\n".join(PROJECT["project"]["optional-dependencies"]["docs"]))
