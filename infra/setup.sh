#!/bin/sh
# A .venv from the hashed lock, the embedded corpus, both databases. Idempotent: what is there stays.
#   sh infra/setup.sh [dev]      TORCH=auto|cpu|cuda  TORCH_INDEX=address of a wheel index  PYTHON=python3.x
set -eu
cd "$(dirname "$0")/.."
extra="${1:-}"
python="${PYTHON:-python3}"
torch="${TORCH:-auto}"
version=2.13.0
say() { printf '%s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# pip [arguments]: quiet; its output is kept and shown only when it fails
log=.lmworks/logs/setup.log
mkdir -p .lmworks/logs data work mlruns
pip() {
  .venv/bin/python -m pip --disable-pip-version-check "$@" >>"$log" 2>&1
}
explain() {
  grep -E '^ERROR' "$log" | tail -n 3 >&2 || true
  if grep -qE 'NewConnectionError|Failed to establish|Temporary failure in name resolution|Max retries exceeded|No matching distribution' "$log"; then
    fail "$1: the package index could not be reached, or lacks it. Check the network, PIP_INDEX_URL and proxies, then run make setup again (it goes on where it stopped; details: $log)"
  fi
  fail "$1 failed. Details: $log"
}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null ||
  fail "Python 3.11 to 3.13 is needed, found $("$python" --version 2>&1 || true). Name one: make setup PYTHON=python3.11"

hash_of() { cat "$@" | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'; }
core="$(hash_of requirements.lock) torch $version $torch"
stamp=.venv/.lmworks-core
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$core" ]; then
  : >"$log"
  [ -x .venv/bin/python ] || "$python" -m venv .venv >>"$log" 2>&1 || fail "python -m venv failed (on Debian: apt install python3-venv). Details: $log"
  say "setup: torch $version ($torch)"
  index=""
  [ -z "${TORCH_INDEX:-}" ] || index="--index-url $TORCH_INDEX"
  case "$torch" in
    # a +cpu build exists on an index or disk that pip knows, or the index's own default build is taken
    auto) pip install $index "torch==$version+cpu" || { say "setup: no CPU-only build on this index; taking its default build (on Linux with CUDA: about 3 GB; README says how to choose)"; pip install $index "torch==$version" || explain "torch $version"; } ;;
    cpu) pip install $index "torch==$version+cpu" || explain "the CPU build of torch $version (name its index: TORCH_INDEX=…, see README)" ;;
    cuda)
      # the CPU build counts as torch==2.13.0 for pip, so it must go first
      if .venv/bin/python -m pip show torch 2>/dev/null | grep -q '^Version: .*+cpu'; then pip uninstall -y torch || explain "removing the CPU build of torch"; fi
      pip install $index "torch==$version" || explain "torch $version" ;;
    *) fail "TORCH=$torch: one of auto, cpu, cuda was expected" ;;
  esac
  say "setup: $(grep -c '==' requirements.lock) packages of requirements.lock, each by its hash"
  pip install --require-hashes --no-deps -r requirements.lock || explain "requirements.lock"
  printf '%s\n' "$core" >"$stamp"
fi
if [ "$extra" = dev ]; then
  dev="$(hash_of requirements-dev.lock)"
  if [ "$(cat .venv/.lmworks-dev 2>/dev/null || true)" != "$dev" ]; then
    say "setup: what the tests need"
    pip install --require-hashes --no-deps -r requirements-dev.lock || explain "requirements-dev.lock"
    printf '%s\n' "$dev" >.venv/.lmworks-dev
  fi
fi
if [ ! -x .venv/bin/lmworks ] || ! .venv/bin/python -c 'import commands.main' 2>/dev/null || [ "$(cat .venv/.lmworks-root 2>/dev/null || true)" != "$PWD" ]; then
  pip install --no-deps --no-build-isolation -e . || explain "installing lmworks itself"
  printf '%s\n' "$PWD" >.venv/.lmworks-root
fi
sh infra/packages.sh
if [ ! -f mlruns/mlflow.db ] || [ ! -d .prefect ]; then
  say "setup: databases of MLflow and Prefect"
  .venv/bin/python -m components.operations.services prepare || fail "the databases could not be prepared. Details: .lmworks/logs/"
fi
