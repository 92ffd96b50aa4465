#!/bin/sh
# Resolve requirements.lock and requirements-dev.lock again: universal, with hashes, torch left out
# (it is installed first, as CPU or CUDA build). Versions already locked are kept where the bounds allow.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python - "$work" <<'PY'
import pathlib, sys, tomllib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
# what torch itself needs stands in the lock by name, since torch does not
core = [d for d in project["dependencies"] if not d.startswith("torch")] + ["filelock", "sympy", "networkx", "fsspec", "setuptools>=77"]
out = pathlib.Path(sys.argv[1])
(out / "core.in").write_text("\n".join(core) + "\n")
(out / "dev.in").write_text("\n".join(core + project["optional-dependencies"]["dev"]) + "\n")
PY
.venv/bin/python -m pip install -q --disable-pip-version-check --target "$work/uv" uv
compile() {
  "$work/uv/bin/uv" pip compile -q "$@" --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --no-emit-index-url
}
cat requirements.lock requirements-dev.lock >"$work/all.lock"
compile "$work/dev.in" -o "$work/all.lock"
cp requirements.lock "$work/core.lock"
compile "$work/core.in" -c "$work/all.lock" -o "$work/core.lock"
.venv/bin/python - "$work" <<'PY'
import pathlib, re, sys
def blocks(path):
    found = {}
    for line in path.read_text().splitlines(keepends=True):
        if line[0] not in " #":
            name = re.split(r"[=\s]", line)[0]
            found[name] = ""
        found[name] += line
    return found
work = pathlib.Path(sys.argv[1])
core, everything = blocks(work / "core.lock"), blocks(work / "all.lock")
pathlib.Path("requirements.lock").write_text("".join(core.values()))
pathlib.Path("requirements-dev.lock").write_text("".join(text for name, text in everything.items() if name not in core))
PY
