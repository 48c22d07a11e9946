# `make` lists the targets.

PYTHON ?= python3
# tflite-runtime has no wheels for newer versions.
LEGACY_PYTHON ?= python3.11
MAVEN ?= mvn
# Additional flags of Maven.
MAVEN_FLAGS ?=
# Number of test processes; the tests of a file run in one, because they share fixtures.
WORKERS ?= 2

VENV := .venv
LEGACY_VENV := .venv-legacy
ARTIFACT := artifacts/bart_mini_en
# An artifact with every recipe, for test-legacy and test-arm.
EVERY_RECIPE := build/every_recipe/bart_mini_en
ARM := build/arm
ANDROID_BUILD := $(CURDIR)/build/android
PYTEST = $(VENV)/bin/pytest -q --numprocesses $(WORKERS) --dist loadfile
# Warnings, such as broken links and malformed docstrings, are errors.
SPHINX := sphinx-build -qW --keep-going docs build/docs
MAVEN_BASE = --quiet --batch-mode --threads 1C --file android/ci/pom.xml \
    -Dbart_export.build=$(ANDROID_BUILD)
# The demo's text is the quotation in the README.
TEXT = $$(sed -n 's/^> //p' README.md)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-serving test test-python lint docs test-slow test-legacy test-arm test-android \
    bench-android clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(VENV)/installed-export ## export the embedded preset and generate a headline
	@echo "Exporting the preset bart_mini_en to TFLite ..."
	@$(VENV)/bin/bart-export --preset bart_mini_en --target tflite --output $(ARTIFACT)
	@printf '\nThe text:\n%s\n\nIts headline:\n' "$(TEXT)"
	@$(VENV)/bin/bart-export generate $(ARTIFACT) "$(TEXT)"

demo-serving: $(VENV)/installed-export,serve,clients ## export a SavedModel too, serve it, and send requests with curl and gRPC
	@echo "Exporting the preset bart_mini_en to TFLite and to a SavedModel ..."
	@$(VENV)/bin/bart-export --preset bart_mini_en --target tflite \
	    --recipe float32,dynamic_wi8_afp32 --output $(ARTIFACT)
	@$(VENV)/bin/bart-export --preset bart_mini_en --target saved_model --output $(ARTIFACT)
	@printf '\nThe text:\n%s\n\n' "$(TEXT)"
	@PATH="$(VENV)/bin:$$PATH" serving/demo.sh $(ARTIFACT) "$(TEXT)"

test: $(VENV)/installed-test ## lint and quick tests; also test-android if Maven is installed
	+@failed=; for part in lint test-python $(if $(shell command -v $(MAVEN)),test-android); do \
	    $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; \
	command -v $(MAVEN) >/dev/null || echo "Maven is not installed: android/ was not tested."; \
	[ -z "$$failed" ] || { echo "Failed:$$failed" >&2; exit 1; }

test-python: $(VENV)/installed-test
	@$(PYTEST) -m "not slow"

lint: $(VENV)/installed-test ## ruff, mypy, and a build of the documentation
	@failed=; for check in "ruff check" "ruff format --check" mypy "$(SPHINX)"; do \
	    $(VENV)/bin/$$check || failed=1; \
	done; \
	[ -z "$$failed" ]

docs: $(VENV)/installed-docs ## build the documentation into build/docs
	@$(VENV)/bin/$(SPHINX)
	@echo "Open build/docs/index.html"

test-slow: $(VENV)/installed-test ## slow tests, which take minutes
	@$(PYTEST) -m slow

test-legacy: $(EVERY_RECIPE)/manifest.json $(LEGACY_VENV)/installed ## test an artifact on tflite-runtime 2.14, without TensorFlow
	@BART_EXPORT_ARTIFACT=$(EVERY_RECIPE) $(LEGACY_VENV)/bin/pytest -q tests/legacy

test-arm: $(VENV)/installed-test $(EVERY_RECIPE)/manifest.json $(LEGACY_VENV)/installed ## test an artifact on emulated ARM; needs Debian 12 and qemu-user-static
	@$(VENV)/bin/python tools/arm_root.py --output $(ARM)
	@BART_EXPORT_ARTIFACT=$(EVERY_RECIPE) BART_EXPORT_ARM=$(ARM) \
	    BART_EXPORT_LEGACY_PYTHON=$(LEGACY_VENV)/bin/python $(VENV)/bin/pytest -q tests/arm

test-android: $(VENV)/installed-test ## compile android/ and test it with the real model; needs JDK 17 and Maven
	@$(VENV)/bin/python tools/android_fixtures.py --output $(ANDROID_BUILD)
	@echo "Compiling and testing android/ ..."
	@$(MAVEN) $(MAVEN_BASE) clean verify $(MAVEN_FLAGS)

bench-android: $(VENV)/installed-export ## measure the overhead of Kotlin's search and tokenizer
	@$(VENV)/bin/python tools/android_fixtures.py --output $(ANDROID_BUILD)
	@$(MAVEN) $(MAVEN_BASE) -pl desktop -am -DskipTests -P benchmark clean verify $(MAVEN_FLAGS)

clean: ## remove environments, builds and caches, but not exports
	@rm -rf $(VENV) $(LEGACY_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@rm -rf android/ci/*/target
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(EVERY_RECIPE)/manifest.json: $(VENV)/installed-export $(shell find bart_export -name '*.py')
	@echo "Exporting bart_mini_en with every recipe ..."
	@$(VENV)/bin/bart-export --preset bart_mini_en --target tflite --recipe all \
	    --output $(EVERY_RECIPE)

# Reinstalls only if pyproject.toml is newer than the last installation.
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
