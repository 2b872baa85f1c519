#!/bin/sh
# The one-way order of the folders: simd <- quant <- layout <- engine; io beside layout; cli, tests, bench on top.
set -eu
cd "$(dirname "$0")/.."
failed=0
check() {  # folder allowed-pattern
  bad=$(grep -rnE '#include "' --include='*.hpp' --include='*.cpp' --include='*.inc' "$1" |
        grep -vE "#include \"($2)" || true)
  if [ -n "$bad" ]; then
    echo "$1 includes what it must not see:"
    echo "$bad"
    failed=1
  fi
}
check simd 'simd/'
check quant 'quant/|simd/'
check layout 'layout/|quant/|simd/'
check engine 'engine/|layout/|quant/|simd/'
check io 'io/|quant/'
check cli 'cli/|engine/|io/|layout/|quant/|simd/'
# Results must not depend on the machine or on a library's exp.
bad=$(grep -rnE --include='*.cpp' --include='*.hpp' --include='*.txt' --include='*.cmake' --include='*.json' \
      -e '-ffast-math|-Ofast|-march=native|xsimd::(fma|exp|log)\(|reduction\(' \
      simd quant layout engine io cli cmake CMakeLists.txt CMakePresets.json || true)
if [ -n "$bad" ]; then
  echo "forbidden:"
  echo "$bad"
  failed=1
fi
exit $failed
