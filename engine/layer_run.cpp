#include "engine/layer_run.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/combine.hpp"
#include "engine/kernel_rounding.hpp"
#include "quant/error.hpp"
#include "quant/row_decoder.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Slots (token * top_k + slot) of each local expert, in order.
std::vector<std::vector<std::int64_t>> group_by_expert(const MoeLayer& layer, const Route& route) {
  std::vector<std::vector<std::int64_t>> groups(layer.experts.size());
  for (std::size_t slot = 0; slot < route.ids.size(); ++slot) {
    const std::int64_t expert = route.ids[slot] - layer.first_expert;
    if (route.ids[slot] < 0 || expert < 0 || expert >= layer.local_experts()) continue;
    groups[to_size(expert)].push_back(static_cast<std::int64_t>(slot));
  }
  return groups;
}

ExpertView view_of(const KernelLayer& kernel, std::size_t expert) {
  const auto one = [expert](const std::vector<float>& factors) {
    return factors.empty() ? 1.0f : factors[expert];
  };
  return {&kernel.layer.experts[expert],
          parameters_for(kernel.layer.activation, static_cast<std::int64_t>(expert)),
          one(kernel.gate_factors), one(kernel.up_factors), one(kernel.down_factors)};
}

Rows copied(const ScaledMatrix& x, Format format, std::int64_t width) {
  Rows rows(x.name, format, x.rows, width);
  const RowDecoder decode(x, /*clears_minus_zero=*/false);
  std::vector<float> values(to_size(x.cols));
  for (std::int64_t row = 0; row < x.rows; ++row) {
    decode(row, 1, values.data());
    rows.put(row, 0, values);
  }
  return rows;
}

/// body(batch) for rows 0 .. rows - 1, some at a time.
template <typename Body>
void for_each_rows(std::int64_t rows, Body body) {
  for (std::int64_t first = 0; first < rows; first += kRowBatch) {
    std::vector<std::int64_t> batch(to_size(std::min(rows - first, kRowBatch)));
    std::iota(batch.begin(), batch.end(), first);
    body(ExpertBatch{batch, batch, {}});
  }
}

}  // namespace

LayerRun::LayerRun(const KernelLayer& kernel, const Route& route, const Numerics& numerics,
                   NumericsLevel level, const ForwardOptions& options, ForwardResult& result)
    : kernel_(kernel),
      layer_(kernel.layer),
      route_(route),
      numerics_(numerics),
      level_(level),
      options_(options),
      result_(result),
      groups_(group_by_expert(layer_, route)) {
  for (const auto& group : groups_) {
    expert_order_.insert(expert_order_.end(), group.begin(), group.end());
  }
}

Rows LayerRun::padded(const ScaledMatrix& tokens) const {
  const bool any = numerics_.activations == Format::f32;
  return copied(tokens, any ? tokens.codes.format : numerics_.activations, layer_.expert_width());
}

StageOperand LayerRun::input(const ScaledMatrix& tokens) {
  if (!numerics_.input) return plain_operand(tokens);
  StageOperand operand = quantized_operand(numerics_.input, padded(tokens),
                                           scales_for(numerics_.input), {}, options_.threads);
  keep("a1_q", operand.codes("a1_q"));
  keep("a1_s", operand.scales("a1_s"));
  return replaced(std::move(operand), "a1_q", "a1_s", /*slots=*/false);
}

Rows LayerRun::first_half(const StageOperand& x) {
  const std::int64_t width = layer_.intermediate;
  Rows act("act", numerics_.activation.output, slots(), width);
  Rows gemm1;
  Rows given_gemm1;
  const bool gives = options_.given != nullptr && options_.given->contains("gemm1");
  if (options_.keep_stages || gives) {
    gemm1 = Rows("gemm1", numerics_.gemm1.output, slots(), layer_.gated() ? 2 * width : width);
  }
  if (gives) given_gemm1 = replaced(gemm1);
  const ExpertStages stages{options_.keep_stages ? &gemm1 : nullptr, gives ? &given_gemm1 : nullptr,
                            kernel_.order, &act};
  const LayerOperand operand(numerics_.gemm1, level_, x, /*is_shared=*/true, options_.threads);
  for_each_batch(0, [&](const ExpertView& expert, const ExpertBatch& slots_of) {
    std::vector<std::int64_t> tokens;
    for (const std::int64_t slot : slots_of.results) tokens.push_back(slot / route_.top_k);
    const ExpertBatch batch{tokens, slots_of.results, slots_of.weights};
    run_first_half(numerics_, expert, operand, batch, stages, options_.threads, statistics());
  });
  keep_slots("gemm1", gemm1);
  return act;
}

StageOperand LayerRun::between(Rows computed) {
  const ActivationQuantizer& quantizer = numerics_.intermediate;
  if (!quantizer.fused) keep_slots("act", computed);
  const auto act = std::make_shared<const Rows>(quantizer.fused ? std::move(computed)
                                                                : replaced(std::move(computed)));
  if (!quantizer) {
    StageOperand operand = plain_operand(act->matrix());
    operand.owner = act;
    return operand;
  }
  StageOperand operand =
      quantized_operand(quantizer, *act, scales_for(quantizer), groups_, options_.threads);
  if (quantizer.fused) {
    keep_slots("act", operand.codes("act"));
    return replaced(std::move(operand), "act", "", /*slots=*/true);
  }
  keep_slots("a2_q", operand.codes("a2_q"));
  if (operand.whole_scale) {
    keep("a2_s", operand.scales("a2_s"));
  } else {
    keep_slots("a2_s", operand.scales("a2_s"));
  }
  return replaced(std::move(operand), "a2_q", "a2_s", /*slots=*/true);
}

Rows LayerRun::second_half(const StageOperand& x) {
  Rows gemm2("gemm2", numerics_.gemm2.output, slots(), layer_.expert_width());
  const LayerOperand operand(numerics_.gemm2, level_, x, /*is_shared=*/false, options_.threads);
  for_each_batch(layer_.local_experts(), [&](const ExpertView& expert, const ExpertBatch& batch) {
    run_second_half(numerics_, expert, operand, batch, gemm2, options_.threads, statistics());
  });
  keep_slots("gemm2", gemm2);
  return replaced(std::move(gemm2));
}

Rows LayerRun::shared_expert(const ScaledMatrix& hidden) {
  const Expert& shared = *layer_.shared;
  const Numerics numerics = shared_numerics();
  // Another kernel computes it, which is not replayed.
  const NumericsLevel level = level_ == NumericsLevel::replay ? NumericsLevel::backend : level_;
  const ExpertView view{&shared, parameters_for(layer_.shared_activation, 0)};
  const std::int64_t width = shared.up.rows;
  Rows gemm1("shared_gemm1", numerics.gemm1.output, hidden.rows, width * (shared.gate ? 2 : 1));
  Rows act("shared_act", numerics.activation.output, hidden.rows, width);
  Rows gemm2("shared_gemm2", numerics.gemm2.output, hidden.rows, shared.down.rows);
  const StageOperand x = quantized_or_plain(numerics.input, hidden);
  Rows given_gemm1;
  const bool gives = options_.given != nullptr && options_.given->contains("shared_gemm1");
  if (gives) given_gemm1 = given_rows(gemm1);
  const ExpertStages stages{options_.keep_stages ? &gemm1 : nullptr, gives ? &given_gemm1 : nullptr,
                            GateOrder::gate_up, &act};
  const LayerOperand first(numerics.gemm1, level, x, /*is_shared=*/false, options_.threads);
  for_each_rows(hidden.rows, [&](const ExpertBatch& batch) {
    run_first_half(numerics, view, first, batch, stages, options_.threads, statistics());
  });
  kept(std::move(gemm1));
  act = kept(std::move(act));
  const StageOperand a = quantized_or_plain(numerics.intermediate, act.matrix());
  const LayerOperand second(numerics.gemm2, level, a, /*is_shared=*/false, options_.threads);
  for_each_rows(hidden.rows, [&](const ExpertBatch& batch) {
    run_second_half(numerics, view, second, batch, gemm2, options_.threads, statistics());
  });
  return kept(std::move(gemm2));
}

Rows LayerRun::combined(const CombineNumerics& numerics, const Rows& gemm2, const Rows* residual,
                        Format output) const {
  const CombineInputs inputs{
      layer_,  route_, gemm2, numerics_.router_weight, numerics_.weights, options_.routed_scaling,
      residual};
  return combine(numerics, level_, inputs, output, options_.threads);
}

Rows LayerRun::kept(Rows rows) {
  if (options_.keep_stages) {
    keep(rows.name(), rows.tensor(rows.name(), {rows.rows(), rows.cols()}));
  }
  return given_rows(std::move(rows));
}

Rows LayerRun::given_rows(Rows computed) const {
  if (options_.given == nullptr) return computed;
  std::optional<Tensor> rows =
      given(computed.name(), computed.tensor(computed.name(), {computed.rows(), computed.cols()}));
  if (!rows) return computed;
  return {computed.name(), computed.format(), computed.rows(), computed.cols(),
          std::move(rows->bytes)};
}

/// The calibrated scales that a quantizer takes; none if they are not prepared.
std::vector<float> LayerRun::scales_for(const ActivationQuantizer& quantizer) const {
  const auto found = kernel_.scalars.find(quantizer.scale);
  std::vector<float> scales;
  if (found != kernel_.scalars.end()) scales = found->second;
  for (float& scale : scales) scale = quantizer.inverts_scale ? 1.0f / scale : scale;
  return scales;
}

/// The layer's, without what belongs to routed experts: router weights, prepared factors,
/// calibrated scales (the shared expert has its own).
Numerics LayerRun::shared_numerics() const {
  Numerics numerics = numerics_;
  numerics.router_weight = WeightPoint::combine;
  numerics.gemm1_output = {};
  numerics.gemm1.factor = SumFactor::scales;
  numerics.gemm2.factor = SumFactor::scales;
  numerics.gemm1.bias = GemmBias::added;
  numerics.gemm2.bias = GemmBias::added;
  numerics.activation.adds_bias = false;
  for (ActivationQuantizer* quantizer : {&numerics.input, &numerics.intermediate}) {
    if (!quantizer->scale.empty()) *quantizer = {};
  }
  if (numerics.activations != Format::f32) {
    numerics.gemm1.output = numerics.activations;
    numerics.activation.output = numerics.activations;
    numerics.gemm2.output = numerics.activations;
  }
  return numerics;
}

StageOperand LayerRun::quantized_or_plain(const ActivationQuantizer& quantizer,
                                          const ScaledMatrix& x) {
  if (!quantizer) return plain_operand(x);
  return quantized_operand(quantizer, copied(x, x.codes.format, x.cols), {}, {}, options_.threads);
}

std::optional<Tensor> LayerRun::given(std::string_view name, const Tensor& computed) const {
  if (options_.given == nullptr) return std::nullopt;
  const auto found = options_.given->find(name);
  if (found == options_.given->end()) return std::nullopt;
  const Tensor* stage = &found->second;
  Tensor widened;
  const bool narrow = stage->dtype == DType::bf16 || stage->dtype == DType::f16;
  if (computed.dtype == DType::f32 && narrow &&
      element_count(stage->shape) == element_count(computed.shape)) {
    widened = make_tensor<float>(stage->name, DType::f32, stage->shape,
                                 Stage{stage->name, *stage}.values());
    stage = &widened;
  }
  if (stage->dtype != computed.dtype || stage->bytes.size() != computed.bytes.size()) {
    fail(found->second.name, "is {} {}, the stage is {} {}; dump it in that type and shape",
         moeref::name(found->second.dtype), to_string(found->second.shape),
         moeref::name(computed.dtype), to_string(computed.shape));
  }
  return *stage;
}

std::optional<Tensor> LayerRun::given_slots(std::string_view name, const Tensor& computed) const {
  if (numerics_.rows == RowOrder::slots) return given(name, computed);
  // The kernel's rows are those of local experts: back to one row a slot.
  Tensor sorted = computed;
  const std::size_t row_bytes = computed.bytes.size() / to_size(std::max<std::int64_t>(slots(), 1));
  sorted.bytes.resize(expert_order_.size() * row_bytes);
  sorted.shape = {std::ssize(expert_order_), computed.shape.back()};
  std::optional<Tensor> rows = given(name, sorted);
  if (!rows) return std::nullopt;
  Tensor result = computed;
  for (std::size_t i = 0; i < expert_order_.size(); ++i) {
    std::copy_n(
        rows->bytes.begin() + static_cast<std::ptrdiff_t>(i * row_bytes), row_bytes,
        result.bytes.begin() + static_cast<std::ptrdiff_t>(to_size(expert_order_[i]) * row_bytes));
  }
  return result;
}

Rows LayerRun::replaced(Rows computed) const {
  if (options_.given == nullptr) return computed;
  std::optional<Tensor> rows = given_slots(
      computed.name(), computed.tensor(computed.name(), {computed.rows(), computed.cols()}));
  if (!rows) return computed;
  return {computed.name(), computed.format(), computed.rows(), computed.cols(),
          std::move(rows->bytes)};
}

StageOperand LayerRun::replaced(StageOperand operand, std::string_view codes,
                                std::string_view scales, bool slots) const {
  if (options_.given == nullptr) return operand;
  const auto find = [&](std::string_view name, const Tensor& computed, bool by_slot) {
    return by_slot ? given_slots(name, computed) : given(name, computed);
  };
  const std::optional<Tensor> new_codes = find(codes, operand.codes(std::string(codes)), slots);
  const std::optional<Tensor> new_scales =
      scales.empty()
          ? std::nullopt
          : find(scales, operand.scales(std::string(scales)), slots && !operand.whole_scale);
  if (!new_codes && !new_scales) return operand;
  return with_codes(operand, new_codes ? &*new_codes : nullptr,
                    new_scales ? &*new_scales : nullptr);
}

void LayerRun::keep(std::string name, Tensor tensor) {
  if (options_.keep_stages) result_.stages.push_back({std::move(name), std::move(tensor)});
}

void LayerRun::keep_slots(const std::string& name, const Rows& rows) {
  if (options_.keep_stages) keep_slots(name, rows.tensor(name, {rows.rows(), rows.cols()}));
}

/// A stage with one row a slot, in the order of the kernel's rows.
void LayerRun::keep_slots(const std::string& name, Tensor tensor) {
  if (!options_.keep_stages) return;
  const std::int64_t width = tensor.shape.back();
  if (numerics_.rows == RowOrder::slots) {
    tensor.shape = {route_.tokens, route_.top_k, width};
    return keep(name, std::move(tensor));
  }
  const std::size_t row_bytes = tensor.bytes.size() / to_size(std::max<std::int64_t>(slots(), 1));
  std::vector<std::byte> sorted;
  for (const std::int64_t slot : expert_order_) {
    const auto from = tensor.bytes.begin() + static_cast<std::ptrdiff_t>(to_size(slot) * row_bytes);
    sorted.insert(sorted.end(), from, from + static_cast<std::ptrdiff_t>(row_bytes));
  }
  tensor.shape = {std::ssize(expert_order_), width};
  tensor.bytes = std::move(sorted);
  keep(name, std::move(tensor));
}

/// body(expert, batch) for the slots of each expert, some rows at a time.
template <typename Body>
void LayerRun::for_each_batch(std::int64_t done, Body body) {
  for (std::size_t expert = 0; expert < groups_.size(); ++expert) {
    const std::span<const std::int64_t> all = groups_[expert];
    const ExpertView view = view_of(kernel_, expert);
    for (std::size_t first = 0; first < all.size(); first += to_size(kRowBatch)) {
      const auto part = all.subspan(first, std::min(all.size() - first, to_size(kRowBatch)));
      std::vector<float> weights;
      for (const std::int64_t slot : part) {
        weights.push_back(kernel_rounded(numerics_.weights, route_.weights[to_size(slot)]));
      }
      body(view, ExpertBatch{part, part, weights});
    }
    if (options_.progress) {
      options_.progress(done + static_cast<std::int64_t>(expert) + 1, 2 * layer_.local_experts());
    }
  }
}

}  // namespace moeref
