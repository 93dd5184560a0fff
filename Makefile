# make quickstart: environment, dependencies, built-in data, train, test.   make test: environment, the whole suite.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG := configs/quickstart.yml
RUN := runs/quickstart

.PHONY: quickstart test lint parity clean

quickstart: $(VENV)/.installed
	$(BIN)/python train.py --config_file $(CONFIG)
	$(BIN)/python test.py --config_file $(CONFIG) TEST.WEIGHT $(RUN)/transformer_$$($(BIN)/python -c \
	  "from configs import load_config; print(load_config('$(CONFIG)').SOLVER.MAX_EPOCHS)").pth OUTPUT_DIR $(RUN)/test
	@echo
	@echo "Trained and tested on built-in data. Where to look next:"
	@echo "  $(RUN)/metrics.json, log.txt      the numbers; tensorboard --logdir $(RUN) draws them"
	@echo "  data/                             the images (docs/img/ has contact sheets)"
	@echo "  configs/transreid/                the published settings; docs/your_data.md for your own images"

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/pylint --recursive=y --rcfile=pyproject.toml configs datasets model loss solver processor utils train.py test.py

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
