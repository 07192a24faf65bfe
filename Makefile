# `make` lists the targets. PYTHON= chooses the interpreter when .venv is made.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Stamps say that an installation finished; they are written last, so an interrupted one starts over.
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
TRAINVQ := $(VENV)/.train-vqgan
EVALUATE := $(VENV)/.evaluate
WEB := $(VENV)/.web

# The browser of `make test-web`.
CHROMIUM ?= chromium

# uv is much faster than pip; pip is always there.
install = if $(BIN)/uv --version >/dev/null 2>&1; then \
		$(BIN)/uv pip install --quiet --python $(BIN)/python -r $(1) && exit 0; \
		echo "uv could not install $(1); trying pip"; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(1)

.DEFAULT_GOAL := help
.PHONY: help setup demo emoji test test-web docs format clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(RUNTIME)  ## create .venv with what the scripts need

demo: $(RUNTIME)  ## train on handwritten digits, sample 500 and score them with a classifier
	@$(BIN)/python generate-discrete-mnist.py digits data/digits --skip-existing
	@$(BIN)/python demo.py

# The recipe of the weights in pretrained/emoji. Each step continues where it was stopped.
SIZE ?= 64
CODEC := checkpoints/vqgan/emoji$(SIZE).safetensors
emoji: $(RUNTIME) $(TRAINVQ) $(EVALUATE)  ## train codec and prior of 3D emoji; SIZE=256 is for a GPU
	@$(BIN)/python get-images.py emoji data/emoji --no-skin-tones --skip-existing
	@test -f $(CODEC) || { \
		if ls exp/vqgan-emoji$(SIZE)/checkpoints/step-* >/dev/null 2>&1; then \
			$(BIN)/python train-vqgan.py --resume exp/vqgan-emoji$(SIZE) --dataset-in data/emoji; \
		else \
			$(BIN)/python train-vqgan.py --cfg-path config/vqgan/emoji$(SIZE).yaml --seed 0 \
				--dataset-in data/emoji --run-dir exp/vqgan-emoji$(SIZE); \
		fi && $(BIN)/python convert-vqgan.py exp/vqgan-emoji$(SIZE) $(CODEC) --half; }
	@test -f data/emoji$(SIZE)-latents/latents.json || $(BIN)/python generate-latents.py --use-class \
		--ckpt-path $(CODEC) --dataset-in data/emoji --latents-out data/emoji$(SIZE)-latents
	@if ls exp/emoji$(SIZE)/checkpoints/step-* >/dev/null 2>&1; then \
		$(BIN)/python train.py --resume exp/emoji$(SIZE); \
	else \
		$(BIN)/python train.py --cfg-path config/emoji/$(SIZE).toml --seed 0 \
			--run-dir exp/emoji$(SIZE); \
	fi
	@$(BIN)/python release.py exp/emoji$(SIZE) out/emoji$(SIZE) --overwrite
	@$(BIN)/python evaluate.py out/emoji$(SIZE) data/emoji --nb-samples 500 \
		--out-dir out/emoji$(SIZE)-evaluation --overwrite

# One thread a process: the test processes share the cores.
test: export OMP_NUM_THREADS := 1
test: $(DEV)  ## lint, check types and run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8

test-web: export CHROMIUM := $(CHROMIUM)
test-web: $(WEB)  ## drive the web page in a headless Chromium
	@command -v $(CHROMIUM) >/dev/null || { \
		echo "'$(CHROMIUM)' was not found: install Chromium (on Debian: apt install chromium)," \
			"or name one, as in: make test-web CHROMIUM=google-chrome" >&2; exit 1; }
	$(BIN)/python -m pytest -q -m web tests/web

docs: $(RUNTIME)  ## write docs/settings.md from the declarations of the keys
	$(BIN)/python docs/make_settings.py

format: $(DEV)  ## format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove .venv and the tools' caches; data and runs stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): requirements.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "'$(PYTHON)' was not found; name a Python, as in: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed but '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
			"name another, as in: make setup PYTHON=python3.11" >&2; exit 1; }
	@echo "installing $< into $(VENV) (torch is large; this takes a minute or more)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
		|| echo "uv could not be installed; installing with pip, which takes some minutes"
	@$(call install,$<)
	@touch $@

$(TRAINVQ): requirements-train-vqgan.txt $(RUNTIME)
	@echo "installing $< into $(VENV)"
	@$(call install,$<)
	@touch $@

$(EVALUATE): requirements-evaluate.txt $(RUNTIME)
	@echo "installing $< into $(VENV)"
	@$(call install,$<)
	@touch $@

$(DEV): requirements-dev.txt requirements-wandb.txt requirements-evaluate.txt $(RUNTIME)
	@echo "installing $< into $(VENV)"
	@$(call install,$<)
	@$(BIN)/python get-weights.py lpips --quiet || echo "tests with the weights of LPIPS are skipped"
	@touch $@

$(WEB): requirements-web-test.txt requirements-web.txt $(DEV)
	@echo "installing $< into $(VENV)"
	@$(call install,$<)
	@touch $@
