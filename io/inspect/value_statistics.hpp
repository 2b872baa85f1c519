#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "quant/dtype.hpp"
#include "quant/tensor.hpp"

namespace moeref {

/// What the values of a tensor are like. Integers are counted as numbers; packed FP4 as two values
/// a byte.
struct ValueStatistics {
  std::int64_t count = 0;
  std::int64_t finite = 0;
  double min = 0;  ///< of the finite values
  double max = 0;
  double sum_abs = 0;      ///< of the finite values, added in a fixed order
  std::int64_t zeros = 0;  ///< of either sign
  std::int64_t negative_zeros = 0;
  std::int64_t negatives = 0;  ///< below zero
  std::int64_t nans = 0;
  std::int64_t infinities = 0;
  std::int64_t saturated = 0;   ///< formats of at most 8 bits: codes of the largest magnitude
  std::int64_t subnormals = 0;  ///< E8M0: bytes 0x00
  std::int64_t not_powers_of_two = 0;  ///< finite and not 0

  double mean_abs() const { return finite == 0 ? 0.0 : sum_abs / static_cast<double>(finite); }
  double max_abs() const { return max > -min ? max : -min; }
  void add(const ValueStatistics& other);
};

/// What one element of a tensor is: a number format, or nothing for integers and bools.
using ElementFormat = std::optional<Format>;

/// The format that a dtype alone states; U8 and I8 are integers by it.
ElementFormat format_of(DType dtype);

/// Reads every byte of `bytes`, elements of `dtype` meant as `format`. The result depends on the
/// bytes only.
ValueStatistics value_statistics(std::span<const std::byte> bytes, DType dtype,
                                 ElementFormat format);

/// 64 bits that differ, but for one chance in 2^64, if the bytes do; all-zero bytes of any length
/// are told by the flag.
struct ByteDigest {
  std::uint64_t hash = 0;
  bool all_zero = true;
};
ByteDigest digest(std::span<const std::byte> bytes);

}  // namespace moeref
