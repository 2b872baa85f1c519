#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "cli/conform/aiter_forward_case.hpp"
#include "engine/bounds/block.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

// The forwards that aiter's tests compare its kernels with: f32 throughout, one rounding to the
// output type at the end of each function. Each is evaluated here without rounding and with the
// bound of its f32 form.
// Source: ROCm/aiter@e4048607a535 aiter/fused_moe.py torch_moe, torch_moe_act, torch_moe_stage1,
// torch_moe_stage2, swiglu, situv2; aiter/ops/quant.py get_torch_act.

namespace moeref::conform {
namespace {

using aiter::ExpertRows;
using aiter::optional_flag;
using aiter::Quantization;
using aiter::read_expert_rows;
using aiter::read_slots;
using aiter::ScaledStack;
using aiter::shown_param;
using aiter::Sizes;
using aiter::Slots;
using bounds::Arithmetic;
using bounds::BoundedMatrix;
using bounds::StageActivation;
using bounds::StageFunction;

/// The precision in which an output was computed; without a bound that of the originals, f32.
bounds::Precision precision_of(const GoldenCase& golden, std::string_view output) {
  const CompareRule& rule = golden.rule(output);
  const bool is_f64 = rule.kind == CompareKind::bound && rule.precision == Format::f64;
  return is_f64 ? bounds::Precision::f64 : bounds::Precision::f32;
}

/// The weights of the given slots.
std::vector<double> weights_of(const Slots& slots, std::span<const std::int64_t> chosen) {
  std::vector<double> weights;
  for (const std::int64_t slot : chosen)
    weights.push_back(slots.weights[static_cast<std::size_t>(slot)]);
  return weights;
}

/// Stored f32 numbers rounded to bf16: the last line of a reference, `.to(dtype)`. torch writes one
/// NaN in its vectorised loop (0xFFFF) and another in the rest (0x7FC0): any NaN is right.
void round_stored(const GoldenCase& golden, std::string_view from, std::string_view to,
                  OpResult& result) {
  const TensorView* stored = golden.find_output(from);
  const TensorView* given = golden.find_output(to);
  if (stored == nullptr || stored->dtype != DType::f32 || given == nullptr) return;
  const bool alike = given->dtype == DType::bf16 && given->shape == stored->shape;
  std::vector<std::uint16_t> rounded;
  for (std::int64_t i = 0; i < stored->size(); ++i) {
    const float value = stored->at<float>(i);
    auto code = static_cast<std::uint16_t>(encode(Format::bf16, value, EncodePolicy::eigen));
    if (alike && std::isnan(value)) {
      const auto other = given->at<std::uint16_t>(i);
      if (std::isnan(decode(Format::bf16, other))) code = other;
    }
    rounded.push_back(code);
  }
  result.outputs.emplace(std::string(to),
                         make_tensor<std::uint16_t>(std::string(to), DType::bf16, stored->shape,
                                                    std::span<const std::uint16_t>(rounded)));
}

/// act(x w1^T (* routing weight) (+ bias)): [slots, intermediate], or [slots, rows] without a gate.
/// Slots without an expert are zeros before the activation.
BoundedMatrix stage1(const GoldenCase& golden, const Arithmetic& arithmetic, const Sizes& sizes,
                     bool weighs) {
  const Quantization quantization = aiter::read_quantization(golden);
  const ScaledStack input = aiter::read_input(golden, quantization, sizes.hidden);
  const Slots slots = read_slots(golden, input.rows, sizes.experts);
  const StageActivation activation = aiter::read_activation(golden, arithmetic, sizes.gated());
  const ScaledStack w1 = aiter::read_weight(golden, "w1", quantization, sizes.hidden);
  const auto bias = read_expert_rows(golden, "w1_bias", sizes.experts, sizes.rows);
  const BoundedMatrix pre_activation = bounds::by_expert(
      bounds::repeat_rows(input.all_rows(arithmetic), slots.top_k), slots.experts, sizes.rows,
      [&](const BoundedMatrix& rows, std::span<const std::int64_t> chosen, std::int64_t expert) {
        BoundedMatrix result = bounds::linear(arithmetic, w1.matrix(arithmetic, expert), rows);
        if (weighs) result = scale_rows(arithmetic, std::move(result), weights_of(slots, chosen));
        if (bias) result = add_to_rows(arithmetic, std::move(result), bias->of(expert));
        return result;
      });
  return sizes.gated() ? activate_halves(arithmetic, activation, pre_activation)
                       : activate_each(arithmetic, activation, pre_activation);
}

/// Sum over the slots of (h w2^T (+ bias)) (* routing weight): [tokens, hidden].
BoundedMatrix stage2(const GoldenCase& golden, const Arithmetic& arithmetic, const Sizes& sizes,
                     const TensorView& h, bool weighs) {
  const Quantization quantization = aiter::read_quantization(golden);
  const TensorView& x = golden.input("x");
  aiter::need_dimensions(golden, x, 2, "[tokens, hidden]");
  const Slots slots = read_slots(golden, x.shape[0], sizes.experts);
  const ScaledStack input = aiter::read_intermediate(golden, h, quantization, slots.tokens,
                                                     slots.top_k, sizes.intermediate);
  const ScaledStack w2 = aiter::read_weight(golden, "w2", quantization, sizes.intermediate);
  const auto bias = read_expert_rows(golden, "w2_bias", sizes.experts, sizes.hidden);
  BoundedMatrix outputs = bounds::by_expert(
      input.all_rows(arithmetic), slots.experts, sizes.hidden,
      [&](const BoundedMatrix& rows, std::span<const std::int64_t>, std::int64_t expert) {
        BoundedMatrix result = bounds::linear(arithmetic, w2.matrix(arithmetic, expert), rows);
        if (bias) result = add_to_rows(arithmetic, std::move(result), bias->of(expert));
        return result;
      });
  if (weighs) outputs = scale_rows(arithmetic, std::move(outputs), slots.weights);
  return sum_slots(arithmetic, outputs, slots.top_k);
}

OpResult run_stage1(const GoldenCase& golden) {
  OpResult result;
  const BoundedMatrix h =
      stage1(golden, bounds::arithmetic(precision_of(golden, "h_f32")), aiter::read_sizes(golden),
             optional_flag(golden, "doweight").value_or(false));
  result.outputs.emplace("h_f32", bounds::bounded_output(h));
  round_stored(golden, "h_f32", "h_bf16", result);
  return result;
}

/// Stage 1, its rounding to bf16 as it is stored, and stage 2 from that. One of the two multiplies
/// by the routing weights: the second, unless params.doweight (or doweight_stage1) says the first.
OpResult run_2stage(const GoldenCase& golden) {
  const Sizes sizes = aiter::read_sizes(golden);
  const bool weighs_first = optional_flag(golden, "doweight").value_or(false) ||
                            optional_flag(golden, "doweight_stage1").value_or(false);
  OpResult result;
  if (golden.find_output("h_f32") != nullptr) {
    result.outputs.emplace("h_f32", bounds::bounded_output(stage1(
                                        golden, bounds::arithmetic(precision_of(golden, "h_f32")),
                                        sizes, weighs_first)));
  }
  if (golden.find_output("y_f32") != nullptr) {
    const TensorView* h = golden.find_output("h_bf16");
    if (h == nullptr) h = golden.find_output("h_f16");
    if (h == nullptr) {
      fail(golden.subject("out.h_bf16"), "is missing; out.y_f32 was computed from it");
    }
    result.outputs.emplace("y_f32", bounds::bounded_output(stage2(
                                        golden, bounds::arithmetic(precision_of(golden, "y_f32")),
                                        sizes, *h, !weighs_first)));
  }
  round_stored(golden, "h_f32", "h_bf16", result);
  round_stored(golden, "y_f32", "y_bf16", result);
  return result;
}

/// The single reference, in which h is not rounded.
class TorchMoe {
 public:
  explicit TorchMoe(const GoldenCase& golden) : golden_(golden) {
    const TensorView& x = golden.input("x");
    const TensorView& w1 = golden.input("w1");
    const TensorView& w2 = golden.input("w2");
    aiter::need_dimensions(golden, x, 2, "[tokens, hidden]");
    aiter::need_dimensions(golden, w1, 3, "[experts, rows, hidden]");
    aiter::need_dimensions(golden, w2, 3, "[experts, hidden, intermediate]");
    sizes_ = {w1.shape[0], x.shape[1], w1.shape[1], w2.shape[2]};
    const bool fits = w1.shape[2] == sizes_.hidden && w2.shape[1] == sizes_.hidden &&
                      w2.shape[0] == sizes_.experts &&
                      (sizes_.rows == sizes_.intermediate || sizes_.gated());
    if (!fits) {
      fail(golden.path.string(),
           "in.x {}, in.w1 {}, in.w2 {} do not fit; needed are [tokens, hidden], [experts, "
           "intermediate or twice that, hidden], [experts, hidden, intermediate]",
           to_string(x.shape), to_string(w1.shape), to_string(w2.shape));
    }
    if (optional_flag(golden, "gated").value_or(sizes_.gated()) != sizes_.gated()) {
      fail(golden.subject("params.gated"), "is {}; in.w1 {} and in.w2 {} say otherwise",
           shown_param(golden, "gated"), to_string(w1.shape), to_string(w2.shape));
    }
    activation_.function = aiter::read_function(golden);
    if (activation_.function == StageFunction::swiglu ||
        activation_.function == StageFunction::situ) {
      fail(golden.subject("params.activation"), "is {}; torch_moe knows no, silu, gelu",
           shown_param(golden, "activation"));
    }
    slots_ = read_slots(golden, x.shape[0], sizes_.experts);
    if (golden.find_input("expert_mask") != nullptr) {
      aiter::map_to_local(golden, slots_, sizes_.experts);
    } else if (optional_flag(golden, "ep").value_or(false)) {
      fail(golden.subject("in.expert_mask"), "is missing; params.ep needs it");
    }
    x_ = {1, x.shape[0], sizes_.hidden, aiter::numbers(golden, x), {}};
    w1_ = {sizes_.experts, sizes_.rows, sizes_.hidden, aiter::numbers(golden, w1), {}};
    w2_ = {sizes_.experts, sizes_.hidden, sizes_.intermediate, aiter::numbers(golden, w2), {}};
    if (golden.find_input("fc1_scale") != nullptr) {  // the original looks at this one alone
      w1_.factors = row_scales("fc1_scale", sizes_.rows);
      w2_.factors = row_scales("fc2_scale", sizes_.hidden);
    }
    if (golden.find_input("fc1_smooth_scale") != nullptr) golden.input("fc2_smooth_scale");
    smooth1_ = read_expert_rows(golden, "fc1_smooth_scale", sizes_.experts, sizes_.hidden);
    smooth2_ = read_expert_rows(golden, "fc2_smooth_scale", sizes_.experts, sizes_.intermediate);
  }

  BoundedMatrix evaluate(const Arithmetic& arithmetic) const {
    const auto run_expert = [&](BoundedMatrix rows, std::span<const std::int64_t>,
                                std::int64_t expert) {
      if (smooth1_) rows = scale_cols(arithmetic, std::move(rows), smooth1_->of(expert));
      const BoundedMatrix pre_activation =
          bounds::linear(arithmetic, w1_.matrix(arithmetic, expert), rows);
      BoundedMatrix h = sizes_.gated() ? activate_halves(arithmetic, activation_, pre_activation)
                                       : activate_each(arithmetic, activation_, pre_activation);
      if (smooth2_) h = scale_cols(arithmetic, std::move(h), smooth2_->of(expert));
      return bounds::linear(arithmetic, w2_.matrix(arithmetic, expert), h);
    };
    BoundedMatrix outputs =
        bounds::by_expert(bounds::repeat_rows(x_.all_rows(arithmetic), slots_.top_k),
                          slots_.experts, sizes_.hidden, run_expert);
    return sum_slots(arithmetic, scale_rows(arithmetic, std::move(outputs), slots_.weights),
                     slots_.top_k);
  }

 private:
  /// One scale for each row of all experts, or one for everything.
  aiter::Factors row_scales(std::string_view name, std::int64_t rows) const {
    const TensorView& scale = golden_.input(name);
    const std::int64_t all = sizes_.experts * rows;
    if (scale.size() != all && scale.size() != 1) {
      fail(golden_.subject(scale.name), "has shape {}, needs one number for each of {} rows",
           to_string(scale.shape), all);
    }
    const bool each = scale.size() == all;
    return {.values = aiter::factors_of(golden_, scale),
            .stack_stride = each ? rows : 0,
            .row_stride = each ? 1 : 0};
  }

  const GoldenCase& golden_;
  Sizes sizes_;
  StageActivation activation_;
  Slots slots_;
  ScaledStack x_;
  ScaledStack w1_;
  ScaledStack w2_;
  std::optional<ExpertRows> smooth1_;
  std::optional<ExpertRows> smooth2_;
};

OpResult run_torch_moe(const GoldenCase& golden) {
  OpResult result;
  result.outputs.emplace("y_f32", bounds::bounded_output(TorchMoe(golden).evaluate(
                                      bounds::arithmetic(precision_of(golden, "y_f32")))));
  round_stored(golden, "y_f32", "y_bf16", result);
  return result;
}

constexpr std::array kOperations{
    NamedOperation{"aiter.torch_moe", run_torch_moe},
    NamedOperation{"aiter.torch_moe_stage1", run_stage1},
    NamedOperation{"aiter.torch_moe_2stage", run_2stage},
};

}  // namespace

std::span<const NamedOperation> aiter_forward_operations() { return kOperations; }

}  // namespace moeref::conform
