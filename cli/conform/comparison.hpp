#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "engine/bounds/block.hpp"
#include "io/golden_case.hpp"
#include "quant/tensor.hpp"

namespace moeref::conform {

/// Sets of ids per token: what moeref chooses, and which stored sets an evaluation within rounding
/// may also choose.
struct ComputedSets {
  std::int64_t tokens = 0;
  std::int64_t width = 0;
  std::vector<std::int32_t> ids;    ///< [tokens, width]
  std::vector<bool> stored_agrees;  ///< [tokens]: the stored set equals this one, up to choices
                                    ///< that rounding leaves open
};

/// What moeref has for one output: bits, numbers with their bounds, or sets.
using Computed = std::variant<Tensor, bounds::BoundedOutput, ComputedSets>;
/// By output name without "out.".
using ComputedOutputs = std::map<std::string, Computed, std::less<>>;

/// The verdict on one output, or on another thing that a case states (a hash, an input that must
/// agree).
struct Finding {
  std::string output;  ///< "out.topk_ids", "params.dequant_sha256.gate.f32"
  std::string rule;    ///< "bits", "bound f32", ...
  bool passed = false;
  Shape shape;  ///< of the stored output; empty where it has none
  std::int64_t elements = 0;
  std::int64_t differing = 0;
  std::int64_t first = -1;   ///< flat index of the first difference
  std::string detail;        ///< what was there, what moeref has
  double worst_ratio = 0.0;  ///< bounds: largest |difference| / bound
};

/// A finding without elements: one statement that holds or not.
Finding statement(std::string subject, std::string rule, bool passed, std::string detail);

/// Compares one stored output with what moeref computed, as the rule of the case says.
Finding compare_output(const GoldenCase& golden, const std::string& name, const Computed& computed);

/// Compares stored numbers (F64, F32, BF16, F16) with values and bounds. Error: another dtype,
/// sizes that differ.
Finding compare_bound(const std::string& name, const std::string& rule, const TensorView& stored,
                      const bounds::BoundedOutput& computed);

/// "[3, 17]", the coordinates of a flat index.
std::string coordinates(const Shape& shape, std::int64_t index);

/// The outputs of a case, by name without "out.", but those with rule `info` and `mask`.
std::vector<std::string> compared_outputs(const GoldenCase& golden);
/// All compared outputs of a case; those that moeref has nothing for fail.
std::vector<Finding> compare_outputs(const GoldenCase& golden, const ComputedOutputs& computed);

/// The numbers of a float tensor (F64, F32, BF16, F16). Error: another dtype.
std::vector<double> to_doubles(const TensorView& tensor);
/// The integers of a tensor (I32, I64, U8, ...). Error: not an integer dtype.
std::vector<std::int64_t> to_integers(const TensorView& tensor);

}  // namespace moeref::conform
