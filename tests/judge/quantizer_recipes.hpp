#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tests/judge/gpu_numbers.hpp"
#include "tests/judge/quantizer_judge.hpp"

namespace moeref::judge {

/// The options, the dtype of the numbers and the calibrated scale of one judgement.
struct Setting {
  const JudgeOptions& options;
  Format input;
  float given = 1.0f;

  const std::string& operator[](std::string_view name) const { return options.find(name)->second; }
  bool is(std::string_view name, std::string_view value) const { return (*this)[name] == value; }
  std::int64_t integer(std::string_view name) const { return std::stoll((*this)[name]); }
  float number(std::string_view name) const { return std::stof((*this)[name]); }
};

struct JudgedBlock {
  std::uint32_t scale = 0;
  std::vector<std::uint8_t> codes;
};

enum class GlobalOf : std::uint8_t { none, given, tensor, row };

/// A quantizer as a function of whole blocks.
struct Recipe {
  std::int64_t block_rows = 1;  ///< 0 = all
  std::int64_t block_cols = 0;  ///< 0 = all
  /// `all`: the numbers of the tensor or row that a global scale is made of; else empty.
  std::function<JudgedBlock(std::span<const float> block, std::span<const float> all)> block =
      nullptr;
  GlobalOf global = GlobalOf::none;
  /// GlobalOf tensor, row: the scale as stored.
  std::function<float(std::span<const float> all)> stored = nullptr;
};

using RecipeOf = Recipe (*)(const Setting& setting);
using RecipeTable = std::map<std::string_view, RecipeOf>;
/// The quantizers to E4M3 with f32 scales, to NVFP4, and to blocks with E8M0 scales.
RecipeTable fp8_recipes();
RecipeTable nvfp4_recipes();
RecipeTable mx_recipes();

/// x / number as PyTorch does it on a device, in f32.
float torch_over(const Setting& setting, float x, double number);

/// A block whose codes are code(x) of each element.
template <typename Code>
JudgedBlock coded(std::uint32_t scale, std::span<const float> block, const Code& code) {
  JudgedBlock result{scale, {}};
  for (const float x : block) result.codes.push_back(static_cast<std::uint8_t>(code(x)));
  return result;
}

}  // namespace moeref::judge
