#pragma once

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/activation.hpp"
#include "tests/judge/activation_judge.hpp"

// Parameter sets, operands and the comparison that the activation tests share.

namespace moeref::judge {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct NamedParameters {
  std::string name;
  ActivationParameters parameters;
};

inline std::vector<NamedParameters> activation_parameter_sets() {
  using enum ActivationForm;
  return {
      {"silu_and_mul", {swiglu}},
      {"gpt_oss", {swiglu, 1.702f, 1.0f, 7.0f}},
      {"deepseek_v4", {swiglu, 1.0f, 0.0f, 10.0f}},
      {"swiglu_negative_alpha", {swiglu, -1.5f, 0.5f, kInfinity}},
      {"swiglu_large_alpha", {swiglu, 1e30f, -3.0f, 1e30f}},
      {"swiglu_alpha_zero", {swiglu, 0.0f, 1e-40f, kInfinity}},
      {"step", {silu_clamp_after, 1.0f, 0.0f, 7.0f}},
      {"step_unlimited", {silu_clamp_after}},
      {"step_limit_zero", {silu_clamp_after, 1.0f, 0.0f, 0.0f}},
      {"geglu_erf", {geglu_erf}},
      {"geglu_tanh", {geglu_tanh}},
      {"relu2", {relu2}},
      {"silu", {silu}},
      {"gelu_erf", {gelu_erf}},
      {"gelu_tanh", {gelu_tanh}},
  };
}

inline float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }

/// How many values each level of the engine decided.
struct LevelCounts {
  std::array<std::int64_t, 4> of{};

  std::int64_t total() const { return of[0] + of[1] + of[2] + of[3]; }
  std::int64_t at(ActivationLevel level) const { return of[static_cast<std::size_t>(level)]; }
  void report(const std::string& name) const {
    std::printf("  %-22s %9ld values: direct %ld, double %ld, double-double %ld, exact %ld\n",
                name.c_str(), static_cast<long>(total()), static_cast<long>(of[0]),
                static_cast<long>(of[1]), static_cast<long>(of[2]), static_cast<long>(of[3]));
  }
};

/// Compares engine and judge bit for bit; prints the first few differences.
class Comparison {
 public:
  explicit Comparison(const NamedParameters& named) : named_(named), judge_(named.parameters) {}

  void operator()(float gate, float up) {
    const TracedActivation found = activate_traced(named_.parameters, gate, up);
    ++counts_.of[static_cast<std::size_t>(found.level)];
    const float expected = judge_(gate, up);
    if (bits_of(found.value) == bits_of(expected)) return;
    if (++differences_ > 5) return;
    ADD_FAILURE() << named_.name << "(" << std::hexfloat << gate << ", " << up << "): found "
                  << found.value << " 0x" << std::hex << bits_of(found.value) << ", expected "
                  << expected << " 0x" << bits_of(expected) << " at level "
                  << static_cast<int>(found.level);
  }

  const LevelCounts& counts() const { return counts_; }
  std::int64_t differences() const { return differences_; }

 private:
  NamedParameters named_;
  ActivationJudge judge_;
  LevelCounts counts_;
  std::int64_t differences_ = 0;
};

/// Values at the ends of every range.
inline const std::vector<float>& extreme_floats() {
  static const std::vector<float> values = [] {
    std::vector<float> result;
    for (const float magnitude : {0.0f,           0x1p-149f,   0x3p-149f,     0x1.fffffcp-127f,
                                  0x1p-126f,      0x1.8p-75f,  0x1p-60f,      1e-8f,
                                  0x1p-24f,       0.5f,        1.0f,          1.5f,
                                  0x1.000002p0f,  7.0f,        0x1.c00002p2f, 10.0f,
                                  24.0f,          88.0f,       104.0f,        300.0f,
                                  301.0f,         16777216.0f, 1e20f,         0x1p127f,
                                  0x1.fffffep127f}) {
      result.push_back(magnitude);
      result.push_back(-magnitude);
    }
    return result;
  }();
  return values;
}

/// A float with the sizes that layers have, or (one in four) with random bits.
inline float typical_float(std::mt19937_64& random) {
  if (random() % 4 == 0) {
    const float value = from_bits(static_cast<std::uint32_t>(random()));
    if (std::isfinite(value)) return value;
  }
  return static_cast<float>(std::normal_distribution<double>(0.0, 4.0)(random));
}

}  // namespace moeref::judge
