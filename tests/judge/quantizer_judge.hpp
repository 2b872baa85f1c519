#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "quant/formats.hpp"

namespace moeref::judge {

/// A row-major matrix of bf16, f16, f32 or E4M3 bits.
struct Numbers {
  Format format = Format::bf16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<std::uint32_t> bits;
};

/// What a quantizer should make: one code a number, the bits of each block's scale, and the bits of
/// the scales above them (none, one, or one a row).
struct JudgedForm {
  std::int64_t row_blocks = 0;
  std::int64_t col_blocks = 0;
  std::vector<std::uint8_t> codes;
  std::vector<std::uint32_t> scales;
  std::vector<std::uint32_t> global;
};

/// Every option of the quantizer by its name.
using JudgeOptions = std::map<std::string, std::string, std::less<>>;

/// The quantizers of moeref a second time: slow, of exact numbers and searches over codes, written
/// from the descriptions of the GPU stacks and not from quant/. False: no such judge.
bool has_quantizer_judge(std::string_view quantizer);
/// Whether the upstream code has this combination at all.
bool is_offered(std::string_view quantizer, const JudgeOptions& options, Format input);
JudgedForm judge_quantizer(std::string_view quantizer, const JudgeOptions& options,
                           const Numbers& numbers, std::optional<float> given);

}  // namespace moeref::judge
