#!/bin/sh
# Runs every bundled checkpoint with all stages and prints one digest a layer, one for some backends' numerics, and one a
# quantizer of what it makes of a layer and of the values of that. Within one build, thread counts and instruction sets must not change a bit (exit 1 if
# they do); across builds the caller compares what is printed.
# usage: same_bytes.sh MOEREF CHECKPOINTS   (MOEREF may be "qemu-aarch64 moeref")
set -eu
moeref=$1
checkpoints=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run_layer() {  # checkpoint layer options...
  checkpoint=$1
  layer=$2
  shift 2
  # shellcheck disable=SC2086
  $moeref run "$checkpoint" --layer "$layer" --tokens 17 --seed 5 --stages --output f32 --quiet \
    -o "$work/out.safetensors" "$@"
  sha256sum <"$work/out.safetensors" | cut -c1-64
}

run_numerics() {  # checkpoint layer backend level options...
  checkpoint=$1
  layer=$2
  backend=$3
  level=$4
  shift 4
  # shellcheck disable=SC2086
  $moeref run "$checkpoint" --layer "$layer" --tokens 17 --seed 5 --stages --backend "$backend" --numerics "$level" \
    --quiet -o "$work/out.safetensors" "$@"
  sha256sum <"$work/out.safetensors" | cut -c1-64
}

quantize() {  # quantizer options...
  quantizer=$1
  shift
  # shellcheck disable=SC2086
  $moeref quantize "$work/layer.safetensors" --tensor gate --tensor up --quantizer $quantizer --quiet \
    -o "$work/codes.safetensors" "$@"
  # shellcheck disable=SC2086
  $moeref dequantize "$work/codes.safetensors" --quiet -o "$work/values.safetensors" "$@"
  # A file says what it was made from.
  cat "$work/codes.safetensors" "$work/values.safetensors" | LC_ALL=C sed "s|$work||g" | sha256sum | cut -c1-64
}

failed=0
compare() {  # label command...
  label=$1
  shift
  expected=$("$@" --threads 1)
  echo "$expected  $label"
  for options in "--threads 2" "--threads 7" "--isa scalar" "--isa sse42" "--isa avx2" "--isa avx512" "--isa avx512vnni" "--isa neon"; do
    case $options in
      --isa*)
        # shellcheck disable=SC2086
        $moeref formats --quiet $options >/dev/null 2>&1 || continue ;;
    esac
    # shellcheck disable=SC2086
    actual=$("$@" $options)
    if [ "$actual" != "$expected" ]; then
      echo "$label $options: $actual" >&2
      failed=1
    fi
  done
}

for checkpoint in "$checkpoints"/*/; do
  checkpoint=${checkpoint%/}
  for layer in 0 1; do
    # shellcheck disable=SC2086
    if ! $moeref run "$checkpoint" --layer $layer --tokens 1 --quiet 2>"$work/error"; then
      grep -q 'has no experts' "$work/error" && continue
      cat "$work/error" >&2
      exit 1
    fi
    compare "$(basename "$checkpoint") layer $layer" run_layer "$checkpoint" $layer
  done
done

while read -r checkpoint layer backend level; do
  compare "$checkpoint layer $layer $backend $level" run_numerics "$checkpoints/$checkpoint" "$layer" "$backend" "$level"
done <<CASES
gpt_oss_mxfp4_h128_i192_e8 0 flashinfer_sm90_mxfp4 replay
gpt_oss_mxfp4_h128_i192_e8 0 flashinfer_trtllm_mxfp4 backend
deepseek_v3_fp8_h256_i128_e8 1 triton_fp8_block replay
deepseek_v3_fp8_h256_i128_e8 1 flashinfer_cutlass_fp8_block replay
deepseek_v3_fp8_h256_i128_e8 1 deepgemm_fp8 backend
nemotron_h_modelopt_fp8_h128_i248_e8 1 flashinfer_cutlass_fp8 replay
nemotron_h_modelopt_fp8_h128_i248_e8 1 triton_fp8_tensor replay
nemotron_h_modelopt_nvfp4_h128_i208_e8 1 flashinfer_cutlass_nvfp4 backend
qwen3_moe_ct_fp8_channel_h128_i96_e8 0 triton_fp8_channel replay
CASES

# shellcheck disable=SC2086
$moeref dequantize "$checkpoints/qwen3_moe_ct_nvfp4_h128_i96_e8" --to bf16 --quiet -o "$work/layer.safetensors"
for quantizer in sglang_fp8_token sglang_fp8_group deepgemm_fp8_token modelopt_fp8 flashinfer_mxfp8 quark_mx \
  "flashinfer_nvfp4 --scale amax" flashinfer_nvfp4_token modelopt_nvfp4 deepgemm_fp4_token modelopt_mxfp4; do
  compare "$quantizer" quantize "$quantizer"
done
exit $failed
