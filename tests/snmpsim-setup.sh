#!/usr/bin/env bash
# Makes the Python environment in which snmpsim serves recordings of real devices to the tests.
# Quick when it is already there. usage: tests/snmpsim-setup.sh [DIR], default target/snmpsim-venv
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${1:-target/snmpsim-venv}"
want='snmpsim==1.2.2 pysmi cryptography'
stamp="$venv/.quire-stamp"
# Its programs name the directory that they were made in, so a checkout that was moved needs another.
made="$want in $PWD"

if [ -x "$venv/bin/snmpsim-command-responder" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$made" ]; then
    exit 0
fi
rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
python3 -m venv "$venv"
# shellcheck disable=SC2086  # a list of words
"$venv/bin/pip" install --quiet --disable-pip-version-check $want
echo "$made" > "$stamp"
