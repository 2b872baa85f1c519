#include "layout/moe_weight_sizes.hpp"

#include "quant/error.hpp"
#include "quant/tensor.hpp"

namespace moeref {

MoeWeightSizes moe_weight_sizes(const MoeWeightRequest& request) {
  constexpr std::int64_t kAlignment = 128;  // stored columns
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  if (request.intermediate < 0 || request.intermediate > kMost) {
    fail("moe_weight_sizes", "the intermediate size is {}; needed is 0 to {}", request.intermediate,
         kMost);
  }
  MoeWeightSizes sizes;
  sizes.w13_up_dim = request.concat ? 2 * request.intermediate : request.intermediate;
  sizes.w2_down_dim = request.packed ? request.intermediate / 2 : request.intermediate;
  if (!request.aiter) return sizes;
  sizes.is_padded = sizes.w2_down_dim % kAlignment != 0;
  sizes.w2_down_dim = ceil_div(sizes.w2_down_dim, kAlignment) * kAlignment;
  if (request.concat) sizes.w13_up_dim = 2 * sizes.w2_down_dim;
  if (request.packed && request.fp4x2_dtype) sizes.w13_up_dim *= 2;
  return sizes;
}

}  // namespace moeref
