#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "layout/index_map.hpp"
#include "layout/layer_tensors.hpp"
#include "layout/recoder.hpp"
#include "layout/tile_layout.hpp"
#include "layout/transform.hpp"

// The steps from which every weight layout is made. A step is a rule, not a size: sizes come from
// the tensor. Row and column counts are those of the weight: on a scale tensor each step counts in
// blocks by itself, so that a weight and its scales take the same steps.

namespace moeref {

/// Exchanges the two halves of the rows: gate, up -> up, gate.
/// in, out [2n, k]   out[i] = in[(i + n) mod 2n]. One half (not gated): no change.
/// Error: odd row count.    Source: vllm-project/vllm@00af4049 flashinfer_utils.py swap_w13_to_w31
struct SwapHalves {};

/// Exchanges the rows of each pair: out[i] = in[i xor 1]. One half, or scales of blocks with an
/// even number of rows: no change. Error: odd row count; scale blocks of an odd number of rows
/// above
/// 1. Source: sgl-project/sglang@bafa16ec
/// quantization/mxfp4.py
struct SwapPairs {};

/// Alternates blocks of `block` rows of the two halves. in, out [2n, k]
/// out[(2 (r / block) + h) block + r mod block] = in[h n + r]. block 1: rows alternate (TRTLLM-Gen
/// gated reorder), 16: aiter a16w4, 64: CuteDSL v2. One half: no change.
/// Error: n not a multiple of block; scale blocks of more rows than that.
/// Source: flashinfer@fb28d7242 fused_moe/core.py get_reorder_rows_for_gated_act_gemm_row_indices,
/// sglang@004813e1 flashinfer_cutedsl.py interleave_w13_halves, aiter@e4048607a5 ops/shuffle.py
struct InterleaveHalves {
  std::int64_t block = 1;
};

/// TRTLLM-Gen row shuffle inside blocks of B = 32 rows (16 unless epilogue_tile % 128 == 0):
/// out[b + j] = in[b + (j mod 8) B / 8 + j / 8]. Scales of whole blocks of B rows: no change.
/// Error: rows not a multiple of B; scale blocks of 2 to B - 1 rows.
/// Source: flashinfer@fb28d7242 utils.py get_shuffle_matrix_a_row_indices
struct ShuffleRows {
  std::int64_t epilogue_tile = 128;
};

/// Appends rows to each half, to a multiple, or to `to` rows of the weight if that is set.
/// Error: fewer rows than there are; a multiple that scale blocks neither divide nor cover.
/// Source: sgl-project/sglang@02962d78 flashinfer_trtllm.py, SGLang's padded loading of each half
struct PadHalves {
  std::int64_t multiple = 1;
  std::int64_t to = 0;
  std::byte fill = std::byte{0};
};

/// Appends rows at the end of all rows, ignoring halves: to a multiple of `multiple`, or to `to`.
/// On a gated tensor this moves the boundary of the halves: what upstream does in places, never
/// what is meant. Error: as PadHalves. Source: vllm@00af4049 flashinfer_utils.py
/// align_*_moe_weights
struct PadRows {
  std::int64_t multiple = 1;
  std::int64_t to = 0;
  std::byte fill = std::byte{0};
};

/// Appends columns, to a multiple or to `to` columns of the weight. Error: as PadHalves; FP4
/// columns in an odd number.
struct PadCols {
  std::int64_t multiple = 1;
  std::int64_t to = 0;
  std::byte fill = std::byte{0};
};

/// Reorders rows inside runs: out[run q + i] = in[run q + source[i]], run = source.size(). For
/// tensors whose rows run along a register tile (Marlin scales and biases).
/// Error: rows not a multiple of the run. Source: the tables of layout/tiles/marlin.cpp
struct PermuteRuns {
  std::string_view name;
  std::vector<int> source;
};

/// Writes every row `times` times: a block scale for each of its rows. in [n, k] out [n times, k],
/// cut to `rows` if that is not 0. A stated copy. A scale row then stands for block / times rows.
/// Error: `rows` above n times. Source: vllm@5658bb16 marlin_utils_fp8.py, torch repeat_interleave
struct RepeatRows {
  std::int64_t times = 1;
  std::int64_t rows = 0;
};

/// Orders all elements as `layout` says, with its padding. At most one per tensor, after all row
/// and column steps.
struct Tile {
  TileLayout layout;
};

/// Moves the bits of each 32-bit word. The last step. Error: no whole number of words.
struct PermuteBits {
  std::shared_ptr<const BitPermutation> bits;
};

/// Rewrites codes; see Recoder. `make` sees the whole logical layer (scales, global scales).
/// `dtype`, `out_bits`: what the elements are afterwards. Before pads and the tile.
struct Recode {
  std::string name;
  std::string summary;  ///< in a few words
  int out_bits = 8;
  DType dtype = DType::u8;
  std::function<std::shared_ptr<const Recoder>(const LayerTensors&)> make;
  bool needs_layer =
      true;  ///< false: `make` reads nothing, undo can restore without the checkpoint
  bool needs_data =
      true;  ///< false: `make` reads dtypes, sizes and scalars only, undo has those in the file
};

using Step = std::variant<SwapHalves, SwapPairs, InterleaveHalves, ShuffleRows, PadHalves, PadRows,
                          PadCols, PermuteRuns, RepeatRows, Tile, PermuteBits, Recode>;

/// No tensor has more elements.
inline constexpr std::int64_t kMostElements = std::int64_t{1} << 40;

/// A tensor on its way: what the steps so far make of it.
struct Plan {
  std::string tensor;  ///< for messages
  IndexMap map;
  Recoders recoders;
  int halves = 1;
  std::int64_t block_rows = 1;
  std::int64_t block_cols = 1;
  DType dtype = DType::u8;
  Shape shape;  ///< of the prepared tensor
  std::vector<std::int64_t>
      strides;          ///< in elements, if the kernel sees a view; empty = contiguous
  bool tiled = false;   ///< a Tile has set order and shape
  bool padded = false;  ///< a pad step stands before: nothing can be recoded any more
  std::int64_t most_elements = kMostElements;  ///< that the tensor may get on the way
};

/// The plan without steps. `name` for messages; its tables stay in bounds of `most_elements`
/// whatever the steps are.
Plan start_plan(std::string name, const TensorStack& stack,
                std::int64_t most_elements = kMostElements);
/// Adds a step. Recode needs `layer` (nullptr: only the map, no recoder: enough for explain).
/// Error (names the tensor): what the step's comment says; more elements than the plan may have;
/// Recode after a pad, a step other than PermuteBits after Tile, any step after PermuteBits.
void append(Plan& plan, const Step& step, const LayerTensors* layer);
Plan make_plan(std::string name, const TensorStack& stack, std::span<const Step> steps,
               const LayerTensors* layer, std::int64_t most_elements = kMostElements);

/// "shuffle_rows(128)": for the steps of all_steps() the text that parse_steps reads.
std::string describe(const Step& step);

enum class StepKind : std::uint8_t { move, pad, recode, pack };
std::string_view name(StepKind kind);
StepKind kind_of(const Step& step);

/// A step that commands and listings know by name.
struct NamedStep {
  std::string_view name;
  std::string_view parameters;  ///< "block, multiple": comma-separated integers; empty = none
  StepKind kind;
  std::string_view summary;  ///< one line of at most 80 columns
  std::string_view source;   ///< repo@commit path function
  Step (*make)(std::span<const std::int64_t> parameters);
};
/// Every step that can be named without a layer: those above, then each family of
/// layout/tiles/<family>.cpp.
const std::vector<NamedStep>& all_steps();
/// Steps from text: "swap_halves shuffle_rows(128) swizzle_128x4". Error: an unknown name (nearest
/// names), wrong parameters.
std::vector<Step> parse_steps(std::string_view option, const std::string& text);

}  // namespace moeref
