#!/bin/sh
# Chromium of the distribution and fonts for Chinese, for the browser tests and the pictures of the README. Idempotent.
# Nothing is fetched but Debian packages, and those only by root; else it says what to install. Prints the path of the browser.
set -eu
fail() { printf 'browser: %s\n' "$*" >&2; exit 1; }
find_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome || true; }
has_chinese() { command -v fc-list >/dev/null && [ -n "$(fc-list :lang=zh-cn family)" ]; }

packages="chromium fonts-noto-cjk fontconfig"
if [ -z "$(find_browser)" ] || ! has_chinese; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
    fail "Chromium and a Chinese font are needed. On Debian or Ubuntu, as root: apt-get install $packages"
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update -q && apt-get install -q -y --no-install-recommends $packages; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    fail "apt-get install $packages did not work"
  fi
fi
[ -n "$(find_browser)" ] || fail "$packages are installed, and still no chromium is on the PATH"
find_browser
