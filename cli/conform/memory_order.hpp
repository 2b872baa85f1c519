#pragma once

#include <string_view>
#include <vector>

#include "cli/conform/ops.hpp"
#include "layout/step.hpp"

// Golden cases whose outputs are stored in the order of memory, whatever view a kernel has of them.

namespace moeref::conform {

/// The sizes of a view by falling stride: the shape of its bytes in their order. No strides: the
/// shape itself.
Shape memory_order(const Shape& shape, const std::vector<std::int64_t>& strides);

/// Bytes that a kernel sees with `strides` (in elements; all of them are in the view), in row-major
/// order of the shape.
Tensor in_logical_order(const TensorView& stored, const std::vector<std::int64_t>& strides);

/// in.`input`, [.., rows, columns], as [all sizes before these, rows, columns] of elements of
/// `element_bits`. Error: fewer than two sizes.
TensorStack matrices(const GoldenCase& golden, std::string_view input, int element_bits);
/// The same with rows and columns exchanged.
TensorStack transposed_matrices(const GoldenCase& golden, std::string_view input, int element_bits);

/// The stack, made of in.`input`, through `steps`: sizes from the slowest to the fastest. The first
/// is replaced by all sizes of the input before its last two, unless `keep_first`.
Tensor run_in_memory_order(const GoldenCase& golden, std::string_view input,
                           const TensorStack& stack, const std::vector<Step>& steps,
                           bool keep_first = false);

}  // namespace moeref::conform
