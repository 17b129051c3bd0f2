# `make demo` and `make test` need Python >= 3.10 and the package index, nothing else.
# Each keeps to an environment of its own, so that trying the demo does not download PyTorch.

PYTHON ?= python3
DEMO := .venv
TEST := .venv-test
DOCS := .venv-docs
# What `make quick` runs: files that need no PyTorch, no transformers, no compiled kernels and no real model
QUICK := tests/test_structure.py tests/test_docs.py tests/edgecal/test_conversation.py tests/search/test_losses.py \
  $(patsubst %,tests/adapters/test_%.py,blas calibrated_recipes calibration export lora merge merge_methods \
    mergekit_spelling parameter_counts recipe recipe_files) \
  $(patsubst %,tests/inspection/test_%.py,diagnosis inspection) \
  $(patsubst %,tests/text/test_%.py,stopping text_stream) \
  $(patsubst %,tests/weights/test_%.py,calibration_file gguf_blocks packed safe_pattern) \
  tests/cli/test_doctor_cli.py

.PHONY: demo test quick test-ready test-reproducible test-arm test-wheel test-install kernels wheel fuzz coverage lint docs clean

demo: $(DEMO)/.installed
	$(DEMO)/bin/edgecal pull demo
	$(DEMO)/bin/edgecal warmup
	$(DEMO)/bin/edgecal demo

# A file of tests stays in one process, so that what its tests share is made once.
JOBS ?= 2

test: $(TEST)/.installed
	$(TEST)/bin/python -m pytest -n $(JOBS) --dist loadfile

# A subset for while one works, under a minute: no PyTorch, no transformers, and NumPy in the place of compiled kernels.
quick: $(DEMO)/.quick
	EDGECAL_BACKEND=numpy $(DEMO)/bin/python -m pytest -k "not numba and not any_course_of_events" $(QUICK)

# Ready-made kernels for this processor (KERNELS= : for all), beside the sources: what is run from here then starts fast
# and compiles nothing. A change of a kernel makes them useless, and Numba serves again.
KERNELS ?= --own

kernels: $(TEST)/.installed
	$(TEST)/bin/python -m edgecal_kernels.build $(KERNELS)

# Into dist/: edgecal with ready-made kernels for all processors, and the demo's adapters. Minutes, when kernels are new.
wheel: $(TEST)/.installed
	$(TEST)/bin/python -m pip wheel -q --no-deps -C kernels=all -w dist .
	$(TEST)/bin/python -m pip wheel -q --no-deps -w dist ./demo_data

# The tests with ready-made kernels in the place of Numba's (ISAS= : which); all of them, then parts for older processors
test-ready: $(TEST)/.installed
	tests/ready.sh $(TEST)/bin/python -n $(JOBS) --dist loadfile

# All ready-made libraries built twice: the same bytes. Minutes.
test-reproducible: $(TEST)/.installed
	tests/reproducible.sh $(TEST)/bin/python

# Wheels as their users get them: built from the sdist, checked, installed where no Numba is, and used
test-wheel:
	tests/install/ready.sh $(PYTHON)

# Debian only; minutes, for the processor is emulated. Nothing is installed: all goes to the cache folder.
test-arm: $(TEST)/.installed
	$(TEST)/bin/python -m pip install -q -e ".[cross]"
	tests/arm/run.sh $(PYTHON)
	tests/arm/ready.sh $(TEST)/bin/python

# The wheel in fresh environments (PYTHONS: of which Pythons; 3.15 is Debian's one of that version, where apt-get is);
# minutes for each, and the demo model is fetched once. On emulated ARM where Debian's packages are to be had.
PYTHONS ?= $(PYTHON)

test-install: test-wheel
	tests/install/plain.sh $(firstword $(PYTHONS))
	tests/install/full.sh $(PYTHONS)
	tests/install/tools.sh $(firstword $(PYTHONS))
	if command -v apt-get >/dev/null; then tests/install/arm.sh $(firstword $(PYTHONS)); fi

# Hostile inputs for every reader (tests/fuzz). TARGETS= names some. The exit code is 1 where one did harm.
MINUTES ?= 1
TARGETS ?=

fuzz: $(TEST)/.installed
	-$(TEST)/bin/python -m pip install -q -e ".[fuzz]"
	$(TEST)/bin/python -m tests.fuzz $(TARGETS) --minutes $(MINUTES)

# Which lines the tests run, part by part, since all of them with a tracer take long; PARTS= for some.
PARTS ?= adapters benchmark cli decoding edgecal faults fuzz inspection kernels parity profile search server text \
  verification weights

coverage: $(TEST)/.installed
	$(TEST)/bin/python -m pip install -q -e ".[coverage]"
	$(TEST)/bin/python -m coverage erase
	for part in $(PARTS); do $(TEST)/bin/python -m coverage run -m pytest tests/$$part || exit 1; done
	$(TEST)/bin/python -m coverage combine -q
	$(TEST)/bin/python -m coverage report --fail-under 90

lint: $(TEST)/.installed
	$(TEST)/bin/python -m pip install -q -e ".[lint]"
	$(TEST)/bin/ruff check .
	$(TEST)/bin/mypy

# Into site/: pages and the API reference. A warning (a link that leads nowhere, a docstring that is no Markdown) is an error.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install -q -e ".[demo]"
	touch $@

$(DEMO)/.quick: $(DEMO)/.installed
	$(DEMO)/bin/python -m pip install -q -e ".[demo,quick]"
	touch $@

$(DOCS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install -q -e ".[docs]"
	touch $@

# PyTorch comes first and alone, so that nothing else in the list can choose another build of it.
$(TEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python -m pip install -q torch==2.13.0
	$(TEST)/bin/python -m pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf $(DEMO) $(TEST) $(DOCS) site build dist demo_data/build *.egg-info demo_data/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
