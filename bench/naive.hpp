#pragma once

#include <cstdint>
#include <vector>

#include "quant/scaled_matrix.hpp"

namespace moeref::bench {

/// What GPU tests compare with, in C++: the weights [columns, depth] to f32, code by code, then
/// plain f32 loops. x [rows, depth], y [rows, columns]. Compiled with -O2; nothing of moeref's
/// vector code.
void naive_gemm(const float* x, std::int64_t rows, const ScaledMatrix& weight,
                std::vector<float>& scratch, float* y);

}  // namespace moeref::bench
