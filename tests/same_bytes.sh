#!/bin/sh
# Runs every bundled checkpoint with all stages and prints one digest a layer. Within one build, thread counts and
# instruction sets must not change a bit (exit 1 if they do); across builds the caller compares what is printed.
# usage: same_bytes.sh MOEREF CHECKPOINTS   (MOEREF may be "qemu-aarch64 moeref")
set -eu
moeref=$1
checkpoints=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

digest() {  # checkpoint layer options...
  checkpoint=$1
  layer=$2
  shift 2
  # shellcheck disable=SC2086
  $moeref run "$checkpoint" --layer "$layer" --tokens 17 --seed 5 --stages --output f32 --quiet \
    -o "$work/out.safetensors" "$@"
  sha256sum <"$work/out.safetensors" | cut -c1-64
}

failed=0
for checkpoint in "$checkpoints"/*/; do
  checkpoint=${checkpoint%/}
  for layer in 0 1; do
    # shellcheck disable=SC2086
    if ! $moeref run "$checkpoint" --layer $layer --tokens 1 --quiet 2>"$work/error"; then
      grep -q 'has no experts' "$work/error" && continue
      cat "$work/error" >&2
      exit 1
    fi
    expected=$(digest "$checkpoint" $layer --threads 1)
    echo "$expected  $(basename "$checkpoint") layer $layer"
    for options in "--threads 2" "--threads 7" "--isa scalar" "--isa sse42" "--isa avx2" "--isa avx512" "--isa neon"; do
      case $options in
        --isa*)
          # shellcheck disable=SC2086
          $moeref formats --quiet $options >/dev/null 2>&1 || continue ;;
      esac
      # shellcheck disable=SC2086
      actual=$(digest "$checkpoint" $layer $options)
      if [ "$actual" != "$expected" ]; then
        echo "$(basename "$checkpoint") layer $layer $options: $actual" >&2
        failed=1
      fi
    done
  done
done
exit $failed
