#!/bin/bash
# `make containers`: brings docker-compose.yml up in the foreground on a base image made from the distribution's
# packages (QUIRE_BASE names another), and leaves neither container nor volume behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
if [ -z "${QUIRE_BASE:-}" ]; then
    deploy/base-image.sh
    export QUIRE_BASE=quire-base:12
fi
trap '"${compose[@]}" down --volumes --remove-orphans --timeout 5' EXIT
trap 'exit 130' INT TERM
"${compose[@]}" up --build
