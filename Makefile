# Two commands: `make demo` and `make test`. Each makes its own virtual environment first; a second run starts in seconds.
# On a machine without a GPU, PIP_EXTRA_INDEX_URL set to PyTorch's CPU index spares gigabytes of CUDA libraries.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/installed
	$(BIN)/python examples/quickstart.py demo-output

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lorif_hf callbacks model_cards
	$(BIN)/python -m pytest

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv demo-output build dist *.egg-info
