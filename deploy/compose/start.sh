#!/bin/bash
# The one start script of docker-compose.yml: `start.sh router|admin|first|join|printers`.
#
# Root only sets the addresses and the one route (to the router; none leads out), then the script starts itself anew
# as the user `quire` with no capability left. Secrets pass between containers as files on the volume /handover, mode
# 0600; they are never arguments.
set -euo pipefail
umask 077

role=$1
data=/var/lib/quire
handover=/handover
: "${NET:=10.213}"
first=$NET.1.11
admin=$NET.3.31
printers=30
others=5

say() { echo "start.sh $role: $*" >&2; }

# What needs root. A printers' container answers on addresses of its own, beside the one that Docker gave.
prepare() {
    if [ "$role" = router ]; then
        ip route del default 2>/dev/null || true
        say "routes between $(ip -4 -brief address show | awk '$1 != "lo" { printf "%s ", $3 }')"
        exec sleep infinity
    fi
    ip route replace default via "$ROUTER"
    if [ "$role" = printers ]; then
        local device
        device=$(ip -4 -brief address show to "$ADDRESS" | sed 's/[@ ].*//')
        for host in $(seq 101 $((100 + printers + others))); do
            ip address replace "${ADDRESS%.*}.$host/24" dev "$device"
        done
    else
        chown quire: "$data" "$handover"
    fi
    exec setpriv --reuid quire --regid quire --init-groups --bounding-set=-all --inh-caps=-all --no-new-privs "$0" "$@"
}

# wait_until WHAT COMMAND...: two minutes at most, then the container ends and is started anew.
wait_until() {
    local what=$1
    shift
    for _ in $(seq 240); do
        if "$@"; then return; fi
        sleep 0.5
    done
    say "gave up waiting for $what"
    exit 1
}

alive() { QUIRE_CONSOLE=127.0.0.1:7480 quire-healthcheck 2>/dev/null; }
has_quorum() { quire --data-dir "$data" status --format json 2>/dev/null | grep -q '"quorum": *true'; }

# put NAME: stdin becomes a file of the handover volume, whole or not at all.
put() {
    cat >"$handover/.$1"
    [ -s "$handover/.$1" ] && mv "$handover/.$1" "$handover/$1"
}

# Beside the first node: tokens for the others, the settings, the enrolment; each once.
settle() {
    wait_until "the first node" has_quorum
    for peer in n2 n3; do
        [ -e "$handover/token-$peer" ] ||
            quire --data-dir "$data" token create --ttl 24h | tail -n 1 | put "token-$peer"
    done
    [ ! -e "$handover/settled" ] || return 0
    sed "s/10\.213\./$NET./g" /usr/local/lib/quire/settings.toml >/tmp/settings.toml
    quire --data-dir "$data" settings apply /tmp/settings.toml
    wait_until "the Web Admin's code" test -e "$handover/site"
    if [ ! -e "$handover/enrolled" ]; then
        quire --data-dir "$data" enroll \
            --upstream "https://$admin:8443" --code "@$handover/code" --pin "$(cat "$handover/pin")"
        echo compose | put enrolled
    fi
    quire --data-dir "$data" sweep || say "the first sweep waits for its schedule"
    echo compose | put settled
    say "settled: consoles http://$first:7480 http://$NET.1.12:7480 http://$NET.2.13:7480, Web Admin http://$admin:7480"
}

# Beside the Web Admin: the site, and what the first node needs to enrol.
open_site() {
    wait_until "the Web Admin" alive
    [ ! -e "$handover/site" ] || return 0
    local site
    site=$(quire-admin --data-dir "$data" site add compose)
    sed -n 's/^code: //p' <<<"$site" | put code
    sed -n 's/^pin: //p' <<<"$site" | put pin
    echo compose | put site
}

# Runs `start.sh STEP` beside the program that this shell becomes, and ends that when the step fails.
beside() { { "$0" "$1" || kill "$$"; } & }

# Later starts know everything from the data directory; node.json is what a finished first start leaves in it.
node() {
    local flags=()
    [ -e "$data/node.json" ] ||
        flags=(--name "$NAME" --zone demo --listen 0.0.0.0:7440 --advertise "$ADDRESS:7440" --console 0.0.0.0:7480 "$@")
    exec quire node --data-dir "$data" "${flags[@]}"
}

case $role in
    router | printers | first | join | admin) if [ "$(id -u)" = 0 ]; then prepare "$@"; fi ;;
esac
case $role in
    printers)
        # Another seed for every network, so that no two printers share a serial.
        exec quire-fleet --base "${ADDRESS%.*}.101" --port 161 --printers "$printers" --others "$others" \
            --per-net $((printers + others)) --any-address --seed "$(cut -d. -f3 <<<"$ADDRESS")"
        ;;
    first)
        beside settle
        node --init compose
        ;;
    join)
        wait_until "a join token" test -e "$handover/token-$NAME"
        node --join "$first:7440" --token "@$handover/token-$NAME"
        ;;
    admin)
        beside open_site
        exec quire-admin serve --data-dir "$data" --listen 0.0.0.0:8443 --console 0.0.0.0:7480
        ;;
    settle | open_site) "$role" ;;
    *)
        say "unknown role"
        exit 2
        ;;
esac
