#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "cli/conform/layout_amd_case.hpp"
#include "layout/moe_weight_sizes.hpp"
#include "layout/recode/fnuz.hpp"
#include "layout/recode/int4.hpp"
#include "layout/tiles/aiter.hpp"
#include "quant/error.hpp"

namespace moeref::conform {
namespace {

using namespace amd;
using namespace tiles;
using Steps = std::vector<Step>;

constexpr std::int64_t kHalfBlock = 16;  // rows of gate or of up that the kernel's lanes alternate

/// The order of the halves of a tensor whose blocks of them alternate, or that has none.
GateOrder halves_if(bool gate_up) { return gate_up ? GateOrder::gate_up : GateOrder::separate; }

/// in.`input` through `tile`, before it blocks of `block` rows of gate and up alternating.
Tensor run_halves(const GoldenCase& golden, std::string_view input, bool gate_up,
                  std::int64_t block, const TileLayout& tile) {
  const Steps alone{Tile{tile}};
  const Steps alternating{InterleaveHalves{block}, Tile{tile}};
  return run(golden, input, gate_up ? alternating : alone, halves_if(gate_up));
}

/// shuffle_weight with all its arguments.
Tensor shuffle_weight(const GoldenCase& golden, bool interleave, bool gate_up) {
  const auto [rows, k] = layout_param(golden);
  const std::int64_t pad_k = bounded_param(golden, "pad_k_to", 0);
  const bool int4 = flag_param(golden, "use_int4", false);
  if (pad_k < 0) fail(golden.op, "pad_k_to is {}; it must not be negative", pad_k);
  if (pad_k != 0 && (int4 || interleave)) {
    fail(golden.op, "pad_k_to cannot be combined with use_int4 or is_guinterleave");
  }
  if (interleave) {
    return run_halves(golden, "x", gate_up, rows, aiter_shuffle_weight_a16w4(rows, k));
  }
  Steps steps;
  if (pad_k != 0) steps.emplace_back(PadCols{.multiple = pad_k});
  const std::int64_t bits = info(golden.input("x").dtype).bits;
  steps.emplace_back(
      Tile{int4 ? aiter_shuffle_int4_values(rows, k) : aiter_shuffle_weight(rows, k, bits)});
  return run(golden, "x", steps);
}

OpResult run_shuffle_weight(const GoldenCase& golden) {
  return only("y", shuffle_weight(golden, flag_param(golden, "is_guinterleave", false),
                                  flag_param(golden, "gate_up", false)));
}

/// NLane, KPack (16 unless named), gate_up.
OpResult run_shuffle_weight_a16w4(const GoldenCase& golden) {
  const std::int64_t lanes = size_param(golden, "NLane");
  const TileLayout tile = aiter_shuffle_weight_a16w4(lanes, size_param(golden, "KPack", 16));
  return only("y", run_halves(golden, "x", flag_param(golden, "gate_up", false), lanes, tile));
}

/// gfx1250 alternates single rows of the halves, every other device blocks of rows.
OpResult run_moe_shuffle_weight(const GoldenCase& golden) {
  const bool interleave = flag_param(golden, "is_guinterleave", false);
  const bool gate_up = flag_param(golden, "gate_up", false);
  if (arch_param(golden) != "gfx1250")
    return only("y", shuffle_weight(golden, interleave, gate_up));
  const auto [rows, k] = layout_param(golden);
  const TileLayout tile = aiter_shuffle_weight(rows, k, info(golden.input("x").dtype).bits);
  return only("y", run_halves(golden, "x", interleave && gate_up, 1, tile));
}

/// [experts, 2 n, ...]: whatever follows the rows moves with them.
OpResult run_interleave_gate_up_rows(const GoldenCase& golden) {
  TensorView view = golden.input("x");
  const Shape given = view.shape;
  if (given.size() < 2)
    fail(golden.subject("x"), "has shape {}; needed are rows", to_string(given));
  view.shape = {given[0], given[1], element_count({given.begin() + 2, given.end()})};
  const TensorStack stack = dense_stack(view, GateOrder::gate_up, info(view.dtype).bits);
  Tensor made = run(golden, stack, {InterleaveHalves{1}});
  made.shape = given;
  return only("y", std::move(made));
}

OpResult run_shuffle_weight_nk(const GoldenCase& golden) {
  if (flag_param(golden, "use_int4", false)) {
    fail(golden.path.string(),
         "shuffle_weight_NK(use_int4) takes rows as twice as long as they are; use shuffle_weight");
  }
  const std::int64_t n = size_param(golden, "inst_N");
  const std::int64_t k = size_param(golden, "inst_K");
  return only("y", run(golden, "x", {Tile{aiter_shuffle_weight_nk(n, k)}}));
}

/// 2-D weights [n, k], or 3-D weights [experts, k, n].
OpResult run_shuffle_weight_gfx1250(const GoldenCase& golden) {
  const TensorView& view = golden.input("x");
  if (view.shape.size() == 2) {
    return only("y", run(golden, "x", {Tile{aiter_shuffle_weight_gfx1250(StripeView::rows)}}));
  }
  if (view.shape.size() != 3) {
    fail(golden.subject("x"), "has shape {}; needed are 2 or 3 dimensions", to_string(view.shape));
  }
  const TensorStack stack =
      transposed(dense_stack(view, GateOrder::separate, info(view.dtype).bits));
  return only("y",
              run(golden, stack, {Tile{aiter_shuffle_weight_gfx1250(StripeView::transposed)}}));
}

OpResult run_mxfp8fp4_a(const GoldenCase& golden) {
  return only("y", run_bytes(golden, "x", {Tile{aiter_tile(2, 128)}}));
}
OpResult run_mxfp8fp4_b(const GoldenCase& golden) {
  return only("y", run_bytes(golden, "x", {Tile{aiter_tile(16, 16)}}));
}
OpResult run_mxfp8fp4_scale(const GoldenCase& golden) {
  return only("y", run_bytes(golden, "s", {Tile{aiter_shuffle_mxfp8fp4_scale()}}));
}

/// intype: 8 = NVFP4, anything else MXFP4.
OpResult run_shuffle_scale_f4(const GoldenCase& golden) {
  const std::int64_t cols = bounded_param(golden, "intype", 7) == 8 ? 8 : 4;
  return only("y", run(golden, "s", {Tile{aiter_tile(32, cols)}}));
}

/// The scales as [experts, rows, columns] if they are [experts * rows, columns].
TensorView split_experts(const GoldenCase& golden, std::int64_t experts) {
  TensorView view = golden.input("s");
  if (view.shape.size() != 2 || experts < 1 || view.shape[0] % experts != 0) {
    fail(golden.subject("s"), "has shape {}; needed is [experts * rows, columns] with {} experts",
         to_string(view.shape), experts);
  }
  view.shape = {experts, view.shape[0] / experts, view.shape[1]};
  return view;
}

OpResult run_shuffle_scale_a16w4(const GoldenCase& golden) {
  const bool gate_up = flag_param(golden, "gate_up", false);
  const TensorView view = split_experts(golden, golden.integer_param("experts"));
  const GateOrder order = halves_if(gate_up);
  Steps steps;
  if (gate_up) steps.emplace_back(InterleaveHalves{kHalfBlock});
  steps.emplace_back(Tile{aiter_shuffle_scale()});
  Tensor made = run(golden, dense_stack(view, order, info(view.dtype).bits), steps);
  made.shape = {made.shape[0] * made.shape[1], made.shape[2]};
  return only("y", std::move(made));
}

/// All rows together; f32 scales are not E8M0 and pass.
OpResult run_e8m0_shuffle(const GoldenCase& golden) {
  const TensorView& view = golden.input("s");
  if (view.dtype == DType::f32) return only("y", unchanged(golden, "s"));
  if (view.shape.size() != 2) {
    fail(golden.subject("s"), "has shape {}; needed is [rows, columns]", to_string(view.shape));
  }
  return only("y", run(golden, "s", {Tile{aiter_e8m0_shuffle()}}));
}

OpResult run_shuffle_scale_n32k4(const GoldenCase& golden) {
  const bool halves =
      flag_param(golden, "is_guinterleave", false) && flag_param(golden, "gate_up", false);
  Steps steps;
  if (halves) steps.emplace_back(InterleaveHalves{1});
  steps.emplace_back(Tile{aiter_shuffle_scale_n32k4()});
  TensorView view = golden.input("s");
  if (view.shape.size() == 2) view = split_experts(golden, golden.integer_param("experts"));
  // The original looks at bytes.
  view.shape.back() *= info(view.dtype).bits / 8;
  view.dtype = DType::u8;
  const GateOrder order = halves_if(halves);
  return only("y", run(golden, dense_stack(view, order, 8), steps));
}

TileLayout triton_scale(const GoldenCase& golden, std::string_view device, std::int64_t factor,
                        std::int64_t width, StripeView view) {
  if (device == "gfx950") return aiter_scale_gfx950(factor, width, view);
  if (device == "gfx1250") return aiter_scale_gfx1250(factor, width, view);
  fail(golden.op, "arch {} has no shuffled GEMM scales; gfx950 and gfx1250 have", device);
}

OpResult run_shuffle_scale_gemm(const GoldenCase& golden) {
  const TileLayout tile =
      triton_scale(golden, arch_param(golden), size_param(golden, "preshuffle_factor", 16),
                   size_param(golden, "scale_kwidth", 4), StripeView::rows);
  return only("y", run(golden, "s", {Tile{tile}}));
}

/// [..., columns, rows]; a device without such scales takes them as they are.
OpResult run_shuffle_scale_moe(const GoldenCase& golden) {
  const std::string device = arch_param(golden);
  if (device != "gfx950" && device != "gfx1250") return only("y", unchanged(golden, "s"));
  const TileLayout tile =
      triton_scale(golden, device, size_param(golden, "preshuffle_factor", 32),
                   size_param(golden, "scale_kwidth", 8), StripeView::transposed);
  const TensorView view = as_matrices(golden, "s");
  const TensorStack stack =
      transposed(dense_stack(view, GateOrder::separate, info(view.dtype).bits));
  return only("y", run_matrices(golden, "s", stack, {Tile{tile}}));
}

/// scale_k_width null: the next power of two of the columns, at most 16.
OpResult run_shuffle_scale_batched(const GoldenCase& golden) {
  const std::int64_t cols = as_matrices(golden, "s").shape[2];
  std::int64_t automatic = 1;
  while (automatic < std::min<std::int64_t>(cols, 16)) automatic *= 2;
  const std::int64_t named = size_param(golden, "scale_k_width", automatic);
  if (named != automatic && named != 4 && named != 8 && named != 16) {
    fail(golden.op, "scale_k_width is {}; it must be 4, 8 or 16", named);
  }
  return only("y", run(golden, "s", {Tile{aiter_scale_batched(cols < 4 ? cols : named)}}));
}

OpResult run_pack_int4(const GoldenCase& golden) {
  const TensorView& view = golden.input("x");
  Tensor made = run(golden, one_row(view), {recode::int8_to_int4(), Tile{aiter_pack_int4()}});
  made.shape = {view.size() / 2};
  return only("y", std::move(made));
}

OpResult run_shuffle_scale_for_int4(const GoldenCase& golden) {
  const std::int64_t group = bounded_param(golden, "group_size", 32);
  if (group != 32) fail(golden.op, "group_size is {}; the layout knows 32", group);
  if (golden.input("s").dtype != DType::bf16) return only("y", unchanged(golden, "s"));
  return only("y", run(golden, "s", {Tile{aiter_int4_scale()}}));
}

/// in.w, in.w_scale, and in.input_scale if there is one.
OpResult run_normalize_fnuz(const GoldenCase& golden) {
  const auto recoded = [&golden](std::string_view input, const Step& step) {
    const TensorView& view = golden.input(input);
    Tensor made = run(golden, one_row(view), {step});
    made.shape = view.shape;
    // Codes that are stored as raw bytes stay so.
    if (view.dtype != DType::f8_e4m3) made.dtype = view.dtype;
    return made;
  };
  OpResult result = only("w", recoded("w", recode::e4m3fn_to_fnuz()));
  for (const std::string scale : {"w_scale", "input_scale"}) {
    if (golden.find_input(scale) == nullptr) continue;
    result.outputs.emplace(scale, recoded(scale, recode::double_scales()));
  }
  return result;
}

/// params: dim, shard_size, tp. Rank r gets [r shard_size, (r + 1) shard_size) of the dimension,
/// zeros past its end.
OpResult run_padded_load(const GoldenCase& golden) {
  constexpr std::int64_t kMostRanks = 1 << 16;
  const TensorView& view = golden.input("w");
  const std::int64_t shard = size_param(golden, "shard_size");
  const std::int64_t ranks = size_param(golden, "tp");
  if (ranks > kMostRanks) {
    fail(golden.path.string(), "params.tp is {}, needs 1 to {}", ranks, kMostRanks);
  }
  const auto rank_count = static_cast<std::int64_t>(view.shape.size());
  const std::int64_t dim = golden.integer_param("dim");
  if (dim < -rank_count || dim >= rank_count) {
    fail(golden.subject("w"), "has no dimension {}; its shape is {}", dim, to_string(view.shape));
  }
  const auto axis = view.shape.begin() + (dim < 0 ? dim + rank_count : dim);
  TensorView rows = view;
  rows.shape = {element_count({view.shape.begin(), axis}), *axis,
                element_count({axis + 1, view.shape.end()})};
  const TensorStack whole = dense_stack(rows, GateOrder::separate, info(view.dtype).bits);
  OpResult result;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const std::string name = fmt::format("rank{}", rank);
    if (golden.find_output(name) == nullptr) continue;
    const std::int64_t begin = std::min(rank * shard, whole.half_rows);
    TensorStack part = whole;
    part.half_rows = std::min(shard, whole.half_rows - begin);
    for (Plane& plane : part.planes) plane.origin += begin * plane.row_stride;
    Tensor made = run(golden, part, {PadRows{.to = shard}});
    made.shape = view.shape;
    made.shape[static_cast<std::size_t>(axis - view.shape.begin())] = shard;
    result.outputs.emplace(name, std::move(made));
  }
  return result;
}

void set_argument(const GoldenCase& golden, MoeWeightRequest& request, std::string_view name,
                  std::int64_t value) {
  if (name == "inter_dim") {
    request.intermediate = value;
  } else if (name == "is_concat") {
    request.concat = value != 0;
  } else if (name == "is_packed") {
    request.packed = value != 0;
  } else if (name == "is_aiter_moe") {
    request.aiter = value != 0;
  } else {
    fail(golden.op, "params.args names {}, which is no argument", name);
  }
}

std::int64_t size_of(const GoldenCase& golden, const MoeWeightSizes& sizes, std::string_view name) {
  if (name == "w13_up_dim") return sizes.w13_up_dim;
  if (name == "w2_down_dim") return sizes.w2_down_dim;
  if (name == "is_padded") return sizes.is_padded ? 1 : 0;
  fail(golden.op, "params.sizes names {}, which is no size", name);
}

/// params.args and params.sizes name the columns.
OpResult run_moe_weight_sizes(const GoldenCase& golden) {
  const std::vector<std::string> arguments = words_param(golden, "args");
  const std::vector<std::string> wanted = words_param(golden, "sizes");
  const TensorView& view = golden.input("args");
  const auto columns = static_cast<std::int64_t>(arguments.size());
  if (view.shape.size() != 2 || view.shape[1] != columns) {
    fail(golden.subject(view.name), "has shape {}; needed is [rows, {}]", to_string(view.shape),
         columns);
  }
  const std::vector<std::int64_t> given = to_integers(view);
  std::vector<std::int64_t> sizes;
  for (std::int64_t row = 0; row < view.shape[0]; ++row) {
    MoeWeightRequest request;
    for (std::int64_t column = 0; column < columns; ++column) {
      set_argument(golden, request, arguments[static_cast<std::size_t>(column)],
                   given[static_cast<std::size_t>(row * columns + column)]);
    }
    const MoeWeightSizes made = moe_weight_sizes(request);
    for (const std::string& size : wanted) sizes.push_back(size_of(golden, made, size));
  }
  return only("sizes", make_tensor<std::int64_t>(
                           "sizes", DType::i64,
                           {view.shape[0], static_cast<std::int64_t>(wanted.size())}, sizes));
}

constexpr std::array kOperations{
    NamedOperation{"aiter.e8m0_shuffle", run_e8m0_shuffle},
    NamedOperation{"aiter.interleave_gate_up_rows", run_interleave_gate_up_rows},
    NamedOperation{"aiter.moe_shuffle_weight", run_moe_shuffle_weight},
    NamedOperation{"aiter.pack_int8_to_packed_int4", run_pack_int4},
    NamedOperation{"aiter.shuffle_mxfp8fp4_a", run_mxfp8fp4_a},
    NamedOperation{"aiter.shuffle_mxfp8fp4_b", run_mxfp8fp4_b},
    NamedOperation{"aiter.shuffle_mxfp8fp4_scale", run_mxfp8fp4_scale},
    NamedOperation{"aiter.shuffle_scale_a16w4", run_shuffle_scale_a16w4},
    NamedOperation{"aiter.shuffle_scale_f4", run_shuffle_scale_f4},
    NamedOperation{"aiter.shuffle_scale_for_int4", run_shuffle_scale_for_int4},
    NamedOperation{"aiter.shuffle_scale_n32k4", run_shuffle_scale_n32k4},
    NamedOperation{"aiter.shuffle_weight", run_shuffle_weight},
    NamedOperation{"aiter.shuffle_weight_NK", run_shuffle_weight_nk},
    NamedOperation{"aiter.shuffle_weight_a16w4", run_shuffle_weight_a16w4},
    NamedOperation{"aiter.shuffle_weight_gfx1250", run_shuffle_weight_gfx1250},
    NamedOperation{"aiter.triton.shuffle_scale_batched", run_shuffle_scale_batched},
    NamedOperation{"aiter.triton.shuffle_scale_gemm", run_shuffle_scale_gemm},
    NamedOperation{"aiter.triton.shuffle_scale_moe", run_shuffle_scale_moe},
    NamedOperation{"sglang.get_moe_weight_sizes", run_moe_weight_sizes},
    NamedOperation{"sglang.normalize_e4m3fn_to_e4m3fnuz", run_normalize_fnuz},
    NamedOperation{"sglang.padded_load", run_padded_load},
};

}  // namespace

std::span<const NamedOperation> layout_amd_operations() { return kOperations; }

}  // namespace moeref::conform
