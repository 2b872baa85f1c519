#pragma once

#include <cstdint>

namespace moeref {

/// What SGLang asks before it allocates the expert weights of a rank.
struct MoeWeightRequest {
  std::int64_t intermediate = 0;  ///< rows of a half of w13 on this rank, before padding
  bool concat = true;             ///< gate and up share one tensor
  bool packed = false;            ///< two values a byte along the columns
  bool aiter = true;
  bool fp4x2_dtype = true;  ///< the runtime has torch.float4_e2m1fn_x2; without it packed w13 gets
                            ///< half the rows
};

struct MoeWeightSizes {
  std::int64_t w13_up_dim = 0;   ///< rows of w13
  std::int64_t w2_down_dim = 0;  ///< stored columns of w2: bytes if packed
  bool is_padded = false;
};

/// Sizes of w13 and w2 with aiter's padding to 128 stored columns of w2 (256 values if packed).
///   down = packed ? intermediate / 2 : intermediate; aiter: rounded up to 128
///   up = concat ? 2 intermediate : intermediate; aiter: concat ? 2 down : as before, then doubled
///   if packed
/// As upstream has it: without concat the rows stay unpadded while the columns of w2 are padded,
/// and packed w13 gets twice its rows.
/// Error: a size that is negative or above 2^40.
/// Source: sglang@004813e1dd46 layers/moe/utils.py get_moe_weight_sizes
MoeWeightSizes moe_weight_sizes(const MoeWeightRequest& request);

}  // namespace moeref
