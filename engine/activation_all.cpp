#include <algorithm>
#include <array>
#include <cmath>

#include "engine/activation.hpp"
#include "engine/activation_gates.hpp"
#include "engine/gemm_problem.hpp"
#include "engine/prepared_rows.hpp"
#include "simd/float_environment.hpp"
#include "simd/kernels.hpp"

// The first level of `activate` for many pairs: g S(g) w in f64 with a bound of its error, which
// `finish` rounds where it can. The few that it cannot are done one by one.

namespace moeref {
namespace {

using gates::kUnit;

constexpr std::size_t kBlock = simd::kPanelColumns;

const simd::ExpTable& exp_table() {
  static const std::array<double, simd::ExpTable::kSteps> powers = [] {
    std::array<double, simd::ExpTable::kSteps> high{};
    std::transform(exact::kExpTable.begin(), exact::kExpTable.end(), high.begin(),
                   [](const exact::DoubleDouble& entry) { return entry.hi; });
    return high;
  }();
  static const simd::ExpTable table{powers.data(), exact::kStepsPerUnit, exact::kStep1,
                                    exact::kStepRest};
  return table;
}

/// Some pairs, and what becomes of them. Lanes whose `error` is NaN are done one by one.
struct Lanes {
  double g[kBlock];
  double w[kBlock];
  double s[kBlock];      ///< S(g)
  double error[kBlock];  ///< relative, of s
};

/// min(x, limit) and clamp(x, -limit, limit); NaN stays.
double capped(double x, double limit) { return x > limit ? limit : x; }
double clamped(double x, double limit) { return x > limit ? limit : (x < -limit ? -limit : x); }

/// The operands of the product that a form is; those of ActivationForm::relu2 have no S.
void load(const ActivationParameters& p, const float* gate, const float* up, std::size_t count,
          Lanes& lanes) {
  std::fill_n(lanes.g, kBlock, 1.0);
  std::fill_n(lanes.w, kBlock, 1.0);
  const double limit = p.limit;
  switch (p.form) {
    case ActivationForm::swiglu:
      for (std::size_t i = 0; i < count; ++i) {
        lanes.g[i] = capped(gate[i], limit);
        lanes.w[i] = clamped(up[i], limit) + static_cast<double>(p.beta);
      }
      return;
    case ActivationForm::silu_clamp_after:
      for (std::size_t i = 0; i < count; ++i) {
        // Above the limit silu may be, too.
        lanes.g[i] = gate[i] > limit ? HUGE_VAL : gate[i];
        lanes.w[i] = clamped(up[i], limit);
      }
      return;
    case ActivationForm::geglu_erf:
    case ActivationForm::geglu_tanh:
      std::copy_n(gate, count, lanes.g);
      std::copy_n(up, count, lanes.w);
      return;
    case ActivationForm::relu2:
      for (std::size_t i = 0; i < count; ++i) lanes.g[i] = lanes.w[i] = up[i] > 0.0f ? up[i] : 0.0;
      for (std::size_t i = 0; i < count; ++i) {
        if (std::isnan(up[i])) lanes.g[i] = up[i];
      }
      return;
    case ActivationForm::silu:
    case ActivationForm::gelu_erf:
    case ActivationForm::gelu_tanh:
      std::copy_n(up, count, lanes.g);
      return;
  }
}

/// S of sigmoids by their arguments, and its relative error.
template <typename Argument, typename Error>
void find_sigmoids(Lanes& lanes, Argument argument, Error error) {
  double z[kBlock];
  for (std::size_t i = 0; i < kBlock; ++i) z[i] = argument(lanes.g[i]);
  chosen_kernels().functions->sigmoid(exp_table(), z, kBlock, lanes.s);
  for (std::size_t i = 0; i < kBlock; ++i) {
    lanes.error[i] = std::fabs(z[i]) <= gates::kSaturation ? error(z[i]) : NAN;
  }
}

void find_s(const ActivationParameters& p, Lanes& lanes) {
  switch (p.form) {
    case ActivationForm::swiglu:
    case ActivationForm::silu_clamp_after:
    case ActivationForm::silu: {
      const double alpha = p.form == ActivationForm::swiglu ? p.alpha : 1.0;
      return find_sigmoids(
          lanes, [=](double g) { return alpha * g; },
          [](double) { return gates::SigmoidGate::kError; });
    }
    case ActivationForm::geglu_tanh:
    case ActivationForm::gelu_tanh:
      return find_sigmoids(lanes, gates::TanhGate::argument, gates::TanhGate::error);
    case ActivationForm::geglu_erf:
    case ActivationForm::gelu_erf:
      for (std::size_t i = 0; i < kBlock; ++i) {
        const auto g = static_cast<float>(lanes.g[i]);
        const gates::ErfGate gate;
        const bool inside = gate.range(g) == gates::Range::inside && !std::isnan(g);
        const gates::Estimate s = inside ? gate.estimate(g) : gates::Estimate{0.0, NAN};
        lanes.s[i] = s.value;
        lanes.error[i] = s.error;
      }
      return;
    case ActivationForm::relu2:
      std::fill_n(lanes.s, kBlock, 1.0);
      std::fill_n(lanes.error, kBlock, 0.0);
      return;
  }
}

/// Up to kBlock pairs; gives those (a bit each) whose `out` is not to be used.
std::uint32_t activate_block(const ActivationParameters& p, const float* gate, const float* up,
                             std::size_t count, const simd::OutputType& type, float* out) {
  Lanes lanes;
  load(p, gate, up, count, lanes);
  find_s(p, lanes);
  double value[kBlock];
  double error[kBlock];
  std::uint32_t special = 0;
  // Rounded w, g w and the result: 3 u; the bound itself and its product, 1 u.
  const double of_products = p.form == ActivationForm::relu2 ? 0.0 : 4 * kUnit;
  for (std::size_t i = 0; i < kBlock; ++i) {
    value[i] = lanes.g[i] * lanes.w[i] * lanes.s[i];
    const double size = std::fabs(value[i]);
    error[i] = size * (lanes.error[i] + of_products);
    // A product of numbers other than zero is above 2^-740.
    const bool plain = size < HUGE_VAL && error[i] < HUGE_VAL;
    special |= static_cast<std::uint32_t>(!plain) << i;
    if (!plain) value[i] = error[i] = 1.0;
  }
  simd::FinishTerms terms;
  terms.high = value;
  terms.error = error;
  float rounded[kBlock];
  special |= chosen_kernels().gemm->finish(terms, type, rounded);
  std::copy_n(rounded, count, out);
  return special & ((1u << count) - 1);
}

}  // namespace

void activate_all(const ActivationParameters& parameters, std::span<const float> gate,
                  std::span<const float> up, Format output, std::span<float> out) {
  const simd::DefaultFloatEnvironment environment;
  const simd::OutputType type = output_type(output);
  for (std::size_t first = 0; first < up.size(); first += kBlock) {
    const std::size_t count = std::min(up.size() - first, kBlock);
    const float* gates = gate.empty() ? nullptr : gate.data() + first;
    const std::uint32_t special =
        activate_block(parameters, gates, up.data() + first, count, type, out.data() + first);
    for (std::size_t i = 0; special != 0 && i < count; ++i) {
      if ((special >> i & 1) == 0) continue;
      out[first + i] =
          activate(parameters, gates == nullptr ? 0.0f : gates[i], up[first + i], output);
    }
  }
}

}  // namespace moeref
