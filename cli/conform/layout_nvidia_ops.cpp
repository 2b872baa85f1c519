#include <algorithm>
#include <array>
#include <numeric>

#include "cli/conform/layout_case.hpp"
#include "cli/conform/memory_order.hpp"
#include "layout/recode/humming.hpp"
#include "layout/tiles/nvidia.hpp"
#include "layout/tiles/sm90.hpp"
#include "quant/error.hpp"

namespace moeref::conform {
namespace {

using Steps = std::vector<Step>;

constexpr int kFp4Bits = 4;

/// in.`input` through the steps, as out.`output`.
void put_steps(ComputedOutputs& outputs, const GoldenCase& golden, std::string_view input,
               std::string_view output, int bits, const Steps& steps,
               GateOrder order = GateOrder::separate) {
  outputs.emplace(output, shaped_as(run_steps(golden, input, bits, steps, order), golden, output));
}

template <typename T>
void put_values(ComputedOutputs& outputs, const GoldenCase& golden, std::string_view output,
                DType dtype, const std::vector<T>& values) {
  const auto size = static_cast<std::int64_t>(values.size());
  outputs.emplace(output, shaped_as(make_tensor<T>(std::string(output), dtype, {size}, values),
                                    golden, output));
}

/// Error: the original takes [experts, rows, columns] only.
const TensorView& stacked_input(const GoldenCase& golden, std::string_view name) {
  const TensorView& view = golden.input(name);
  if (view.shape.size() != 3) {
    fail(golden.subject(view.name), "is {}; needed is [experts, rows, columns]",
         to_string(view.shape));
  }
  return view;
}

OpResult block_layout(const GoldenCase& golden) {
  const TensorView& x = golden.input("x");
  const std::int64_t pieces = std::max(info(x.dtype).bits / 32, 1);
  const Steps steps{Tile{tiles::block_major_k(golden.positive_param("blockK") * pieces)}};
  ComputedOutputs outputs;
  put_steps(outputs, golden, "x", "y", moved_bits(x), steps);
  return {outputs, {}};
}

OpResult swap_halves(const GoldenCase& golden) {
  ComputedOutputs outputs;
  const auto put = [&](std::string_view input, std::string_view output, const Step& step) {
    const TensorView* view = golden.find_input(input);
    if (view == nullptr) return;
    TensorView matrices = *view;  // the last two dimensions; pairs also run across experts
    while (matrices.shape.size() > 3) {
      matrices.shape[1] *= matrices.shape[0];
      matrices.shape.erase(matrices.shape.begin());
    }
    const bool odd = matrices.shape.size() == 3 && matrices.shape[1] % 2 != 0;
    if (odd && std::holds_alternative<SwapPairs>(step)) {
      matrices.shape = {matrices.shape[0] * matrices.shape[1], matrices.shape[2]};
    }
    Tensor made = run_steps(golden, matrices, moved_bits(*view), {step}, GateOrder::gate_up);
    outputs.emplace(output, shaped_as(std::move(made), golden, output));
  };
  put("w", "swapped", SwapHalves{});
  put("w", "pairs", SwapPairs{});
  put("s", "s_swapped", SwapHalves{});
  return {outputs, {}};
}

/// params: group_size, dim (which dimension holds the two halves).
OpResult interleave_halves(const GoldenCase& golden) {
  TensorView view = golden.input("w");
  const auto rank = static_cast<std::int64_t>(view.shape.size());
  std::int64_t dim = integer_param(golden, "dim", 1);
  if (dim < 0) dim += rank;
  if (dim < 0 || dim >= rank) {
    fail(golden.path.string(), "params.dim is {}; in.w has {} dimensions",
         golden.integer_param("dim"), rank);
  }
  const auto at = view.shape.begin() + dim;
  const auto product = [](auto begin, auto end) {
    return std::accumulate(begin, end, std::int64_t{1}, std::multiplies<>{});
  };
  const Shape shape = view.shape;
  view.shape = {product(view.shape.begin(), at), *at, product(at + 1, view.shape.end())};
  const TensorStack stack = dense_stack(view, GateOrder::gate_up, moved_bits(view));
  constexpr std::int64_t kDefaultGroup = 64;
  const Steps steps{InterleaveHalves{
      golden.params.contains("group_size") ? golden.positive_param("group_size") : kDefaultGroup}};
  Tensor made = run_steps(golden, stack, steps);
  made.shape = shape;
  ComputedOutputs outputs;
  outputs.emplace("w", std::move(made));
  return {outputs, {}};
}

OpResult swizzle_128x4(const GoldenCase& golden) {
  const TensorView& scales = golden.input("sf");
  const Steps steps{Tile{tiles::swizzle_128x4()}};
  const TensorStack stack = dense_stack(scales, GateOrder::separate, info(scales.dtype).bits);
  const Plan plan = make_plan(golden.subject(scales.name), stack, steps, nullptr);
  Shape shape = plan.shape;
  if (scales.shape.size() == 2) shape.erase(shape.begin());
  ComputedOutputs outputs;
  put_steps(outputs, golden, "sf", "swizzled", stack.element_bits, steps);
  put_values(outputs, golden, "map", DType::i32, source_map(plan.map));
  put_values(outputs, golden, "swizzle_blockscale_shape", DType::i64, shape);
  return {outputs, {}};
}

/// out.offset: the place of each element of the padded grid.
OpResult swizzle_8x4(const GoldenCase& golden) {
  const TensorView& scales = golden.input("sf");
  const Steps steps{Tile{tiles::swizzle_8x4()}};
  const TensorStack stack = dense_stack(scales, GateOrder::separate, info(scales.dtype).bits);
  const IndexMap map = make_plan(golden.subject(scales.name), stack, steps, nullptr).map;
  std::vector<std::int32_t> offsets;
  for (std::int64_t expert = 0; expert < map.experts; ++expert) {
    for (std::int64_t place = 0; place < map.out_elements(); ++place) {
      const std::int64_t row = place / map.cols.size();
      const std::int64_t offset = map.place_of(row, place % map.cols.size());
      offsets.push_back(static_cast<std::int32_t>(expert * map.out_elements() + offset));
    }
  }
  ComputedOutputs outputs;
  put_steps(outputs, golden, "sf", "swizzled", stack.element_bits, steps);
  put_values(outputs, golden, "offset", DType::i32, offsets);
  return {outputs, {}};
}

/// A list of sizes that the case states beside its tensors.
void check_list(OpResult& result, const GoldenCase& golden, const std::string& param,
                const std::vector<std::int64_t>& computed) {
  const auto stated = golden.params.find(param);
  if (stated == golden.params.end()) return;
  const bool same = *stated == nlohmann::json(computed);
  result.statements.push_back(statement(
      "params." + param, "equal", same,
      same ? "" : "stored " + stated->dump() + ", moeref " + nlohmann::json(computed).dump()));
}

/// in.swizzled: the operand; in.linear, where it came from, must give it.
OpResult mma_view(const GoldenCase& golden) {
  const TensorView& swizzled = golden.input("swizzled");
  const std::int64_t vector = golden.positive_param("sf_vec_size");
  TensorStack stack;
  stack.name = golden.subject("in.linear");
  stack.experts = golden.positive_param("num_groups");
  stack.half_rows = golden.positive_param("m");
  stack.cols = ceil_div(golden.positive_param("k"), vector);
  const Steps steps{Tile{tiles::swizzle_128x4_mma_view()}};
  const Plan plan = make_plan(stack.name, stack, steps, nullptr);
  if (swizzled.size() != element_count(plan.shape)) {
    fail(golden.subject(swizzled.name), "has {} scales; {} groups of [{}, {}] need {}",
         swizzled.size(), stack.experts, stack.half_rows, stack.cols, element_count(plan.shape));
  }
  OpResult result;
  const TensorView view{"mma_contiguous", swizzled.dtype, plan.shape, swizzled.bytes};
  result.outputs.emplace(view.name, in_logical_order(view, plan.strides));
  const Shape padded{stack.experts * plan.map.rows.size(), plan.map.cols.size()};
  result.outputs.emplace(
      "from_mma",
      Tensor{"from_mma", swizzled.dtype, padded, {swizzled.bytes.begin(), swizzled.bytes.end()}});
  check_list(result, golden, "shape", plan.shape);
  check_list(result, golden, "strides", plan.strides);
  if (golden.find_input("linear") != nullptr) {
    const Tensor made = run_steps(golden, "linear", moved_bits(swizzled), steps);
    result.statements.push_back(statement("in.swizzled", "equal",
                                          std::equal(made.bytes.begin(), made.bytes.end(),
                                                     swizzled.bytes.begin(), swizzled.bytes.end()),
                                          "the swizzled in.linear"));
  }
  return result;
}

/// The stored halves are up, gate for v2; v1 takes the same bytes without moving a row.
OpResult prepare_cutedsl(const GoldenCase& golden) {
  const bool gated = flag_param(golden, "gated", true);
  const auto prepared = [&](std::string_view backend, GateOrder order) {
    const Backend& found = find_backend(backend);
    return plan_tensors(
        found, parse_options(found, std::vector<std::string>{"swiglu=dropped_upstream"}),
        with_unit_factors(case_layer(golden, gated ? order : GateOrder::none, "nvfp4", kFp4Bits)));
  };
  OpResult result;
  const PreparedLayer v2 = prepared("flashinfer_cutedsl_v2", GateOrder::up_gate);
  for (const PreparedTensor& tensor : v2.tensors) {
    Tensor made = make(tensor, 1);
    if (tensor.from == nullptr) continue;
    if (!tensor.strides.empty()) {
      const TensorView view{tensor.name + "_mma", made.dtype, made.shape, made.bytes};
      result.outputs.emplace(view.name, in_logical_order(view, tensor.strides));
      check_list(result, golden, tensor.name.substr(0, tensor.name.find('_')) + "_mma_shape",
                 tensor.shape);
      check_list(result, golden, tensor.name.substr(0, tensor.name.find('_')) + "_mma_strides",
                 tensor.strides);
    }
    result.outputs.emplace(tensor.name, shaped_as(std::move(made), golden, tensor.name));
  }
  const PreparedLayer v1 = prepared("flashinfer_cutedsl_v1", GateOrder::gate_up);
  for (const PreparedTensor& tensor : v1.tensors) {
    if (tensor.from == nullptr) continue;
    const std::string name = tensor.name + "_v1";
    result.outputs.emplace(name, shaped_as(make(tensor, 1), golden, name));
  }
  return result;
}

/// params: mxfp8_act (true: SM100, 128 x 4 scales; false: SM90 before 0.6.10).
OpResult prepare_mxfp4_gptoss(const GoldenCase& golden) {
  LayerTensors layer =
      with_unit_factors(case_layer(golden, GateOrder::interleaved, "mxfp4", kFp4Bits));
  const std::vector<std::string> raw{"layout=raw"};
  return {flag_param(golden, "mxfp8_act", false)
              ? run_backend("flashinfer_cutlass_mxfp8", {}, std::move(layer))
              : run_backend("flashinfer_sm90_mxfp4", raw, std::move(layer)),
          {}};
}

OpResult interleave_weights(const GoldenCase& golden) {
  const TensorView& weights = stacked_input(golden, "w");
  const Steps fp4{Tile{tiles::sm90_weights_v2()}, tiles::sm90_bits_fp4()};
  const Steps int4{Tile{tiles::sm90_weights_int4()}};
  const Steps fp4_fp8{Tile{tiles::sm90_weights_int4()}, tiles::sm90_bits_fp4_fp8()};
  ComputedOutputs outputs;
  put_steps(outputs, golden, "w", "fp4", kFp4Bits, fp4);
  put_steps(outputs, golden, "w", "int4", kFp4Bits, int4);
  put_steps(outputs, golden, "w", "fp4_fp8", kFp4Bits, fp4_fp8);
  const TensorStack stack = dense_stack(weights, GateOrder::separate, kFp4Bits);
  const Plan plan = make_plan(golden.subject(weights.name), stack, int4, nullptr);
  // The map of bytes: every second nibble, halved.
  std::vector<std::int32_t> bytes;
  const std::vector<std::int32_t> nibbles = source_map(plan.map);
  for (std::size_t i = 0; i < nibbles.size(); i += 2) bytes.push_back(nibbles[i] / 2);
  put_values(outputs, golden, "int4_map", DType::i32, bytes);
  return {outputs, {}};
}

OpResult interleave_weights_v1(const GoldenCase& golden) {
  stacked_input(golden, "w");
  ComputedOutputs outputs;
  put_steps(outputs, golden, "w", "fp4", kFp4Bits, {Tile{tiles::sm90_weights_v1()}});
  put_steps(outputs, golden, "w", "int4", kFp4Bits, {Tile{tiles::sm90_weights_int4()}});
  return {outputs, {}};
}

std::int64_t group_size(const GoldenCase& golden) {
  constexpr std::int64_t kMxBlock = 32;
  return golden.params.contains("group_size") ? golden.positive_param("group_size") : kMxBlock;
}

OpResult fold_scales(const GoldenCase& golden) {
  const int bits = info(stacked_input(golden, "s").dtype).bits;
  ComputedOutputs outputs;
  put_steps(outputs, golden, "s", "s", bits,
            {Tile{tiles::sm90_folded_scales(group_size(golden), bits)}});
  return {outputs, {}};
}

OpResult interleave_scales_legacy(const GoldenCase& golden) {
  const int bits = info(stacked_input(golden, "s").dtype).bits;
  ComputedOutputs outputs;
  put_steps(outputs, golden, "s", "s", bits, {Tile{tiles::sm90_legacy_scales(group_size(golden))}});
  return {outputs, {}};
}

OpResult humming_table(const GoldenCase& golden) {
  std::vector<std::uint8_t> codes;
  for (const auto& row : recode::humming_table()) codes.insert(codes.end(), row.begin(), row.end());
  ComputedOutputs outputs;
  put_values(outputs, golden, "lut", DType::u8, codes);
  return {outputs, {}};
}

/// params: max_range. weight, offset, delta: linear; *_il: in the kernel's order.
OpResult humming(const GoldenCase& golden) {
  constexpr std::int64_t kMxBlock = 32;
  LayerTensors layer;
  TensorStack codes = dense_stack(stacked_input(golden, "w"), GateOrder::separate, kFp4Bits);
  TensorStack scales = dense_stack(stacked_input(golden, "scale"), GateOrder::separate, 8);
  scales.block_cols = kMxBlock;
  if (scales.experts != codes.experts || scales.rows() != codes.rows() ||
      scales.cols * kMxBlock != codes.cols) {
    fail(golden.subject("in.scale"), "is [{}, {}, {}]; the weight needs [{}, {}, {}]",
         scales.experts, scales.rows(), scales.cols, codes.experts, codes.rows(),
         codes.cols / kMxBlock);
  }
  layer.stacks[static_cast<std::size_t>(Slot::w13)] = std::move(codes);
  layer.stacks[static_cast<std::size_t>(Slot::w13_scale)] = std::move(scales);
  recode::HummingRange range;
  if (golden.params.contains("max_range")) {
    const std::int64_t most = golden.integer_param("max_range");
    if (most < 0 || most > 255) {
      fail(golden.path.string(), "params.max_range is {}, needs a number of exponents, 0 to 255",
           most);
    }
    range.max_range = static_cast<int>(most);
  }
  ComputedOutputs outputs;
  const auto put = [&](std::string_view output, Slot slot, const Steps& steps) {
    const TensorStack& stack = layer.at(slot);
    Tensor made = run_plan(make_plan(std::string(output), stack, steps, &layer), stack);
    made.name = output;
    outputs.emplace(output, std::move(made));
  };
  const Step rewrite = recode::humming_codes(Slot::w13_scale, range);
  const Step offsets = recode::humming_offsets(Slot::w13_scale, range);
  const Step order = Tile{tiles::sm90_weights_int4()};
  put("weight", Slot::w13, {rewrite});
  put("offset", Slot::w13_scale, {offsets});
  put("delta", Slot::w13_scale, {recode::humming_deltas(Slot::w13_scale, range)});
  if (golden.find_output("weight_il") != nullptr || golden.find_output("offset_il") != nullptr) {
    put("weight_il", Slot::w13, {rewrite, order, tiles::sm90_bits_fp4_fp8()});
    put("offset_il", Slot::w13_scale, {offsets, Tile{tiles::sm90_folded_scales(kMxBlock, 8)}});
  }
  put_values(outputs, golden, "residual", DType::f32,
             recode::humming_residuals(layer, Slot::w13_scale, range));
  return {outputs, {}};
}

constexpr std::array kOperations{
    NamedOperation{"block_scale_interleave", swizzle_128x4},
    NamedOperation{"block_scale_interleave_8x4", swizzle_8x4},
    NamedOperation{"convert_sf_to_mma_layout", mma_view},
    NamedOperation{"convert_to_block_layout", block_layout},
    NamedOperation{"humming_rewrite_lut", humming_table},
    NamedOperation{"interleave_moe_scales_for_sm90_mixed_gemm", fold_scales},
    NamedOperation{"interleave_moe_scales_sm90_legacy", interleave_scales_legacy},
    NamedOperation{"interleave_moe_weights_for_sm90_mixed_gemm", interleave_weights},
    NamedOperation{"interleave_moe_weights_sm90_legacy", interleave_weights_v1},
    NamedOperation{"interleave_w13_halves", interleave_halves},
    NamedOperation{"prepare_cutedsl_v2_nvfp4", prepare_cutedsl},
    NamedOperation{"prepare_cutlass_mxfp4_gptoss", prepare_mxfp4_gptoss},
    NamedOperation{"preprocess_moe_weights_for_sm90_mixed_gemm_humming", humming},
    NamedOperation{"swap_w13_halves", swap_halves},
};

}  // namespace

std::span<const NamedOperation> layout_nvidia_operations() { return kOperations; }

}  // namespace moeref::conform
