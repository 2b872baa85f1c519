#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/conform/layout_case.hpp"

// How the cases of aiter and SGLang layouts meet the steps: any number of leading dimensions, views
// in logical order.

namespace moeref::conform::amd {

/// The input as [everything before the last two dimensions, rows, columns].
/// Error: fewer dimensions, no rows or columns.
TensorView as_matrices(const GoldenCase& golden, std::string_view input);
/// All elements in one row.
TensorStack one_row(const TensorView& view);

/// The stack through `steps`, as [experts, ...]; what the kernel sees as a strided view is in the
/// row-major order of its shape.
Tensor run(const GoldenCase& golden, const TensorStack& stack, const std::vector<Step>& steps);
/// The stack, the matrices of in.`input`, through `steps`; the result keeps the dimensions before
/// the last two.
Tensor run_matrices(const GoldenCase& golden, std::string_view input, const TensorStack& stack,
                    const std::vector<Step>& steps);
/// The steps on each matrix of in.`input`; the result keeps the dimensions before the last two.
Tensor run(const GoldenCase& golden, std::string_view input, const std::vector<Step>& steps,
           GateOrder order = GateOrder::separate);
/// The same on the bytes of the elements.
Tensor run_bytes(const GoldenCase& golden, std::string_view input, const std::vector<Step>& steps);
/// The input as it is.
Tensor unchanged(const GoldenCase& golden, std::string_view input);

/// `tensor` as the only output.
OpResult only(std::string name, Tensor tensor);

/// params.arch. Error: absent.
std::string arch_param(const GoldenCase& golden);
/// params.layout, [16, 16] if absent. Error: not two positive integers.
std::array<std::int64_t, 2> layout_param(const GoldenCase& golden);
/// An integer of at most 2^20 either way, or `fallback` if absent or null.
std::int64_t bounded_param(const GoldenCase& golden, std::string_view name, std::int64_t fallback);
/// A size. Error: absent (the second form: not an error), not positive.
std::int64_t size_param(const GoldenCase& golden, std::string_view name);
std::int64_t size_param(const GoldenCase& golden, std::string_view name, std::int64_t fallback);
/// A list of words. Error: absent, or something else.
std::vector<std::string> words_param(const GoldenCase& golden, std::string_view name);

}  // namespace moeref::conform::amd
