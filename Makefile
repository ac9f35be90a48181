# `make demo`, `make test` and `make docs`. Each makes its own virtual environment first; a second run starts in seconds.
# On a machine without a GPU, PIP_EXTRA_INDEX_URL set to PyTorch's CPU index spares gigabytes of CUDA libraries.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs clean

demo: .venv-demo/installed
	.venv-demo/bin/python -m examples.demo demo-output

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lorif_hf callbacks model_cards
	$(BIN)/python -m pytest

# The pages are written from the sources without importing them, so their environment has no PyTorch in it. Not --quiet:
# that hides warnings from --strict too.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "The site is in site/: open site/index.html, or serve it for its search: $(PYTHON) -m http.server -d site"

# Without the test tools: less to download, and what the README tells a user to install plus matplotlib.
.venv-demo/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

.venv-docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python docs/tooling/requirements.py > .venv-docs/requirements.txt
	.venv-docs/bin/python -m pip install --quiet --constraint constraints.txt --requirement .venv-docs/requirements.txt
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-docs site demo-output build dist *.egg-info
