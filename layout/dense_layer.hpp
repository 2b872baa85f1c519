#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layout/prepare.hpp"
#include "quant/moe_layer.hpp"

namespace moeref {

/// The matrices of a slot without any order but row-major: [experts][rows][cols], packed.
struct DenseSlot {
  std::string name;
  std::shared_ptr<std::vector<std::byte>> bytes;
  std::int64_t rows = 0;  ///< of all halves
  std::int64_t cols = 0;
  int element_bits = 8;
  DType dtype = DType::u8;
  std::int64_t block_rows = 1;
  std::int64_t block_cols = 1;

  std::int64_t expert_bytes() const { return rows * cols * element_bits / 8; }
};
using DenseSlots = std::array<std::optional<DenseSlot>, kSlotCount>;

/// Dense slots put together to a layer [intermediate, hidden] as the kernel of `prepared`
/// interprets codes, scales and factors; `order` tells the halves of the w13 slots apart.
/// Activation: swiglu or relu2 with the defaults. Error: no w13 or w2, codes of another size than
/// the kernel reads, scales that it does not say how to decode.
MoeLayer read_dense_layer(const PreparedLayer& prepared, const DenseSlots& slots,
                          const ScalarValues& scalars, GateOrder order, std::int64_t intermediate,
                          std::int64_t hidden);

}  // namespace moeref
