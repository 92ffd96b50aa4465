# make run     set-up, servers, the whole chain on the embedded default
# make test    the tests
# make setup   .venv from the lock (TORCH=cpu|cuda, TORCH_INDEX=address of a wheel index)
.DEFAULT_GOAL := help
PYTHON ?= python3
TORCH ?= auto
export TORCH TORCH_INDEX
SIDE_BY_SIDE = -n 2

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \t\2/p' $(MAKEFILE_LIST)

setup:  ## .venv from the lock, the embedded corpus, both databases; idempotent
	@PYTHON="$(PYTHON)" sh infra/setup.sh

dev: setup  ## setup, and what the tests need
	@PYTHON="$(PYTHON)" sh infra/setup.sh dev

run: setup  ## the whole chain: text to champion
	@.venv/bin/lmworks up
	@.venv/bin/lmworks run

test: dev  ## the tests (under 12 minutes on 2 cores)
	@.venv/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not browser"

slow: dev  ## the long checks: alerts and crashes, backup, a consumer on another host, a killed run in MLflow
	@.venv/bin/python -m pytest $(SIDE_BY_SIDE) -m "slow and not browser"

browser: dev  ## what the pages show, in Chromium (some 8 minutes; screenshots stay in .lmworks/screenshots, or $LMWORKS_SCREENSHOTS)
	@sh infra/browser.sh >/dev/null
	@LMWORKS_SCREENSHOTS="$${LMWORKS_SCREENSHOTS:-.lmworks/screenshots}" .venv/bin/python -m pytest --timeout 1800 -m browser tests/browser

screenshots: dev  ## the README's pictures, of this checkout's servers and its last run
	@sh infra/browser.sh >/dev/null
	@.venv/bin/python -m tests.browser.screenshots

lint: dev  ## ruff
	@.venv/bin/ruff check .

down:  ## stop the servers
	@.venv/bin/lmworks down

lock: dev  ## resolve requirements*.lock again from pyproject.toml
	@sh infra/lock.sh

figures: dev  ## measure the figures of the README (about an hour, a quiet machine)
	@.venv/bin/python -m benchmarks.figures

drill: dev  ## kill, flip, cut, fill and starve it at full count (hours); DRILL="kills --count 6 --seed 7" for less
	@.venv/bin/python -m benchmarks.reliability $(DRILL)

.PHONY: help setup dev run test slow browser screenshots lint down lock figures drill
