#!/bin/bash
# Cargo, told where Debian's RocksDB is: linking that takes seconds, compiling the bundled one half an hour. Where it is
# not installed, plain Cargo, which compiles the bundled one.
set -euo pipefail
if [ -z "${ROCKSDB_LIB_DIR:-}" ]; then
    unset ROCKSDB_LIB_DIR
    library=/usr/lib/$(uname -m)-linux-gnu/librocksdb.so
    if [ -e "$library" ]; then export ROCKSDB_LIB_DIR=${library%/*}; fi
fi
exec cargo "$@"
