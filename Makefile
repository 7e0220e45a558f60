# make install | demo | check | test | coverage | lint | docs | format | clean
PYTHON ?= python3
# Another build of torch: make install TORCH="torch==2.13.0 --index-url=..."
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/installed
CODE := recbole_pref tests benchmarks tools examples run_recbole_pref.py
TEXTS := README.md CONTRIBUTING.md CHANGELOG.md docs properties
TEST := OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 $(BIN)/python -m pytest -n 3
# The order of tests/conftest.py: the longest files first.
BY_FILE := --dist=loadfile --no-loadscope-reorder
# The mathematics, the settings and the tools: what most changes break first.
QUICK := $(addprefix tests/test_,$(addsuffix .py,losses samplers scoring metrics popularity objective packing dropout \
	settings config cli memory data_tool data_check docs))

.PHONY: install demo check test coverage lint docs format clean

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

check: lint
	$(TEST) --dist=worksteal -m "not slow" $(QUICK)

test: install
	$(TEST) $(BY_FILE)

# On Python 3.12 and later sysmon makes coverage nearly free.
coverage: install
	COVERAGE_CORE=$(shell $(PYTHON) -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') $(TEST) $(BY_FILE) --cov=recbole_pref --cov-report=term:skip-covered

lint: install docs
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check --quiet $(CODE)
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy
	$(BIN)/codespell $(CODE) $(TEXTS)
	$(BIN)/python tools/prose.py $(CODE) $(TEXTS)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: install
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache log log_tensorboard saved
