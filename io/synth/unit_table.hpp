#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "quant/dtype.hpp"

namespace moeref {

/// What each of the 65536 values of a draw becomes in the file: one storage unit of `unit_bytes`
/// bytes, little-endian. A unit is an element, or two for packed FP4.
struct UnitTable {
  std::size_t unit_bytes = 1;
  std::vector<std::byte> bytes;  ///< [65536, unit_bytes]
};

/// The distributions that synthetic tensors are drawn from; z is a normal variate of standard
/// deviation 1. No table holds a NaN, an infinity, a negative zero, or (scales) anything but
/// positive finite values.
enum class UnitKind : std::uint8_t {
  normal_bf16,  ///< center + spread * z
  normal_f32,   ///< center + spread * z
  codes_e4m3,   ///< spread * z, saturated at +-448
  codes_e2m1,   ///< two codes of spread * z, each from 8 bits of the draw
  scale_f32,    ///< center * max(0.2, 1 + spread * z)
  scale_bf16,   ///< the same
  scale_e4m3,   ///< the same, at most 448
  scale_e8m0,   ///< the same, rounded down to a power of two
};

/// Standard deviation of the codes of a quantized tensor: an FP8 block with its largest value at
/// 448, an FP4 block of 16 or 32 with its largest value near 6.
inline constexpr double kE4m3Sigma = 105.0;
inline constexpr double kE2m1Sigma = 2.8;
/// Mean of NVFP4 block scales when the largest of the tensor is near 448.
inline constexpr double kNvfp4ScaleMean = 150.0;

using UnitTablePointer = std::shared_ptr<const UnitTable>;

/// Makes each table once.
class UnitTables {
 public:
  UnitTablePointer get(UnitKind kind, double center, double spread);

 private:
  std::map<std::tuple<UnitKind, double, double>, UnitTablePointer> made_;
};

}  // namespace moeref
