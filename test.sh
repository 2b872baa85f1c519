#!/bin/sh
# Runs the tests: `./test.sh` all but the long ones, `./test.sh --all` every one (about ten minutes on two cores); what follows
# goes to ctest.
set -eu
cd "$(dirname "$0")"
./quickstart.sh --build
if [ "${1:-}" = "--all" ]; then
  shift
  exec ctest --test-dir build/release --output-on-failure -j "$(nproc)" "$@"
fi
exec ctest --test-dir build/release --output-on-failure -j "$(nproc)" -LE 'slow|exhaustive' "$@"
