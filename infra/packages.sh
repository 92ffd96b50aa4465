#!/bin/sh
# Bring the text packages that corpus.lock names, with their hashes, into data/packages/.
# They are read as files, never imported. Run from the checkout root:  sh infra/packages.sh [PYTHON]
# Idempotent: a stamp inside the folder holds the sha256 of the corpus.lock it was filled from.
set -eu
python=${1:-.venv/bin/python}
folder=data/packages
partial=data/packages.new
log=data/packages.log

wanted=$("$python" -c 'import hashlib; print(hashlib.sha256(open("corpus.lock", "rb").read()).hexdigest())')
if [ -f "$folder/.corpus.lock.sha256" ] && [ "$(cat "$folder/.corpus.lock.sha256")" = "$wanted" ]; then
    exit 0
fi

mkdir -p data
trap 'rm -rf "$partial" "$log"' EXIT
trap 'exit 130' INT TERM HUP
rm -rf "$partial"
# A fresh folder, then a rename: a second --target run into the same folder would keep old versions.
if ! "$python" -m pip install -qq --disable-pip-version-check --no-input --retries 2 --no-deps --no-compile \
    --require-hashes --target "$partial" -r corpus.lock >"$log" 2>&1; then
    reason=$(grep -m 1 '^ *ERROR' "$log" || tail -n 1 "$log")
    echo "lmworks: the text packages of corpus.lock could not be installed (${reason# }). \
Check the network, the proxy and pip's index, then run: make setup" >&2
    exit 1
fi
printf '%s\n' "$wanted" >"$partial/.corpus.lock.sha256"
rm -rf "$folder"
mv "$partial" "$folder"
