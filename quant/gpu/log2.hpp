#pragma once

// The integers around log2 as PyTorch (CPU and CUDA), CUDA's log2f and Triton compute it.

namespace moeref::gpu {

/// ceil(log2f(x)), floor(log2f(x)) for a positive finite x, log2f rounded to nearest: a little
/// above 2^k, log2f is k itself, a little below it too, so that the result is not that of the
/// exponent bits. Measured on an H200 for every positive f32: PyTorch 2.11 on CUDA and CPU, Triton
/// 3.6 (tl.log2): no other value.
int ceil_log2(float x);
int floor_log2(float x);

/// ceil of log2 rounded to bf16, of a positive finite bf16 number. Measured likewise for every one.
int ceil_log2_bf16(float x);

}  // namespace moeref::gpu
