#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "cli/conform/crc32.hpp"
#include "cli/conform/forward_case.hpp"
#include "engine/combine.hpp"
#include "engine/rows.hpp"
#include "layout/backend.hpp"
#include "quant/error.hpp"

// Whole fused MoE layers as a kernel computes them, and their combine alone.

namespace moeref::conform {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// The first row of each local expert, and token and slot of each row, in the kernel's encoding.
void add_row_order(const ForwardCase& forward_case, ComputedOutputs& outputs) {
  const Route& route = forward_case.route;
  const std::int64_t experts = forward_case.kernel.layer.local_experts();
  std::vector<std::int64_t> first{0};
  std::vector<std::int32_t> rows;
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    for (std::size_t slot = 0; slot < route.ids.size(); ++slot) {
      if (route.ids[slot] != expert) continue;
      const auto token = static_cast<std::int64_t>(slot) / route.top_k;
      const auto k = static_cast<std::int64_t>(slot) % route.top_k;
      rows.push_back(static_cast<std::int32_t>(k * route.tokens + token));
    }
    first.push_back(std::ssize(rows));
  }
  outputs.emplace("expert_first_token_offset",
                  make_tensor<std::int64_t>("expert_first_token_offset", DType::i64,
                                            {std::ssize(first)}, first));
  outputs.emplace("permuted_row_to_unpermuted_row",
                  make_tensor<std::int32_t>("permuted_row_to_unpermuted_row", DType::i32,
                                            {std::ssize(rows)}, rows));
}

/// With the shape of the stored output, if that has as many elements.
Tensor reshaped(const GoldenCase& golden, const std::string& name, Tensor tensor) {
  const TensorView* stored = golden.find_output(name);
  if (stored != nullptr && element_count(stored->shape) == element_count(tensor.shape)) {
    tensor.shape = stored->shape;
  }
  return tensor;
}

/// Tensors that the case gives by their checksum alone.
std::vector<Finding> check_sums(const GoldenCase& golden, const ComputedOutputs& outputs) {
  std::vector<Finding> findings;
  const auto sums = golden.params.find("not_stored");
  if (sums == golden.params.end()) return findings;
  if (!sums->is_object()) {
    fail(golden.subject("params.not_stored"), "must be an object of tensors with their crc32");
  }
  for (const auto& [name, entry] : sums->items()) {
    const std::string key = name.starts_with("out.") ? name.substr(4) : name;
    const std::string subject = "params.not_stored." + name;
    const auto found = outputs.find(key);
    const bool has_sum = entry.is_object() && entry.contains("crc32") &&
                         entry["crc32"].is_number_unsigned() &&
                         entry["crc32"].get<std::uint64_t>() <= 0xFFFF'FFFFu;
    if (!has_sum) fail(golden.subject(subject), "must be an object with a crc32 of 32 bits");
    if (found == outputs.end() || !std::holds_alternative<Tensor>(found->second)) {
      findings.push_back(statement(subject, "crc32", false, "moeref has no such tensor"));
      continue;
    }
    const std::uint32_t sum = crc32(std::get<Tensor>(found->second).bytes);
    findings.push_back(statement(subject, "crc32", sum == entry["crc32"].get<std::uint32_t>(),
                                 fmt::format("{}", sum)));
  }
  return findings;
}

OpResult moe_forward(const GoldenCase& golden) {
  ForwardCase forward_case = read_forward_case(golden);
  const ForwardResult result =
      forward(forward_case.kernel, forward_case.hidden, forward_case.route, forward_case.numerics,
              forward_case.level, forward_case.options);
  OpResult op;
  for (const Stage& stage : result.stages) {
    op.outputs.emplace(stage.name, reshaped(golden, stage.name, stage.tensor));
  }
  op.outputs.emplace(
      "final", stored_tensor("final", Format::bf16,
                             {forward_case.hidden.rows, forward_case.hidden.cols}, result.output));
  add_row_order(forward_case, op.outputs);
  for (const auto& [name, values] : forward_case.kernel.scalars) {
    op.outputs.emplace(name, make_tensor<float>(name, DType::f32, {std::ssize(values)}, values));
  }
  for (auto& [name, tensor] : forward_case.prepared) {
    op.outputs.emplace("prep_" + name, reshaped(golden, "prep_" + name, std::move(tensor)));
  }
  op.statements = check_sums(golden, op.outputs);
  if (const TensorView* codes = golden.find_input("hidden_states_fp8")) {
    const auto made = op.outputs.find("a1_q");
    const bool same = made != op.outputs.end() &&
                      std::ranges::equal(std::get<Tensor>(made->second).bytes, codes->bytes);
    op.statements.push_back(statement("in.hidden_states_fp8", "bits", same,
                                      same ? "equal to the quantized hidden states"
                                           : "differs from the quantized hidden states"));
  }
  return op;
}

/// params: form, tokens, top_k, hidden, routed_scaling_factor, combine_order. in: y BF16 [T, K, H],
/// weighed already. out: y BF16 [T, H].
OpResult moe_combine(const GoldenCase& golden) {
  const TensorView& y = golden.input("y");
  if (y.shape.size() != 3 || y.dtype != DType::bf16) {
    fail(golden.subject(y.name), "is {} {}, needs BF16 [tokens, slots, hidden]", name(y.dtype),
         to_string(y.shape));
  }
  const std::string form = golden.text_param("form").value_or("");
  const bool reduces = form.starts_with("sum_reduce");
  const Backend& backend = find_backend("triton_bf16");
  NumericsRequest request;
  request.shape.hidden = y.shape[2];
  request.shape.total_experts = 1;
  request.options = parse_options(backend, {});
  std::vector<std::string> texts{"combine=" + (reduces ? "sum_reduce" : form),
                                 form == "sum_reduce_triton" ? "path=triton" : "path=sgl90"};
  if (golden.params.contains("combine_order")) {
    texts.push_back(fmt::format("combine_order={}", golden.integer_param("combine_order")));
  }
  request.kernel = parse_kernel_options(backend, texts);
  request.tokens = y.shape[0];
  request.top_k = y.shape[1];
  request.routed_scaling = static_cast<float>(golden.number_param("routed_scaling_factor"));
  request.level = NumericsLevel::replay;
  const Numerics numerics = numerics_for(backend, request);

  MoeLayer layer;
  layer.hidden = y.shape[2];
  layer.experts.resize(1);
  Route route;
  route.tokens = y.shape[0];
  route.top_k = y.shape[1];
  route.ids.assign(to_size(route.tokens * route.top_k), 0);
  route.weights.assign(route.ids.size(), 1.0f);
  Rows slots("y", Format::bf16, route.tokens * route.top_k, y.shape[2]);
  std::vector<float> row(to_size(y.shape[2]));
  for (std::int64_t slot = 0; slot < slots.rows(); ++slot) {
    for (std::size_t col = 0; col < row.size(); ++col) {
      const auto code = y.at<std::uint16_t>(slot * y.shape[2] + static_cast<std::int64_t>(col));
      row[col] = std::bit_cast<float>(std::uint32_t{code} << 16);
    }
    slots.put(slot, 0, row);
  }
  const CombineInputs inputs{
      layer, route, slots, numerics.router_weight, Format::f32, request.routed_scaling, nullptr};
  const Rows rows = combine(numerics.combine, NumericsLevel::replay, inputs, Format::bf16, 1);
  OpResult op;
  op.outputs.emplace("y", rows.tensor("y", {route.tokens, y.shape[2]}));
  return op;
}

constexpr std::array kOperations{
    NamedOperation{"moe_forward", moe_forward},
    NamedOperation{"moe_combine", moe_combine},
};

}  // namespace

std::span<const NamedOperation> forward_operations() { return kOperations; }

}  // namespace moeref::conform
