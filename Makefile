# make quickstart: environment, dependencies, built-in data, train, test.
# make lint: environment, style, duplicates, types.   make test: the tests.   make slow: those that take long.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := configs datasets model loss solver processor tools utils lineup
# Workers share the cores: one torch thread each (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal --durations 20 --durations-min 5

.PHONY: quickstart test slow lint duplicates types parity lowest wheel docs fuzz kills trackers gpu clean

quickstart: $(VENV)/.installed
	$(BIN)/python train.py --config_file configs/quickstart.yml
	$(BIN)/python test.py --config_file configs/quickstart.yml TEST.WEIGHT runs/quickstart/resnet10_12.pth OUTPUT_DIR runs/quickstart/test
	@echo
	@echo "A network learnt to tell drawn pedestrians apart. Where to look next:"
	@echo "  runs/quickstart/    report.html (open it), metrics.json, log.txt, the weights"
	@echo "  data/               the images it saw"
	@echo "  configs/transreid/  the published settings;  docs/your_data.md  your own images"

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

# Duplicates and types beside one another: each keeps one core busy for about a minute.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory -j2 duplicates types

duplicates:
	$(BIN)/pylint --recursive=y --rcfile=pyproject.toml $(PACKAGES) train.py test.py

types:
	$(BIN)/pyright --pythonpath $(BIN)/python $(PACKAGES) train.py test.py

parity: $(VENV)/.installed-dev
	$(PYTEST) tests/parity

# The fast tests with the lowest versions that requirements.txt allows, in an environment of their own.
lowest: .venv-lowest/.installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q -n auto --dist worksteal -p no:cacheprovider tests/loss tests/solver tests/model tests/configs tests/datasets tests/utils

# The wheel: built, installed beside Hugging Face's datasets in an environment of its own, and tested there.
wheel: $(VENV)/.installed-dev .venv-wheel/.installed
	$(BIN)/python -m tests.wheel .venv-wheel

# The manual, in site/. Its search needs a server: python -m http.server -d site
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Damaged files for every reader, for an hour (FUZZ_SECONDS=120 for two minutes); counts how each sample ends.
FUZZ_SECONDS ?= 3600
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

# Twenty kills of runs of every method at random moments; all must end as if nothing had happened. About ten minutes.
kills: $(VENV)/.installed-dev
	$(BIN)/python -m tests.kills

# The CUDA tests and the benchmarks that a GPU changes; the figures go to results/gpu.csv. Under five minutes.
gpu: $(VENV)/.installed-dev
	LINEUP_GPU_TESTS=1 $(BIN)/python -m pytest -q tests/gpu
	$(BIN)/python -m benchmarks.gpu --out results/gpu.csv

# Exported files in ultralytics, boxmot and Roboflow's trackers, in an environment of their own (5 GB; two are AGPL).
trackers: $(VENV)/.installed-dev .venv-trackers/.installed
	$(BIN)/python train.py --config_file configs/quickstart.yml
	$(BIN)/python -m benchmarks.trackers --python .venv-trackers/bin/python --config_file configs/quickstart.yml TEST.WEIGHT runs/quickstart/resnet10_12.pth

.venv-trackers/.installed:
	$(PYTHON) -m venv --clear .venv-trackers
	.venv-trackers/bin/python -m pip install -q --disable-pip-version-check uv
	.venv-trackers/bin/uv pip install -q --python .venv-trackers/bin/python ultralytics boxmot trackers onnxruntime
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.txt constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

.venv-lowest/.installed: requirements.txt requirements-lowest.txt
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install -q --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -r requirements-lowest.txt
	@touch $@

# Without the wheel itself, which tests.wheel installs.
.venv-wheel/.installed: requirements.txt constraints.txt
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install -q --disable-pip-version-check uv
	.venv-wheel/bin/uv pip install -q --python .venv-wheel/bin/python -r requirements.txt -c constraints.txt
	.venv-wheel/bin/uv pip install -q --python .venv-wheel/bin/python datasets pytest pytest-xdist hypothesis h5py
	@touch $@

clean:
	rm -rf runs dist site .pytest_cache .ruff_cache
