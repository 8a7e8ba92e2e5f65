#!/usr/bin/env bash
# What `make test-ui` needs beyond `make install`: Debian's Chromium, unless there is one, and Playwright in the venv.
# Playwright's own browsers are not downloaded. Asks for nothing; a second run changes nothing.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if ! command -v chromium >/dev/null; then
    as_root=()
    if [[ "$(id -u)" != 0 ]]; then
        as_root=(sudo --non-interactive)
    fi
    "${as_root[@]}" apt-get update --quiet
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --quiet --yes --no-install-recommends chromium fonts-dejavu-core
fi

"${VENV:-.venv}/bin/python" -m pip install --quiet --constraint constraints.txt playwright
