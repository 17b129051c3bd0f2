# `make demo` and `make test` need Python >= 3.10 and the package index, nothing else.
# Each keeps to an environment of its own, so that trying the demo does not download PyTorch.

PYTHON ?= python3
DEMO := .venv
TEST := .venv-test

.PHONY: demo test test-arm lint clean

demo: $(DEMO)/.installed
	$(DEMO)/bin/edgecal pull demo
	$(DEMO)/bin/edgecal warmup
	$(DEMO)/bin/edgecal demo

test: $(TEST)/.installed
	$(TEST)/bin/python -m pytest

# Debian only; minutes, for the processor is emulated. Nothing is installed: all goes to the cache folder.
test-arm:
	tests/arm/run.sh $(PYTHON)

lint: $(TEST)/.installed
	$(TEST)/bin/python -m pip install -q -e ".[lint]"
	$(TEST)/bin/ruff check .
	$(TEST)/bin/mypy

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install -q -e ".[demo]"
	touch $@

# PyTorch comes first and alone, so that nothing else in the list can choose another build of it.
$(TEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python -m pip install -q torch==2.13.0
	$(TEST)/bin/python -m pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf $(DEMO) $(TEST) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
