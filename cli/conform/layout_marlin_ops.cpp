#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <span>

#include "cli/conform/layout_case.hpp"
#include "layout/recode/marlin_scales.hpp"
#include "layout/tiles/marlin.hpp"
#include "quant/error.hpp"

// Marlin: weight repack, scale and bias orders, scale codes, the NVFP4 MoE preparation.

namespace moeref::conform {
namespace {

constexpr std::int64_t kNvfp4Group = 16;
constexpr std::int64_t kMxGroup = 32;

/// params.param_dtype: "bf16" (also if absent) or "f16".
DType param_dtype(const GoldenCase& golden) {
  const std::string text = golden.text_param("param_dtype").value_or("bf16");
  if (text == "bf16") return DType::bf16;
  if (text == "f16") return DType::f16;
  fail(golden.path.string(), "params.param_dtype is '{}'; known are bf16, f16", text);
}

/// params.input_dtype is an 8-bit type.
bool has_eight_bit_activations(const GoldenCase& golden) {
  const std::string text = golden.text_param("input_dtype").value_or("bf16");
  if (text == "bf16" || text == "f16") return false;
  if (text == "f8_e4m3") return true;
  fail(golden.path.string(), "params.input_dtype is '{}'; known are bf16, f16, f8_e4m3", text);
}

TensorStack stack_of(const TensorView& view, int element_bits) {
  return dense_stack(view, GateOrder::separate, element_bits);
}

TensorStack stack_of(const TensorView& view) { return stack_of(view, info(view.dtype).bits); }

/// Whether the dtype only names the meaning of bytes.
bool is_code(DType dtype) { return dtype == DType::f8_e4m3 || dtype == DType::f8_e8m0; }

/// The outputs as the case stores them: one expert without its dimension, codes as plain bytes.
OpResult as_stored(const GoldenCase& golden, ComputedOutputs outputs) {
  for (auto& [name, computed] : outputs) {
    auto& tensor = std::get<Tensor>(computed);
    const TensorView* stored = golden.find_output(name);
    if (stored == nullptr || info(stored->dtype).bits != info(tensor.dtype).bits ||
        stored->bytes.size() != tensor.bytes.size()) {
      continue;
    }
    tensor.shape = stored->shape;
    if (is_code(tensor.dtype)) tensor.dtype = stored->dtype;
  }
  return {std::move(outputs), {}};
}

/// The stack as w13_scale of a layer that has nothing else, through the steps.
Tensor run_whole(const GoldenCase& golden, const TensorStack& stack,
                 const std::vector<Step>& steps) {
  LayerTensors layer;
  layer.stacks[static_cast<std::size_t>(Slot::w13_scale)] = stack;
  return run_steps(golden, stack, steps, &layer);
}

/// Steps whose runs cross from one group to the next: the originals cut the whole [groups, n] into
/// runs, so each permutation sees it as one column.
Tensor run_across_groups(const GoldenCase& golden, const TensorStack& stack,
                         const std::vector<Step>& before, std::span<const Step> permutations,
                         const Step& order) {
  const Step group_major{Tile{tiles::marlin_group_major()}};
  std::vector<Step> steps = before;
  steps.push_back(group_major);
  Tensor made = run_whole(golden, stack, steps);
  const Shape groups = made.shape;
  for (const Step& permutation : permutations) {
    TensorView column = made.view();
    column.shape = {groups[0], groups[1] * groups[2], 1};
    made = run_whole(golden, stack_of(column), {permutation, group_major});
  }
  TensorView matrix = made.view();
  matrix.shape = groups;
  return run_whole(golden, transposed(stack_of(matrix)), {order});
}

/// The stack through the steps; the last one orders it.
Tensor run(const GoldenCase& golden, const TensorStack& stack, const std::vector<Step>& steps) {
  const auto is_permutation = [](const Step& step) {
    return std::holds_alternative<PermuteRuns>(step);
  };
  const auto first = std::find_if(steps.begin(), steps.end(), is_permutation);
  if (first == steps.end()) return run_whole(golden, stack, steps);
  const std::vector<Step> before(steps.begin(), first);
  LayerTensors layer;
  layer.stacks[static_cast<std::size_t>(Slot::w13_scale)] = stack;
  const std::int64_t rows =
      make_plan(golden.subject(stack.name), stack, before, &layer).map.rows.size();
  const std::span<const Step> permutations(first, steps.end() - 1);
  const bool fits = std::all_of(permutations.begin(), permutations.end(), [rows](const Step& step) {
    return rows % static_cast<std::int64_t>(std::get<PermuteRuns>(step).source.size()) == 0;
  });
  if (fits) return run_whole(golden, stack, steps);
  return run_across_groups(golden, stack, before, permutations, steps.back());
}

/// params: num_bits, is_a_8bit, size_k_first (FP8: in.w is [K, N]). in.w: rows n, K packed.
OpResult repack(const GoldenCase& golden) {
  const auto bits =
      static_cast<int>(std::clamp<std::int64_t>(golden.integer_param("num_bits"), 0, 64));
  const Step order{Tile{tiles::marlin_repack(bits, flag_param(golden, "is_a_8bit", false))}};
  const TensorStack stack = stack_of(golden.input("w"), bits);
  const bool k_first = flag_param(golden, "size_k_first", false);
  return as_stored(golden, {{"w", run(golden, k_first ? transposed(stack) : stack, {order})}});
}

/// params: size_k, group_size (-1 = one scale a row), is_a_8bit. in.s: [groups, N].
OpResult permute_scales(const GoldenCase& golden) {
  // The original compares group_size with size_k and with -1 alone.
  const std::int64_t group = golden.integer_param("group_size");
  const Step order{tiles::marlin_scale_order(golden.positive_param("size_k"),
                                             group == -1 ? -1 : std::max<std::int64_t>(group, 1),
                                             flag_param(golden, "is_a_8bit", false))};
  return as_stored(golden, {{"s", run(golden, transposed(stack_of(golden.input("s"))),
                                      {order, Tile{tiles::marlin_group_major()}})}});
}

/// in.b: [N], or rows of it, each on its own.
OpResult permute_bias(const GoldenCase& golden) {
  TensorView rows = golden.input("b");
  if (rows.shape.size() == 1) rows.shape.insert(rows.shape.begin(), 1);
  return as_stored(
      golden, {{"b", run(golden, transposed(stack_of(rows)),
                         {tiles::marlin_permute_single(), Tile{tiles::marlin_group_major()}})}});
}

/// Scales without blocks, [experts, values]: one a row, or one for each of equal parts of the rows.
/// A trailing 1 is dropped.
TensorStack row_scales(TensorView scales) {
  if (scales.shape.size() > 1 && scales.shape.back() == 1) scales.shape.pop_back();
  const std::int64_t values = scales.shape.empty() ? 1 : scales.shape.back();
  scales.shape = {element_count(scales.shape) / std::max<std::int64_t>(values, 1), values, 1};
  return stack_of(scales);
}

/// params: size_n, size_k, param_dtype, block = [bn, bk] with in.scale_inv [N / bn, K / bk];
/// without it in.scale.
OpResult fp8_scales(const GoldenCase& golden) {
  const std::int64_t size_n = golden.positive_param("size_n");
  const std::int64_t size_k = golden.positive_param("size_k");
  const auto block = golden.params.find("block");
  const bool blocked = block != golden.params.end() && block->is_array() && block->size() == 2;
  if (blocked) {
    for (const nlohmann::json& size : *block) {
      if (size.is_number_integer() && size > 0 && size <= size_n + size_k) continue;
      fail(golden.path.string(), "params.block is {}, needs two sizes", block->dump());
    }
  }
  const TensorStack stack =
      blocked ? stack_of(golden.input("scale_inv")) : row_scales(golden.input("scale"));
  const std::int64_t group = blocked ? (*block)[1].get<std::int64_t>() : 0;
  const std::int64_t repeats =
      blocked ? (*block)[0].get<std::int64_t>() : size_n / std::max<std::int64_t>(stack.rows(), 1);
  return as_stored(golden,
                   {{"scale", run(golden, stack,
                                  {recode::marlin_fp8_scales(Slot::w13_scale, param_dtype(golden),
                                                             recode::MarlinBias::in_scales),
                                   RepeatRows{.times = repeats, .rows = size_n},
                                   tiles::marlin_scale_order(size_k, group, false),
                                   Tile{tiles::marlin_group_major()}})}});
}

/// The order of one-byte scales along n, and of the whole.
std::vector<Step> byte_scale_steps(const GoldenCase& golden, std::int64_t default_group,
                                   bool eight_bit_activations, const TileLayout& order) {
  std::vector<Step> steps{tiles::marlin_scale_order(
      golden.positive_param("size_k"), integer_param(golden, "group_size", default_group),
      eight_bit_activations)};
  if (!eight_bit_activations) steps.push_back(tiles::marlin_swap_quads());
  steps.push_back(Tile{order});
  return steps;
}

Tensor f32_tensor(std::string name, const std::vector<float>& values) {
  return make_tensor<float>(std::move(name), DType::f32, {static_cast<std::int64_t>(values.size())},
                            values);
}

/// params: size_k, group_size, param_dtype. in: scale_e4m3 [E, N, K / 16], global_scale. out:
/// scale_s0e5m3, scale_factor, global_scale.
OpResult nvfp4_scales(const GoldenCase& golden, recode::MarlinScales mode,
                      const TileLayout& order) {
  const DType params = param_dtype(golden);
  const TensorStack stack = stack_of(golden.input("scale_e4m3"));
  std::vector<Step> steps{recode::marlin_s0e5m3(Slot::w13_scale, mode, params)};
  const std::vector<Step> moves = byte_scale_steps(golden, kNvfp4Group, false, order);
  steps.insert(steps.end(), moves.begin(), moves.end());
  ComputedOutputs outputs;
  outputs.emplace("scale_s0e5m3", run(golden, stack, steps));
  const float factor = recode::marlin_scale_factor(stack, mode, params);
  outputs.emplace("scale_factor", f32_tensor("scale_factor", {factor}));
  if (const TensorView* globals = golden.find_input("global_scale")) {
    std::vector<float> scaled;
    for (const double global : to_doubles(*globals)) {
      scaled.push_back(recode::marlin_global_scale(static_cast<float>(global), factor, params));
    }
    outputs.emplace("global_scale", f32_tensor("global_scale", scaled));
  }
  return as_stored(golden, std::move(outputs));
}

OpResult nvfp4_scales_vllm(const GoldenCase& golden) {
  return nvfp4_scales(golden, recode::MarlinScales::vllm, tiles::marlin_group_major());
}
OpResult nvfp4_scales_sglang(const GoldenCase& golden) {
  return nvfp4_scales(golden, recode::MarlinScales::sglang, tiles::marlin_group_major());
}
OpResult nvfp4_scales_v1(const GoldenCase& golden) {
  return nvfp4_scales(golden, recode::MarlinScales::v1, tiles::marlin_group_pairs());
}

/// params: size_k, group_size, input_dtype (f8_e4m3 = FP8 activations), param_dtype. in.scale_e8m0
/// [E, N, K / 32].
OpResult mx_scales(const GoldenCase& golden, const TileLayout& order) {
  constexpr int kE4M3OverE2M1 = 6;
  const bool eight_bit = has_eight_bit_activations(golden);
  std::vector<Step> steps{
      recode::marlin_e8m0(Slot::w13_scale, param_dtype(golden), eight_bit ? kE4M3OverE2M1 : 0)};
  const std::vector<Step> moves = byte_scale_steps(golden, kMxGroup, eight_bit, order);
  steps.insert(steps.end(), moves.begin(), moves.end());
  return as_stored(golden, {{"scale", run(golden, stack_of(golden.input("scale_e8m0")), steps)}});
}

OpResult mx_scales_current(const GoldenCase& golden) {
  return mx_scales(golden, tiles::marlin_group_major());
}
OpResult mx_scales_v1(const GoldenCase& golden) {
  return mx_scales(golden, tiles::marlin_group_pairs());
}

/// A global scale of each expert for each of `halves`; stored one an expert, or one a half.
std::vector<float> globals_of(const TensorView& stored, std::int64_t experts, int halves) {
  const std::vector<double> values = to_doubles(stored);
  const std::size_t wanted = static_cast<std::size_t>(experts) * static_cast<std::size_t>(halves);
  if (values.size() != wanted && values.size() != static_cast<std::size_t>(experts)) {
    fail(stored.name, "has {} values; {} experts need {}", values.size(), experts, wanted);
  }
  std::vector<float> globals;
  for (std::size_t i = 0; i < wanted; ++i) {
    globals.push_back(static_cast<float>(
        values.size() == wanted ? values[i] : values.at(i / static_cast<std::size_t>(halves))));
  }
  return globals;
}

/// params: is_act_and_mul, param_dtype. in: w13, w13_scale, w13_scale_2 and w2 likewise, as in a
/// checkpoint. Halves that vLLM mixes are mixed.
OpResult prepare_nvfp4_moe(const GoldenCase& golden) {
  const bool gated = flag_param(golden, "is_act_and_mul", true);
  LayerTensors layer = case_layer(golden, gated ? GateOrder::gate_up : GateOrder::none, "nvfp4", 4);
  const std::int64_t experts = layer.shape.experts;
  layer.scalars.w13_scale = globals_of(golden.input("w13_scale_2"), experts, layer.shape.halves());
  layer.scalars.w2_scale = globals_of(golden.input("w2_scale_2"), experts, 1);
  const std::array<std::string, 2> options{
      "pad=whole_upstream", param_dtype(golden) == DType::f16 ? "params=f16" : "params=bf16"};
  return as_stored(golden, run_backend("marlin_nvfp4", options, std::move(layer)));
}

constexpr std::array kOperations{
    NamedOperation{"marlin.repack", repack},
    NamedOperation{"marlin.permute_scales", permute_scales},
    NamedOperation{"marlin.permute_bias", permute_bias},
    NamedOperation{"marlin.fp8_scales", fp8_scales},
    NamedOperation{"marlin.nvfp4_scales.vllm", nvfp4_scales_vllm},
    NamedOperation{"marlin.nvfp4_scales.sgl", nvfp4_scales_sglang},
    NamedOperation{"marlin.nvfp4_scales.v1", nvfp4_scales_v1},
    NamedOperation{"marlin.mxfp4_scales", mx_scales_current},
    NamedOperation{"marlin.mxfp4_scales.v1", mx_scales_v1},
    NamedOperation{"marlin.mxfp8_scales", mx_scales_current},
    NamedOperation{"marlin.prepare_nvfp4_moe", prepare_nvfp4_moe},
};

}  // namespace

std::span<const NamedOperation> layout_marlin_operations() { return kOperations; }

}  // namespace moeref::conform
