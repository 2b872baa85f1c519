#pragma once

#include <cstdint>

#include "quant/moe_layer.hpp"

namespace moeref {

/// One rank of a tensor-parallel and of an expert-parallel group; {0, 1, 0, 1} is the whole layer.
struct Shard {
  std::int64_t tp_rank = 0;
  std::int64_t tp_size = 1;
  std::int64_t ep_rank = 0;
  std::int64_t ep_size = 1;

  bool is_whole() const { return tp_size == 1 && ep_size == 1; }
};

/// The part of a layer that a rank owns, as views into the same storage. The ranks' outputs add up
/// to the whole.
///  - TP: rows [r * I / n, (r + 1) * I / n) of gate and of up, each on its own; the same columns of
///  down; gate and up biases
///    with their rows; the down bias on rank 0 only (absent elsewhere). The shared expert is cut
///    the same way by its own width. Router and latent projections are whole on every rank.
///  - EP: experts in contiguous blocks; ids stay global. The shared expert belongs to EP rank 0.
/// Scales are looked up by the index in the whole, so a shard may begin inside a block.
/// Error: rank outside its group, a width or an expert count that the group does not divide.
/// Source: sglang python/sglang/srt/layers/moe/fused_moe_triton/layer.py _load_w13, _load_w2.
MoeLayer shard(const MoeLayer& layer, const Shard& rank);

/// Rows [begin, begin + count) of gate and up and these columns of down, of the routed experts:
/// what a loader with another rule than `shard` gives a rank. `count` may be 0. The down bias stays
/// if begin is 0; the shared expert is left out.
MoeLayer tp_part(const MoeLayer& layer, std::int64_t begin, std::int64_t count);

}  // namespace moeref
