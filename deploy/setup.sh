#!/bin/bash
# Installs the Debian packages that one of the Makefile's targets needs: `setup.sh build|test|demo|bench`.
#
# Takes well under a second when nothing is missing, and then needs neither root nor the network. It must never
# start a system service (snmpd's package would), and never touch a package that is already there.
set -euo pipefail

# A C++ compiler, libclang and RocksDB: linking Debian's takes seconds, compiling the bundled one half an hour.
build=(make g++ libclang-dev librocksdb-dev)
# Foreign responders and a browser for the tests: net-snmp, snmpsim in its own environment, Chromium.
test=(snmpd snmp python3-venv chromium)

case "${1:-build}" in
    build | demo | bench) wanted=("${build[@]}") ;;
    test) wanted=("${build[@]}" "${test[@]}") ;;
    *) echo "usage: $0 build|test|demo|bench" >&2; exit 2 ;;
esac

command -v cargo >/dev/null || {
    echo "setup: cargo is not in PATH; install Rust first (rust-toolchain.toml names the version)" >&2
    exit 1
}
command -v dpkg-query >/dev/null || {
    echo "setup: not a Debian machine; left out: ${wanted[*]} (a bundled RocksDB is compiled instead)" >&2
    exit 0
}

# "ii " only: removed packages that left their settings behind count as missing.
installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "${wanted[@]}" 2>/dev/null | sed -n 's/^ii //p' || true)
missing=()
for package in "${wanted[@]}"; do
    grep -qx -- "$package" <<<"$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
        echo "setup: neither root nor sudo; install by hand: ${missing[*]}" >&2
        exit 1
    }
    as_root=(sudo)
fi

# Debian starts what it installs, unless this says 101 (policy-rc.d of invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

echo "setup: installing ${missing[*]}" >&2
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 "$@"; }
apt update
apt install -y --no-install-recommends "${missing[@]}"

# Nor at the next boot: only the program is wanted, and only where this script brought it.
if [[ " ${missing[*]} " == *" snmpd "* ]]; then
    "${as_root[@]}" update-rc.d snmpd disable >/dev/null 2>&1 || true
    "${as_root[@]}" systemctl disable snmpd.service >/dev/null 2>&1 || true
fi
