#!/bin/bash
# Runs each fuzz target under libFuzzer for FUZZ_SECONDS (60): `run.sh [TARGET...]`, all without names.
#
# What it found interesting stays in target/fuzz/corpus/TARGET for the next run; an input that fails is kept in
# target/fuzz/failed/TARGET-*, and the run goes on with the next target and fails in the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${FUZZ_SECONDS:-60}
place=$PWD/target/fuzz
mkdir -p "$place/failed"
# With the whole workspace, or the dependencies' features differ from those of `make test` and all are built again.
deploy/cargo.sh build --quiet --locked --workspace --example fuzz_seeds
targets=$(target/debug/examples/fuzz_seeds "$place/seeds")
[ $# -eq 0 ] || targets=$*

# Without a sanitizer, so that the stable compiler will do: the decoders are safe Rust, and what counts is panics,
# overflows (checked), hangs and memory.
build=(--fuzz-dir tests/fuzz --sanitizer none --target-dir "$place/build")
CARGO_PROFILE_RELEASE_LTO=off deploy/cargo.sh fuzz build "${build[@]}" decoders

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=()
for target in $targets; do
    mkdir -p "$place/corpus/$target"
    echo "== $target, $seconds s"
    TMPDIR=$scratch QUIRE_FUZZ_TARGET=$target deploy/cargo.sh fuzz run "${build[@]}" decoders \
        "$place/corpus/$target" "$place/seeds/$target" -- -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
        -max_len=262144 -print_final_stats=1 -verbosity=0 -artifact_prefix="$place/failed/$target-" \
        || failed+=("$target")
    rm -rf "${scratch:?}"/*
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]} (inputs in $place/failed)" >&2
    exit 1
fi
