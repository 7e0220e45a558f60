# make install | demo | test | lint | clean
PYTHON ?= python3
# Another build of torch: make install TORCH="torch==2.13.0 --index-url=..."
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/installed

.PHONY: install demo test lint clean

install: $(STAMP)

$(STAMP): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet -r requirements.txt
	$(PIP) install --quiet --no-deps recbole==1.2.1
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: install
	$(BIN)/python run_recbole_pref.py --model=LPOSASRec --dataset=ml-100k --config_files=properties/demo.yaml

test: install
	OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 $(BIN)/python -m pytest -n 2 --dist=loadfile

lint: install
	$(BIN)/ruff check recbole_pref tests benchmarks run_recbole_pref.py
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache log log_tensorboard saved
