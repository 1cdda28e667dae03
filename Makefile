# Everything a fresh machine needs: `make demo` and `make test`. Another environment: make test VENV=/tmp/venv
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
FAULTS := $(addprefix tests/test_gallery_,crash.py faults.py security.py)
INSTALLED := $(VENV)/.installed

.PHONY: demo test faults lint bench install
install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test,lint]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/tiprctl demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

# Galleries through kills, full disks, wrong clocks and hostile names, in real processes; a part of `make test`.
faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -rs $(FAULTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/ranking.py --quick
	$(BIN)/python benchmarks/drawing.py --quick
	$(BIN)/python benchmarks/loader.py --quick
	$(BIN)/python benchmarks/train_step.py --quick
	$(BIN)/python benchmarks/patch_embedding.py --quick
	$(BIN)/python benchmarks/encode.py --quick
	$(BIN)/python benchmarks/memory.py --quick
	$(BIN)/python benchmarks/scaling.py --quick
	$(BIN)/python benchmarks/gallery.py --quick
	$(BIN)/python benchmarks/cold_query.py --quick
	$(BIN)/python benchmarks/indexing.py --quick
