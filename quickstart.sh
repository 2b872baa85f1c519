#!/bin/sh
# From a fresh Debian 12 with a root shell to golden outputs of a real MoE layer: installs the packages (skipped where they
# are there), builds, and runs the main job on a bundled tiny GPT-OSS checkpoint. With --build it builds the tests and
# benchmarks too, and stops before the job.
set -eu
cd "$(dirname "$0")"

packages=$(sed 's/#.*//' debian-packages.txt)
missing=""
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
  echo "installing:$missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

cmake --preset release >/dev/null
if [ "${1:-}" = "--build" ]; then
  cmake --build --preset release -- --quiet
  exit 0
fi
cmake --build --preset release --target moeref -- --quiet

build/release/cli/moeref golden data/golden/models/gpt_oss_mxfp4_h128_i192_e8 \
  --layer 0 --tokens 64 --stages --bounds -o golden
