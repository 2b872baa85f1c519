#pragma once

#include <cstdint>

#include "layout/step.hpp"
#include "layout/tile_layout.hpp"

// Orders of the Marlin kernels (weight-only FP4 and FP8 on tensor cores of 16-bit and FP8
// activations). Rows of a matrix are the n outputs, columns the contraction index k.

namespace moeref::tiles {

/// Weight codes in the order in which the lanes of an MMA tile read them, as 32-bit words.
/// in [n, k] codes of b = `bits` (4, 8), w = 32 / b codes a word  out I32 [experts, k / 16, 16 n /
/// w] Tiles of 16 columns x 64 rows, lane = 4 (row mod 8) + (col mod 8) / 2; with 8-bit activations
/// of 32 columns x 32 rows, lane = 4 (row mod 8) + (col mod 16) / 4. A lane's codes lie side by
/// side. Error: bits other than 4 and 8; n % 64 or k % 16 (8-bit activations: n % 32 or k % 32) not
/// 0. Source: vllm@04aa528e marlin_utils_test.py get_weight_perm, marlin_weights
TileLayout marlin_repack(int bits, bool eight_bit_activations);

/// Group-wise scales: out[64 q + 8 i + j] = in[64 q + i + 8 j] along n.
/// Source: vllm@007d5005 marlin_utils.py get_scale_perms, marlin_permute_scales
PermuteRuns marlin_permute_groups();
/// One scale a row, scales beside 8-bit activations, biases: out[32 q + 8 i + u] =
/// in[32 q + 2 i + {0, 1, 8, 9, 16, 17, 24, 25}[u]] along n. Source: as above, scale_perm_single
PermuteRuns marlin_permute_single();
/// The one of the two that scales take: group-wise if 0 < group < k and activations have 16 bits.
/// A single group (group == k) counts as one scale a row. `group` 0: one scale a row.
PermuteRuns marlin_scale_order(std::int64_t k, std::int64_t group, bool eight_bit_activations);
/// One-byte scales of 16-bit activations: the middle two of every four along n change places.
/// Source: vllm@00d52e93 marlin_utils_fp4.py nvfp4_marlin_process_scales
PermuteRuns marlin_swap_quads();

/// Scales as [experts, groups, n].
TileLayout marlin_group_major();
/// Scales of kernels of 2025: two groups alternate in runs of 8 rows. Shape [experts, groups, n],
/// place = (group / 2) 2 n + (row / 8) 16 + (group mod 2) 8 + row mod 8.
/// Error: an odd number of groups, n % 8 not 0.
/// Source: vllm (2025 releases) marlin_utils_fp4.py nvfp4_marlin_process_scales
TileLayout marlin_group_pairs();
/// A bias column [n, 1] as [experts, n].
TileLayout marlin_bias_row();

}  // namespace moeref::tiles
