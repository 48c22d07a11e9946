# What one types here. `make` alone says what there is.

PYTHON ?= python3
# The last tflite-runtime has no wheels for a newer Python.
LEGACY_PYTHON ?= python3.11
MAVEN ?= mvn
# What `make test-android` tells Maven beside what it has to.
MAVEN_FLAGS ?=
# How many tests run side by side; those of one file stay together, for they share what they made.
WORKERS ?= 2

VENV := .venv
LEGACY_VENV := .venv-legacy
ARTIFACT := artifacts/bart_mini_en
LEGACY_ARTIFACTS := build/legacy_artifacts
ANDROID_BUILD := $(CURDIR)/build/android
PYTEST = $(VENV)/bin/pytest -q --numprocesses $(WORKERS) --dist loadfile
# Every warning is an error: a link that leads nowhere, a docstring that is not well-formed.
SPHINX := sphinx-build -qW --keep-going docs build/docs
MAVEN_BASE = --quiet --batch-mode --threads 1C --file android/ci/pom.xml \
    -Dbart_export.build=$(ANDROID_BUILD)
# The text of the demo is the README's quotation.
TEXT = $$(sed -n 's/^> //p' README.md)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-serving test test-python lint docs test-slow test-legacy test-android bench-android \
    clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(VENV)/installed-export ## export the embedded preset and let it write a headline
	@echo "Exporting the preset bart_mini_en to TFLite ..."
	@$(VENV)/bin/bart-export --preset bart_mini_en --target tflite --output $(ARTIFACT)
	@printf '\nThe text:\n%s\n\nIts headline:\n' "$(TEXT)"
	@$(VENV)/bin/bart-export generate $(ARTIFACT) "$(TEXT)"

demo-serving: $(VENV)/installed-export,serve,clients ## export a SavedModel as well, serve it, and ask with curl and over gRPC
	@echo "Exporting the preset bart_mini_en to TFLite and to a SavedModel ..."
	@$(VENV)/bin/bart-export --preset bart_mini_en --target tflite \
	    --recipe float32,dynamic_wi8_afp32 --output $(ARTIFACT)
	@$(VENV)/bin/bart-export --preset bart_mini_en --target saved_model --output $(ARTIFACT)
	@printf '\nThe text:\n%s\n\n' "$(TEXT)"
	@PATH="$(VENV)/bin:$$PATH" serving/demo.sh $(ARTIFACT) "$(TEXT)"

test: $(VENV)/installed-test ## lint, and run the tests that take seconds; with Maven test-android, too
	+@failed=; for part in lint test-python $(if $(shell command -v $(MAVEN)),test-android); do \
	    $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; \
	command -v $(MAVEN) >/dev/null || echo "Maven is not installed: android/ was not tested."; \
	[ -z "$$failed" ] || { echo "Failed:$$failed" >&2; exit 1; }

test-python: $(VENV)/installed-test
	@$(PYTEST) -m "not slow"

lint: $(VENV)/installed-test ## ruff, mypy, and whether the documentation builds
	@failed=; for check in "ruff check" "ruff format --check" mypy "$(SPHINX)"; do \
	    $(VENV)/bin/$$check || failed=1; \
	done; \
	[ -z "$$failed" ]

docs: $(VENV)/installed-docs ## build the documentation into build/docs
	@$(VENV)/bin/$(SPHINX)
	@echo "Open build/docs/index.html"

test-slow: $(VENV)/installed-test ## the tests that take minutes
	@$(PYTEST) -m slow

test-legacy: $(VENV)/installed-export $(LEGACY_VENV)/installed ## the artifact on tflite-runtime 2.14, without TensorFlow
	@echo "Exporting bart_mini_en with every recipe ..."
	@$(VENV)/bin/bart-export --preset bart_mini_en --target tflite --recipe all \
	    --output $(LEGACY_ARTIFACTS)/bart_mini_en
	@BART_EXPORT_ARTIFACTS=$(LEGACY_ARTIFACTS) $(LEGACY_VENV)/bin/pytest -q tests/legacy

test-android: $(VENV)/installed-test ## compile android/ and test it with the real model; needs JDK 17 and Maven
	@$(VENV)/bin/python tools/android_fixtures.py --output $(ANDROID_BUILD)
	@echo "Compiling and testing android/ ..."
	@$(MAVEN) $(MAVEN_BASE) clean verify $(MAVEN_FLAGS)

bench-android: $(VENV)/installed-export ## what Kotlin's search and tokenizer add to the model's time
	@$(VENV)/bin/python tools/android_fixtures.py --output $(ANDROID_BUILD)
	@$(MAVEN) $(MAVEN_BASE) -pl desktop -am -DskipTests -P benchmark clean verify $(MAVEN_FLAGS)

clean: ## remove the environments and what tools left; exports stay
	@rm -rf $(VENV) $(LEGACY_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@rm -rf android/ci/*/target
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is installed anew only when pyproject.toml is newer than its last installation.
$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "Installing bart-export[$*] into $(VENV); the first time takes minutes ..."
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    "bart-export needs Python 3.10 or newer. Name one: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)

$(LEGACY_VENV)/installed: pyproject.toml
	@$(LEGACY_PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12) and \
	    "tflite-runtime needs Python 3.10 or 3.11. Name one: make LEGACY_PYTHON=python3.10 ...")'
	@echo "Installing bart-export[legacy-runtime] into $(LEGACY_VENV) ..."
	@$(LEGACY_PYTHON) -m venv $(LEGACY_VENV)
	@$(LEGACY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[legacy-runtime]' pytest
	@touch $@
