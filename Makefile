# make quickstart: environment, dependencies, built-in data, train, test.   make test: environment, the whole suite.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint parity clean

quickstart: $(VENV)/.installed
	$(BIN)/python train.py --config_file configs/quickstart.yml
	$(BIN)/python test.py --config_file configs/quickstart.yml TEST.WEIGHT runs/quickstart/resnet10_12.pth OUTPUT_DIR runs/quickstart/test
	@echo
	@echo "A network learnt to tell drawn pedestrians apart. Where to look next:"
	@echo "  runs/quickstart/    report.html (open it), metrics.json, log.txt, the weights"
	@echo "  data/               the images it saw"
	@echo "  configs/transreid/  the published settings;  docs/your_data.md  your own images"

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/pylint --recursive=y --rcfile=pyproject.toml configs datasets model loss solver processor tools utils train.py test.py

parity: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q tests/parity

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.txt constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

clean:
	rm -rf runs .pytest_cache .ruff_cache
