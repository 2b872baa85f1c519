#include "tests/judge/slow_numerics.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "tests/judge/exact_dot.hpp"
#include "tests/judge/slow_parts.hpp"

namespace moeref::judge {
namespace {

class Run {
 public:
  Run(const KernelLayer& kernel, const ScaledMatrix& hidden, const Route& route,
      const Numerics& numerics, const ForwardOptions& options)
      : kernel_(kernel),
        layer_(kernel.layer),
        hidden_(hidden),
        route_(route),
        numerics_(numerics),
        options_(options),
        stages_(route, numerics.rows, layer_.first_expert, layer_.local_experts()) {}

  SlowResult operator()() {
    const Matrix tokens = padded(layer_.latent != 0 ? into_latent() : hidden_numbers());
    Operand x = operand_of(tokens);
    if (numerics_.input) {
      const std::vector<float> scales = scales_of(numerics_.input);
      const std::optional<float> scale =
          scales.empty() ? std::nullopt : std::optional(scales.front());
      x = operand_of(numerics_.input, quantized(numerics_.input, tokens, scale));
      stages_.keep_codes("a1_q", *x.codes);
      stages_.keep_scales("a1_s", x);
    }
    const Matrix gemm1 = first_gemm(x);
    stages_.keep_slots(gemm1);
    const Matrix act = activated(gemm1);
    const Operand a = between(act);
    const Matrix gemm2 = second_gemm(a);
    stages_.keep_slots(gemm2);
    finish(gemm2);
    return {stages_.take(), std::move(output_)};
  }

 private:
  std::int64_t slots() const { return static_cast<std::int64_t>(route_.ids.size()); }
  /// The local expert of a slot, or -1.
  std::int64_t expert_of(std::int64_t slot) const {
    const std::int64_t id = route_.ids[at(slot)];
    const std::int64_t expert = id - layer_.first_expert;
    return id < 0 || expert < 0 || expert >= layer_.local_experts() ? -1 : expert;
  }
  /// The router weight of a slot as the kernel has it.
  float weight_of(std::int64_t slot) const {
    return round_product(route_.weights[at(slot)], 1.0, numerics_.weights);
  }

  Matrix hidden_numbers() const {
    const bool plain = !hidden_.scales && hidden_.global_rule == GlobalScaleRule::none;
    const Format format = plain ? hidden_.codes.format : Format::f32;
    Matrix matrix("hidden", format, hidden_.rows, hidden_.cols);
    for (std::int64_t row = 0; row < hidden_.rows; ++row) {
      for (std::int64_t col = 0; col < hidden_.cols; ++col) {
        const std::int64_t index =
            hidden_.codes.origin + row * hidden_.codes.row_stride + col * hidden_.codes.col_stride;
        std::uint32_t code = 0;
        const std::int64_t width = format == Format::f32 ? 4 : 2;
        std::memcpy(&code, hidden_.codes.data + index * width, at(width));
        // As it lies: quantizers see the bits of a NaN.
        matrix(row, col) = format == Format::f32 ? std::bit_cast<float>(code)
                           : format == Format::bf16
                               ? std::bit_cast<float>(code << 16)
                               : static_cast<float>(decode_by_formula(format, code));
      }
    }
    return matrix;
  }

  Matrix into_latent() {
    Matrix latent("fc1", numerics_.activations, hidden_.rows, layer_.latent_in.rows);
    for (std::int64_t row = 0; row < latent.rows; ++row) {
      for (std::int64_t n = 0; n < latent.cols; ++n) {
        ExactSum sum;
        sum.add_dot(hidden_, row, layer_.latent_in, n);
        latent(row, n) = sum.round(latent.format);
      }
    }
    stages_.keep(latent);
    return latent;
  }

  Matrix padded(const Matrix& from) const {
    Matrix wide(from.name, from.format, from.rows, layer_.expert_width());
    for (std::int64_t row = 0; row < from.rows; ++row) {
      for (std::int64_t col = 0; col < from.cols; ++col) wide(row, col) = from(row, col);
    }
    return wide;
  }

  std::vector<float> scales_of(const ActivationQuantizer& use) const {
    if (use.scale.empty()) return {};
    std::vector<float> scales = kernel_.scalars.at(std::string(use.scale));
    if (use.inverts_scale) {
      for (float& scale : scales) scale = 1.0f / scale;
    }
    return scales;
  }

  /// What one GEMM of an expert adds to its operands.
  struct Epilogue {
    float factor = 1.0f;
    ScaledMatrix bias;
    std::optional<float> input_weight;   ///< on the sum
    std::optional<float> result_weight;  ///< on the sum with bias
  };

  static float gemm_value(const GemmNumerics& gemm, const Operand& x, std::int64_t row,
                          ScaledMatrix weight, std::int64_t n, const Epilogue& epilogue) {
    ScaledMatrix left = x.row(row);
    if (gemm.factor == SumFactor::expert) {
      // The expert's number holds every scale of a whole tensor.
      weight.global_rule = GlobalScaleRule::none;
      const bool row_scale = x.codes != nullptr && x.codes->form.global == GlobalScaleOf::row;
      if (!row_scale) left.global_rule = GlobalScaleRule::none;
      if (x.one_scale) left.scales.reset();
    }
    ExactSum sum;
    sum.add_dot(left, 0, weight, n);
    if (gemm.factor == SumFactor::expert) sum.multiply(epilogue.factor);
    if (epilogue.input_weight) sum.multiply(*epilogue.input_weight);
    if (gemm.bias != GemmBias::none && epilogue.bias) sum.add(value_at(epilogue.bias, 0, n));
    if (!epilogue.result_weight) return sum.round(gemm.output);
    if (!gemm.rounds_before_weight) {
      sum.multiply(*epilogue.result_weight);
      return sum.round(gemm.output);
    }
    return round_product(sum.round(gemm.output), *epilogue.result_weight, gemm.output);
  }

  float factor_of(const std::vector<float>& factors, std::int64_t expert) const {
    return factors.empty() ? 1.0f : factors[at(expert)];
  }

  /// Where the value n of a half goes in a row of GEMM1.
  std::int64_t column_of(bool is_up, std::int64_t n) const {
    if (!layer_.gated()) return n;
    if (kernel_.order == GateOrder::interleaved) return 2 * n + (is_up ? 1 : 0);
    const bool second = is_up != (kernel_.order == GateOrder::up_gate);
    return second ? layer_.intermediate + n : n;
  }

  Matrix first_gemm(const Operand& x) {
    const std::int64_t width = layer_.intermediate;
    Matrix out("gemm1", numerics_.gemm1.output, slots(), layer_.gated() ? 2 * width : width);
    for (std::int64_t slot = 0; slot < slots(); ++slot) {
      const std::int64_t e = expert_of(slot);
      if (e < 0) continue;
      const Expert& expert = layer_.experts[at(e)];
      for (const bool is_up : {false, true}) {
        if (!is_up && !layer_.gated()) continue;
        const ScaledMatrix& weight = is_up ? expert.up : expert.gate;
        Epilogue epilogue;
        epilogue.factor = factor_of(is_up ? kernel_.up_factors : kernel_.gate_factors, e);
        if (!numerics_.activation.adds_bias) {
          epilogue.bias = is_up ? expert.up_bias : expert.gate_bias;
        }
        if (numerics_.router_weight == WeightPoint::input) epilogue.input_weight = weight_of(slot);
        if (numerics_.router_weight == WeightPoint::gemm1) epilogue.result_weight = weight_of(slot);
        Matrix half("gemm1", out.format, 1, width);
        for (std::int64_t n = 0; n < width; ++n) {
          half(0, n) = gemm_value(numerics_.gemm1, x, slot / route_.top_k, weight, n, epilogue);
        }
        if (numerics_.gemm1_output) {
          half = read_back(quantized(numerics_.gemm1_output, half, std::nullopt));
        }
        for (std::int64_t n = 0; n < width; ++n) out(slot, column_of(is_up, n)) = half(0, n);
      }
    }
    return out;
  }

  Matrix activated(const Matrix& gemm1) const {
    const std::int64_t width = layer_.intermediate;
    const ActivationNumerics& numerics = numerics_.activation;
    Matrix act("act", numerics.output, slots(), width);
    for (std::int64_t slot = 0; slot < slots(); ++slot) {
      const std::int64_t e = expert_of(slot);
      if (e < 0) continue;
      const Expert& expert = layer_.experts[at(e)];
      Activate activate(numerics, parameters_for(layer_.activation, e), numerics.output);
      for (std::int64_t n = 0; n < width; ++n) {
        float gate = layer_.gated() ? gemm1(slot, column_of(false, n)) : 0.0f;
        float up = gemm1(slot, column_of(true, n));
        if (numerics.adds_bias && expert.gate_bias) {
          gate = round_sum(gate, value_at(expert.gate_bias, 0, n), Format::f32);
        }
        if (numerics.adds_bias && expert.up_bias) {
          up = round_sum(up, value_at(expert.up_bias, 0, n), Format::f32);
        }
        act(slot, n) = activate(gate, up);
      }
    }
    return act;
  }

  Operand between(const Matrix& act) {
    const ActivationQuantizer& use = numerics_.intermediate;
    if (!use.fused) stages_.keep_slots(act);
    if (!use) return operand_of(act);
    const std::vector<float> scales = scales_of(use);
    const bool one = std::all_of(scales.begin(), scales.end(),
                                 [&](float scale) { return scale == scales.front(); });
    Quantized codes =
        quantized(use, act, scales.empty() ? std::nullopt : std::optional(scales.front()));
    if (!one) {
      // Each expert's rows under its own scale; rows of no expert stay as those of zeros.
      for (std::int64_t slot = 0; slot < slots(); ++slot) {
        const std::int64_t e = expert_of(slot);
        if (e < 0) continue;
        const std::vector<std::int64_t> rows{slot};
        const Quantized row = quantized(use, act.picked(rows), scales[at(e)]);
        const auto put = [slot](const std::vector<std::byte>& from, std::vector<std::byte>& to) {
          std::copy(from.begin(), from.end(),
                    to.begin() + static_cast<std::ptrdiff_t>(at(slot) * from.size()));
        };
        put(row.codes, codes.codes);
        if (codes.row_blocks == codes.rows) put(row.scales, codes.scales);
      }
    }
    Operand operand = operand_of(use, std::move(codes));
    if (use.fused) {
      stages_.keep_slot_codes("act", *operand.codes);
      return operand;
    }
    stages_.keep_slot_codes("a2_q", *operand.codes);
    if (operand.one_scale) {
      stages_.keep_scales("a2_s", operand);
    } else {
      stages_.keep_slot_scales("a2_s", *operand.codes);
    }
    return operand;
  }

  Matrix second_gemm(const Operand& a) const {
    Matrix out("gemm2", numerics_.gemm2.output, slots(), layer_.expert_width());
    for (std::int64_t slot = 0; slot < slots(); ++slot) {
      const std::int64_t e = expert_of(slot);
      if (e < 0) continue;
      const Expert& expert = layer_.experts[at(e)];
      Epilogue epilogue;
      epilogue.factor = factor_of(kernel_.down_factors, e);
      epilogue.bias = expert.down_bias;
      if (numerics_.router_weight == WeightPoint::gemm2) epilogue.result_weight = weight_of(slot);
      for (std::int64_t n = 0; n < out.cols; ++n) {
        out(slot, n) = gemm_value(numerics_.gemm2, a, slot, expert.down, n, epilogue);
      }
    }
    return out;
  }

  /// The shared expert: rounding points of the routed ones, without what is theirs alone.
  Matrix shared_expert() {
    const Expert& shared = *layer_.shared;
    const bool gated = static_cast<bool>(shared.gate);
    const bool any = numerics_.activations == Format::f32;
    const auto stage = [&](Format format) { return any ? format : numerics_.activations; };
    const auto operand = [](const ActivationQuantizer& use, const Matrix& rows) {
      // A calibrated scale is the routed experts'.
      if (!use || !use.scale.empty()) return operand_of(rows);
      return operand_of(use, quantized(use, rows, std::nullopt));
    };
    const auto gemm = [&](const GemmNumerics& of_routed, const Operand& x, std::int64_t row,
                          const ScaledMatrix& weight, const ScaledMatrix& bias, std::int64_t n) {
      GemmNumerics numerics;
      numerics.output = stage(of_routed.output);
      return gemm_value(numerics, x, row, weight, n, {1.0f, bias, std::nullopt, std::nullopt});
    };
    const Operand x = operand(numerics_.input, hidden_numbers());
    const std::int64_t width = shared.up.rows;
    Matrix gemm1("shared_gemm1", stage(numerics_.gemm1.output), hidden_.rows,
                 gated ? 2 * width : width);
    Matrix act("shared_act", stage(numerics_.activation.output), hidden_.rows, width);
    Activate activate(numerics_.activation, parameters_for(layer_.shared_activation, 0),
                      act.format);
    for (std::int64_t row = 0; row < hidden_.rows; ++row) {
      for (std::int64_t n = 0; n < width; ++n) {
        float gate = 0.0f;
        if (gated) {
          gate = gemm(numerics_.gemm1, x, row, shared.gate, shared.gate_bias, n);
          gemm1(row, n) = gate;
        }
        const float up = gemm(numerics_.gemm1, x, row, shared.up, shared.up_bias, n);
        gemm1(row, gated ? width + n : n) = up;
        act(row, n) = activate(gate, up);
      }
    }
    const Operand a = operand(numerics_.intermediate, act);
    Matrix gemm2("shared_gemm2", stage(numerics_.gemm2.output), hidden_.rows, shared.down.rows);
    for (std::int64_t row = 0; row < hidden_.rows; ++row) {
      for (std::int64_t n = 0; n < gemm2.cols; ++n) {
        gemm2(row, n) = gemm(numerics_.gemm2, a, row, shared.down, shared.down_bias, n);
      }
    }
    for (const Matrix* matrix : {&gemm1, &act, &gemm2}) stages_.keep(*matrix);
    return gemm2;
  }

  /// The slots of each token as one row of `output`, `residual` inside the one rounding if given.
  Matrix combined(const Matrix& gemm2, const Matrix* residual, Format output) const {
    const CombineNumerics& how = numerics_.combine;
    Matrix out("combine", output, route_.tokens, kernel_.width);
    const bool steps = how.form == CombineForm::running || how.form == CombineForm::atomic_add;
    for (std::int64_t token = 0; token < route_.tokens; ++token) {
      for (std::int64_t col = 0; col < kernel_.width; ++col) {
        ExactSum exact;
        float running = 0.0f;
        for (std::int64_t slot = token * route_.top_k; slot < (token + 1) * route_.top_k; ++slot) {
          const std::int64_t e = expert_of(slot);
          if (e < 0) continue;
          const bool weighs = numerics_.router_weight == WeightPoint::combine;
          const double weight = weighs ? weight_of(slot) : 1.0;
          const float y = gemm2(slot, col);
          if (steps) {
            const float term =
                how.form == CombineForm::running ? round_product(weight, y, output) : y;
            running = round_sum(running, term, output);
            continue;
          }
          exact.add_product(weight, y);
          const ScaledMatrix& bias = layer_.experts[at(e)].down_bias;
          if (how.adds_bias && bias && col < bias.cols) {
            exact.add_product(weight, value_at(bias, 0, col));
          }
        }
        if (how.scaling == ScalingPoint::in_sum) {
          if (steps) throw std::logic_error("no sum that is rounded once to scale");
          exact.multiply(options_.routed_scaling);
        }
        if (residual != nullptr) exact.add((*residual)(token, col));
        float value = steps ? running : exact.round(output);
        if (how.scaling == ScalingPoint::after_sum) {
          value = round_product(value, options_.routed_scaling, output);
        }
        out(token, col) = value;
      }
    }
    return out;
  }

  void finish(const Matrix& gemm2) {
    const CombineNumerics& how = numerics_.combine;
    const bool latent = layer_.latent != 0;
    std::optional<Matrix> shared;
    if (layer_.shared) shared = shared_expert();
    const Matrix* in_sum = shared && how.joins_shared ? &*shared : nullptr;
    const Matrix* after = shared && !how.joins_shared ? &*shared : nullptr;
    Matrix routed = combined(gemm2, latent ? nullptr : in_sum,
                             latent ? numerics_.activations : options_.output);
    if (latent || after != nullptr) stages_.keep(routed);
    if (latent) {
      const Operand x = operand_of(routed);
      Matrix wide("final", options_.output, routed.rows, layer_.latent_out.rows);
      for (std::int64_t row = 0; row < wide.rows; ++row) {
        for (std::int64_t n = 0; n < wide.cols; ++n) {
          ExactSum sum;
          sum.add_dot(x.row(row), 0, layer_.latent_out, n);
          if (in_sum != nullptr) sum.add((*in_sum)(row, n));
          wide(row, n) = sum.round(options_.output);
        }
      }
      routed = std::move(wide);
    }
    const bool scales = how.scaling == ScalingPoint::with_shared && !how.joins_shared;
    for (std::int64_t row = 0; row < routed.rows; ++row) {
      for (std::int64_t col = 0; col < routed.cols; ++col) {
        float& value = routed(row, col);
        if (after == nullptr && !(scales && options_.routed_scaling != 1.0f)) continue;
        ExactSum sum;
        sum.add_product(value, scales ? options_.routed_scaling : 1.0);
        if (after != nullptr) sum.add((*after)(row, col));
        value = sum.round(options_.output);
      }
    }
    output_ = routed.values;
  }

  const KernelLayer& kernel_;
  const MoeLayer& layer_;
  const ScaledMatrix& hidden_;
  const Route& route_;
  const Numerics& numerics_;
  const ForwardOptions& options_;
  StageKeeper stages_;
  std::vector<float> output_;
};

}  // namespace

SlowResult slow_numerics(const KernelLayer& kernel, const ScaledMatrix& hidden, const Route& route,
                         const Numerics& numerics, const ForwardOptions& options) {
  return Run(kernel, hidden, route, numerics, options)();
}

}  // namespace moeref::judge
