#!/bin/bash
# Installs the Debian packages that one of the Makefile's targets needs: `setup.sh build|test|demo|bench|accidents|fuzz`.
#
# Takes well under a second when nothing is missing, and then needs neither root nor the network. It must never
# start a system service (snmpd's package would), and never touch a package that is already there.
set -euo pipefail

# A C++ compiler, libclang and RocksDB: linking Debian's takes seconds, compiling the bundled one half an hour.
build=(make g++ libclang-dev librocksdb-dev)
# Foreign responders and a browser for the tests: net-snmp, snmpsim in its own environment, Chromium, CUPS.
test=(snmpd snmp python3-venv chromium cups-daemon cups-client cups-ipp-utils avahi-daemon)
# Network namespaces, and clocks that jump.
accidents=(iproute2 libfaketime)
# Network namespaces, and who is measured beside Quire. A peer that this release lacks is left out: its row says so.
bench=(iproute2 snmp libsnmp-dev zmap onesixtyone masscan prometheus-snmp-exporter)
optional=()

case "${1:-build}" in
    build | demo) wanted=("${build[@]}") ;;
    bench) wanted=("${build[@]}") optional=("${bench[@]}") ;;
    test) wanted=("${build[@]}" "${test[@]}" "${accidents[@]}") ;;
    accidents) wanted=("${build[@]}" "${accidents[@]}") ;;
    fuzz) wanted=("${build[@]}") ;;
    *) echo "usage: $0 build|test|demo|bench|accidents|fuzz" >&2; exit 2 ;;
esac

command -v cargo >/dev/null || {
    echo "setup: cargo is not in PATH; install Rust first (rust-toolchain.toml names the version)" >&2
    exit 1
}
if [ "${1:-build}" = fuzz ]; then
    # The driver of libFuzzer; a minute to compile, once.
    cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
fi
command -v dpkg-query >/dev/null || {
    echo "setup: not a Debian machine; left out: ${wanted[*]} (a bundled RocksDB is compiled instead)" >&2
    exit 0
}

# "ii " only: removed packages that left their settings behind count as missing.
installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "${wanted[@]}" "${optional[@]}" 2>/dev/null |
    sed -n 's/^ii //p' || true)
missing=()
for package in "${wanted[@]}"; do
    grep -qx -- "$package" <<<"$installed" || missing+=("$package")
done
absent=()
for package in "${optional[@]}"; do
    grep -qx -- "$package" <<<"$installed" || absent+=("$package")
done
[ $((${#missing[@]} + ${#absent[@]})) -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
        echo "setup: neither root nor sudo; install by hand: ${missing[*]} ${absent[*]}" >&2
        [ ${#missing[@]} -gt 0 ] || exit 0
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

apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 "$@"; }
apt update
for package in "${absent[@]}"; do
    if [ -n "$(apt-cache policy -- "$package" | sed -n 's/^ *Candidate: *//p' | grep -vx '(none)')" ]; then
        missing+=("$package")
    else
        echo "setup: this release has no package $package: left out" >&2
    fi
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "setup: installing ${missing[*]}" >&2
apt install -y --no-install-recommends "${missing[@]}"

# Nor at the next boot: only the programs are wanted, and only where this script brought them.
not_at_boot() {
    [[ " ${missing[*]} " == *" $1 "* ]] || return 0
    "${as_root[@]}" update-rc.d "$2" disable >/dev/null 2>&1 || true
    "${as_root[@]}" systemctl disable "${@:3}" >/dev/null 2>&1 || true
}
not_at_boot snmpd snmpd snmpd.service
not_at_boot prometheus-snmp-exporter prometheus-snmp-exporter prometheus-snmp-exporter.service
not_at_boot cups-daemon cups cups.service cups.socket cups.path
not_at_boot avahi-daemon avahi-daemon avahi-daemon.service avahi-daemon.socket
