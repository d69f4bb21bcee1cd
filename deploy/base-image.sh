#!/bin/bash
# Makes the base of the runtime image from the distribution's packages, where no image registry can be reached:
# a minimal Debian 12 that already holds what the Dockerfile would install, imported as `quire-base:12`.
#
# It takes the mirrors, proxy and options that apt has on this machine and names none itself. It does nothing when
# the image is there (`--force` makes it anew). It must never change the machine's own packages beyond installing
# mmdebstrap when that is missing.
set -euo pipefail

image=quire-base:12
suite=bookworm
packages=librocksdb7.8,ca-certificates,iproute2

case "${1:-}" in
    --force) ;;
    "") docker image inspect "$image" >/dev/null 2>&1 && { echo "$image is there"; exit 0; } ;;
    *) echo "usage: $0 [--force]" >&2; exit 2 ;;
esac

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

work=$(mktemp -d)
trap 'as_root rm -rf "$work"' EXIT

if ! command -v mmdebstrap >/dev/null; then
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends mmdebstrap
fi

# Every configured archive that serves this suite, its updates and its security fixes; other archives stay out.
sources() {
    apt-get indextargets --format 'deb $(REPO_URI) $(CODENAME) $(COMPONENT)' 'Identifier: Packages' |
        sort -u | grep -E " ($suite|$suite-updates|$suite-security) main$" || true
}
sources >"$work/sources.list"
if ! grep -q " $suite main$" "$work/sources.list"; then
    as_root apt-get update -q
    sources >"$work/sources.list"
fi
grep -q " $suite main$" "$work/sources.list" || {
    echo "apt on this machine has no archive of Debian $suite: the base image cannot be made" >&2
    exit 1
}

# The proxy and the date checks of this machine (a dated mirror needs them), not its caches and hooks.
apt-config dump Acquire | grep -iE '::(Proxy|Check-Date|Check-Valid-Until|Retries)' >"$work/apt.conf" || true

as_root mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
    --aptopt="$work/apt.conf" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"' \
    "$suite" "$work/root.tar" "$work/sources.list"

docker import --change 'CMD ["/bin/bash"]' "$work/root.tar" "$image" >/dev/null
echo "$image made: $(docker image inspect --format '{{.Size}}' "$image") bytes"
