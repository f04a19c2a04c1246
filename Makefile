# Every target sets up what it needs, from nothing, in .venv; a second run does no set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Ray's own warnings about CPU-only wheels and metrics are of no use to a reader of this output.
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: quickstart test check bench chaos chromium clean
.DEFAULT_GOAL := quickstart

quickstart: $(READY)
	$(BIN)/intermoco ablate quickstart

test: $(READY) chromium
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=15

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(READY)
	$(BIN)/python -m tests.benchmarks.run

# Kills workers, nodes and drivers under studies on a cluster in a network namespace of its own: an hour or two.
chaos: $(READY)
	$(BIN)/python -m tests.chaos --kills 50 --seed 0

# The report page is tested in a real browser; pip installs none.
chromium:
	@tests/chromium.sh

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamp is made last, so an interrupted installation is taken up again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
