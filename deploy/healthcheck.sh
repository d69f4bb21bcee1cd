#!/bin/bash
# Healthy means that the process answers `GET /livez`: liveness only. A node without quorum is alive; killing it for
# that would keep it from recovering.
set -euo pipefail
port=${QUIRE_CONSOLE:-0.0.0.0:7480}
exec 3<>"/dev/tcp/127.0.0.1/${port##*:}"
printf 'GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
read -r -t 4 status <&3
[[ $status == HTTP/1.*" 200 "* ]]
