#include <array>
#include <map>

#include "cli/conform/layout_case.hpp"
#include "layout/tiles/nvidia.hpp"
#include "quant/error.hpp"

namespace moeref::conform {
namespace {

using Steps = std::vector<Step>;

constexpr std::int64_t kEpilogueTile = 128;

/// Whether w13 has two halves: params.gated, or as many rows as K of w2 twice.
bool is_gated(const GoldenCase& golden, int code_bits) {
  const Shape& w13 = golden.input("w13").shape;
  const Shape& w2 = golden.input("w2").shape;
  const bool twice = w13.size() == 3 && w2.size() == 3 &&
                     w13[1] == 2 * w2[2] * info(golden.input("w2").dtype).bits / code_bits;
  return flag_param(golden, "gated", twice);
}

/// params.swap_halves: in.w13 is gate, up; false: already up, gate.
GateOrder half_order(const GoldenCase& golden, int code_bits) {
  if (!is_gated(golden, code_bits)) return GateOrder::none;
  return flag_param(golden, "swap_halves", false) ? GateOrder::gate_up : GateOrder::up_gate;
}

/// The tensors as `backend` prepares them. Error: params.epilogue_tile_m is not the tile that the
/// backend shuffles for.
OpResult prepare(const GoldenCase& golden, std::string_view backend,
                 std::vector<std::string> options, LayerTensors layer,
                 std::int64_t epilogue_tile = kEpilogueTile) {
  if (golden.params.contains("epilogue_tile_m") &&
      golden.integer_param("epilogue_tile_m") != epilogue_tile) {
    fail(golden.path.string(), "params.epilogue_tile_m is {}; {} shuffles for {}",
         golden.integer_param("epilogue_tile_m"), backend, epilogue_tile);
  }
  ComputedOutputs outputs = run_backend(backend, options, with_unit_factors(std::move(layer)));
  for (auto& [name, output] : outputs) {
    const TensorView* input = golden.find_input(name);
    Tensor* tensor = std::get_if<Tensor>(&output);
    if (tensor == nullptr || input == nullptr || input->shape.size() != 2) continue;
    *tensor = shaped_as(std::move(*tensor), golden, name);  // flat scales: [experts, rows * cols]
  }
  return {std::move(outputs), {}};
}

OpResult prepare_nvfp4(const GoldenCase& golden) {
  return prepare(golden, "flashinfer_trtllm_nvfp4", {"align=1", "swiglu=gate_limit_upstream"},
                 case_layer(golden, half_order(golden, 4), "nvfp4", 4));
}

OpResult prepare_mxfp8(const GoldenCase& golden) {
  return prepare(golden, "flashinfer_trtllm_mxfp8", {"align=1", "swiglu=dropped_upstream"},
                 case_layer(golden, half_order(golden, 8), "mxfp8", 8));
}

OpResult prepare_fp8_per_tensor(const GoldenCase& golden) {
  return prepare(golden, "flashinfer_trtllm_fp8",
                 {"align=1", "requantize=off", "swiglu=dropped_upstream"},
                 case_layer(golden, half_order(golden, 8), "fp8_tensor", 8));
}

OpResult prepare_deepseek_fp8(const GoldenCase& golden) {
  constexpr std::int64_t kBlockEpilogueTile = 64;
  return prepare(golden, "flashinfer_trtllm_fp8_block",
                 {"layout=block_major_k", "swiglu=dropped_upstream"},
                 case_layer(golden, half_order(golden, 8), "fp8_block", 8), kBlockEpilogueTile);
}

OpResult prepare_bf16(const GoldenCase& golden) {
  return prepare(golden, "flashinfer_trtllm_bf16", {"align=1", "swiglu=dropped_upstream"},
                 case_layer(golden, half_order(golden, 16), "bf16", 16));
}

OpResult prepare_mxfp4_gptoss(const GoldenCase& golden) {
  return prepare(golden, "flashinfer_trtllm_mxfp4", {"align=1"},
                 case_layer(golden, GateOrder::interleaved, "mxfp4", 4));
}

GateOrder input_order(bool halves) { return halves ? GateOrder::gate_up : GateOrder::separate; }

/// INT4 codes as bytes, bf16 scales; the halves are in the order that the kernel wants.
OpResult prepare_mxint4(const GoldenCase& golden) {
  constexpr std::int64_t kBlockBytes = 128;
  const Steps shuffle{ShuffleRows{kEpilogueTile}};
  const Steps alternate{InterleaveHalves{1}, ShuffleRows{kEpilogueTile}};
  ComputedOutputs outputs;
  for (const std::string_view weight : {"w13", "w2"}) {
    const std::string scale = std::string(weight) + "_scale";
    const bool halves = weight == "w13";
    for (const auto& [input, tile] :
         {std::pair{std::string(weight), tiles::block_major_k(kBlockBytes)},
          std::pair{scale, tiles::swizzle_128x4()}}) {
      const TensorView* view = golden.find_input(input);
      if (view == nullptr) continue;
      Steps steps = halves ? alternate : shuffle;
      steps.emplace_back(Tile{tile});
      outputs.emplace(
          input, shaped_as(run_steps(golden, input, moved_bits(*view), steps, input_order(halves)),
                           golden, input));
    }
  }
  return {outputs, {}};
}

/// Where the rows of a matrix of params.M rows come from.
std::vector<std::int64_t> row_sources(const GoldenCase& golden, std::int64_t rows,
                                      const Steps& steps) {
  if (rows % 2 != 0) {
    fail(golden.path.string(), "params.M is {}; the gated reorder needs an even number", rows);
  }
  TensorStack stack;
  stack.name = golden.subject("params.M");
  stack.experts = 1;
  stack.halves = 2;
  stack.half_rows = rows / 2;
  stack.cols = 1;
  const Plan plan = make_plan(stack.name, stack, steps, nullptr);
  std::vector<std::int64_t> sources;
  for (std::int64_t row = 0; row < rows; ++row) sources.push_back(plan.map.rows[row].index());
  return sources;
}

OpResult row_permutations(const GoldenCase& golden) {
  const std::int64_t rows = golden.positive_param("M");
  const ShuffleRows shuffle{golden.integer_param("epilogue_tile_m")};
  const Steps alternate_and_shuffle{InterleaveHalves{1}, shuffle};
  ComputedOutputs outputs;
  const auto put = [&](std::string name, const Steps& steps) {
    const std::vector<std::int64_t> sources = row_sources(golden, rows, steps);
    outputs.emplace(name, make_tensor<std::int64_t>(name, DType::i64, {rows}, sources));
  };
  put("shuffle_a", {shuffle});
  put("w2", {shuffle});
  put("w3_w1_nongated", {shuffle});
  put("reorder_gated", {InterleaveHalves{1}});
  put("w3_w1_gated", alternate_and_shuffle);
  constexpr std::int64_t kScaleRows = 128;
  if (rows % kScaleRows == 0) {
    put("shuffle_sf_a", {shuffle});
    put("w3_w1_gated_sf", alternate_and_shuffle);
    put("w3_w1_nongated_sf", {shuffle});
    put("w2_sf", {shuffle});
  }
  return {outputs, {}};
}

/// Error: the original takes one matrix.
const TensorView& matrix_input(const GoldenCase& golden, std::string_view name) {
  const TensorView& view = golden.input(name);
  if (view.shape.size() != 2) {
    fail(golden.subject(view.name), "is {}; the row shuffle takes [rows, columns]",
         to_string(view.shape));
  }
  return view;
}

OpResult shuffle_matrix_a(const GoldenCase& golden) {
  const TensorView& x = matrix_input(golden, "x");
  const ShuffleRows shuffle{golden.integer_param("epilogue_tile_m")};
  ComputedOutputs outputs;
  const auto put = [&](std::string_view name, const Step& step, GateOrder order) {
    outputs.emplace(name,
                    shaped_as(run_steps(golden, "x", moved_bits(x), {step}, order), golden, name));
  };
  put("shuffled", shuffle, GateOrder::separate);
  if (golden.find_output("reordered") != nullptr) {
    put("reordered", InterleaveHalves{1}, GateOrder::gate_up);
  }
  return {outputs, {}};
}

/// Error: elements that are no scales of 8 or 16 bits, rows that do not fill tiles.
OpResult shuffle_matrix_sf_a(const GoldenCase& golden) {
  const TensorView& scales = matrix_input(golden, "sf");
  constexpr std::int64_t kTileRows = 128;
  const int bits = info(scales.dtype).bits;
  if (bits > 16 || scales.shape[0] % kTileRows != 0) {
    fail(golden.subject(scales.name),
         "is {} {}; the scale shuffle takes 8 or 16 bits and rows that are a multiple of 128",
         name(scales.dtype), to_string(scales.shape));
  }
  if (golden.params.contains("num_elts_per_sf")) {
    const std::int64_t elements = golden.integer_param("num_elts_per_sf");
    if (elements != 16 && elements != 32) {
      fail(golden.path.string(), "params.num_elts_per_sf is {}; it must be 16 or 32", elements);
    }
  }
  const Steps steps{ShuffleRows{golden.integer_param("epilogue_tile_m")},
                    Tile{tiles::swizzle_128x4()}};
  const TensorStack stack = dense_stack(scales, GateOrder::separate, bits);
  const Plan plan = make_plan(golden.subject(scales.name), stack, steps, nullptr);
  const std::vector<std::int32_t> map = source_map(plan.map);
  const auto size = static_cast<std::int64_t>(map.size());
  ComputedOutputs outputs;
  outputs.emplace("sf", shaped_as(run_steps(golden, "sf", bits, steps), golden, "sf"));
  outputs.emplace("map", make_tensor<std::int32_t>("map", DType::i32, {size}, map));
  return {outputs, {}};
}

/// A layer whose scales are tensors of their own: steps count their rows and columns.
struct PaddedLayer {
  LayerTensors layer;
  std::int64_t halves;
  std::int64_t alignment;

  explicit PaddedLayer(const GoldenCase& golden)
      : layer(case_layer(golden, is_gated(golden, 4) ? GateOrder::gate_up : GateOrder::none,
                         "nvfp4", 4)),
        halves(layer.shape.halves()),
        alignment(golden.positive_param("min_alignment")) {
    for (const Slot scale : {Slot::w13_scale, Slot::w2_scale}) {
      auto& stack = layer.stacks[static_cast<std::size_t>(scale)];
      if (stack) stack->block_rows = stack->block_cols = 1;
    }
  }

  std::int64_t aligned(std::int64_t size) const { return ceil_div(size, alignment) * alignment; }
};

/// Each tensor through its steps; those that are not named stay.
OpResult pad_tensors(const GoldenCase& golden, const LayerTensors& layer,
                     const std::map<Slot, Steps>& steps) {
  ComputedOutputs outputs;
  for (const Slot slot : {Slot::w13, Slot::w13_scale, Slot::w2, Slot::w2_scale}) {
    const TensorStack* stack = layer.find(slot);
    if (stack == nullptr) continue;
    const auto found = steps.find(slot);
    Tensor made = run_steps(golden, *stack, found == steps.end() ? Steps{} : found->second);
    made.name = name(slot);
    outputs.emplace(name(slot), std::move(made));
  }
  return {outputs, {}};
}

/// Pads w13 as a whole, as the original does, gated or not. A size that is aligned is left alone,
/// else scale columns become size / 16, rounded down.
/// Source: vllm@00af4049 flashinfer_utils.py align_fp4_moe_weights_for_fi
OpResult align_fp4_moe_weights(const GoldenCase& golden) {
  constexpr std::int64_t kScaleBlock = 16;
  const PaddedLayer padded(golden);
  const std::int64_t to = padded.aligned(padded.layer.shape.intermediate);
  if (to == padded.layer.shape.intermediate) return pad_tensors(golden, padded.layer, {});
  const Steps rows{PadRows{.to = to * padded.halves}};
  return pad_tensors(golden, padded.layer,
                     {{Slot::w13, rows},
                      {Slot::w13_scale, rows},
                      {Slot::w2, {PadCols{.to = to}}},
                      {Slot::w2_scale, {PadCols{.to = to / kScaleBlock}}}});
}

OpResult align_fp4_hidden(const GoldenCase& golden) {
  constexpr std::int64_t kScaleBlock = 16;
  const PaddedLayer padded(golden);
  const std::int64_t to = padded.aligned(padded.layer.shape.hidden);
  if (to == padded.layer.shape.hidden) return pad_tensors(golden, padded.layer, {});
  const Steps rows{PadRows{.to = to}};
  return pad_tensors(golden, padded.layer,
                     {{Slot::w13, {PadCols{.to = to}}},
                      {Slot::w13_scale, {PadCols{.to = to / kScaleBlock}}},
                      {Slot::w2, rows},
                      {Slot::w2_scale, rows}});
}

constexpr std::array kOperations{
    NamedOperation{"prepare_trtllm_bf16", prepare_bf16},
    NamedOperation{"prepare_trtllm_deepseek_fp8", prepare_deepseek_fp8},
    NamedOperation{"prepare_trtllm_fp8_per_tensor", prepare_fp8_per_tensor},
    NamedOperation{"prepare_trtllm_mxfp4_gptoss", prepare_mxfp4_gptoss},
    NamedOperation{"prepare_trtllm_mxfp8", prepare_mxfp8},
    NamedOperation{"prepare_trtllm_mxint4_w13", prepare_mxint4},
    NamedOperation{"prepare_trtllm_nvfp4", prepare_nvfp4},
    NamedOperation{"trtllm_row_permutations", row_permutations},
    NamedOperation{"shuffle_matrix_a", shuffle_matrix_a},
    NamedOperation{"shuffle_matrix_sf_a", shuffle_matrix_sf_a},
    NamedOperation{"align_fp4_moe_weights", align_fp4_moe_weights},
    NamedOperation{"align_trtllm_fp4_hidden", align_fp4_hidden},
};

}  // namespace

std::span<const NamedOperation> layout_trtllm_operations() { return kOperations; }

}  // namespace moeref::conform
