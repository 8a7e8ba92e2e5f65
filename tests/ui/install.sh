#!/usr/bin/env bash
# What `make test-ui` needs beyond `make install`: Debian's Chromium (or Ubuntu's, or one that CHROMIUM names) and
# Playwright in the venv. Playwright's own browsers are not downloaded. Asks for nothing; a second run does nothing.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv="${VENV:-.venv}"

if ! command -v "${CHROMIUM:-chromium}" >/dev/null; then
    if [[ -n "${CHROMIUM:-}" ]]; then
        echo "CHROMIUM names no browser: $CHROMIUM" >&2
        exit 2
    fi
    as_root=()
    if [[ "$(id -u)" != 0 ]]; then
        command -v sudo >/dev/null || { echo "chromium is missing: install it, or set CHROMIUM=/path/to/it" >&2; exit 2; }
        as_root=(sudo -n)
    fi
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" apt-get install -q --yes --no-install-recommends chromium fonts-dejavu-core
fi

PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 "$venv/bin/python" -m pip install --quiet --constraint constraints.txt playwright
