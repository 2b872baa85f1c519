#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/combine.hpp"
#include "tests/judge/gpu_numbers.hpp"

// Random outputs of experts for the tests of the combine.

namespace moeref::testing {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kExperts = 16;
constexpr std::int64_t kWidth = 24;

inline std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
inline std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }

/// A layer that has biases of GEMM2 alone, gemm2 rows and the routing that made them.
struct Slots {
  MoeLayer layer;
  std::vector<std::vector<float>> biases;
  Route route;
  std::vector<float> y;  ///< [tokens * top_k, kWidth]
  Format format = Format::bf16;

  Slots() = default;
  Slots(const Slots&) = delete;

  bool is_here(std::int64_t slot) const {
    const std::int64_t expert = route.ids[at(slot)] - layer.first_expert;
    return route.ids[at(slot)] >= 0 && expert >= 0 && expert < layer.local_experts();
  }
  Rows rows() const {
    Rows rows("gemm2", format, std::ssize(route.ids), kWidth);
    for (std::int64_t row = 0; row < rows.rows(); ++row) {
      rows.put(row, 0, std::span(y).subspan(at(row * kWidth), at(kWidth)));
    }
    return rows;
  }
  std::vector<float> combined(const CombineNumerics& numerics, NumericsLevel level, Format output,
                              float scaling, WeightPoint point = WeightPoint::combine,
                              Format weights = Format::f32, int threads = 1) const {
    const Rows gemm2 = rows();
    const CombineInputs inputs{layer, route, gemm2, point, weights, scaling, nullptr};
    const Rows out = combine(numerics, level, inputs, output, threads);
    EXPECT_EQ(out.rows(), route.tokens);
    EXPECT_EQ(out.cols(), kWidth);
    EXPECT_EQ(out.format(), output);
    std::vector<float> values(at(out.rows() * kWidth));
    for (std::int64_t row = 0; row < out.rows(); ++row) {
      out.get(row, 0, std::span(values).subspan(at(row * kWidth), at(kWidth)));
    }
    return values;
  }
};

enum class Values {
  usual,       ///< normal numbers of one size
  cancelling,  ///< of many sizes and both signs, so that every rounding shows
  zeros,       ///< +0 and -0
  tiny,        ///< around the smallest normal number
};

inline float value_of(Values kind, std::mt19937_64& random) {
  const float sign = random() % 2 == 0 ? 1.0f : -1.0f;
  float size = std::uniform_real_distribution<float>(1.0f, 2.0f)(random);
  switch (kind) {
    case Values::usual:
      break;
    case Values::cancelling:
      size = std::ldexp(size, static_cast<int>(random() % 24) - 12);
      break;
    case Values::zeros:
      return sign * 0.0f;
    case Values::tiny:
      size = std::ldexp(size, -127 - static_cast<int>(random() % 5) + 2);
      break;
  }
  return judge::in_dtype(Format::bf16, sign * size);
}

/// Some slots have no expert, or that of another rank.
inline void fill(Slots& slots, std::int64_t tokens, std::int64_t top_k, Values kind, bool absent,
                 std::uint64_t seed) {
  std::mt19937_64 random(seed);
  slots.layer.first_expert = 2;
  slots.layer.experts.resize(at(kExperts));
  slots.biases.resize(at(kExperts));
  for (std::size_t e = 0; e < at(kExperts); ++e) {
    for (std::int64_t col = 0; col < kWidth; ++col) {
      slots.biases[e].push_back(value_of(kind, random));
    }
    ScaledMatrix& bias = slots.layer.experts[e].down_bias;
    bias.name = "bias";
    bias.rows = 1;
    bias.cols = kWidth;
    bias.codes = {reinterpret_cast<const std::byte*>(slots.biases[e].data()),
                  Format::f32,
                  NibbleOrder::low_first,
                  0,
                  kWidth,
                  1};
  }
  slots.route = {tokens, top_k, {}, {}};
  for (std::int64_t slot = 0; slot < tokens * top_k; ++slot) {
    const bool here = !absent || random() % 4 != 0;
    const std::int32_t elsewhere = random() % 2 == 0 ? -1 : static_cast<std::int32_t>(random() % 2);
    slots.route.ids.push_back(here ? static_cast<std::int32_t>(2 + random() % at(kExperts))
                                   : elsewhere);
    const float weight = std::uniform_real_distribution<float>(0.01f, 1.5f)(random);
    slots.route.weights.push_back(random() % 8 == 0 ? -weight : weight);
    for (std::int64_t col = 0; col < kWidth; ++col) {
      // GEMM2 leaves rows of zeros where there is no expert.
      slots.y.push_back(here ? value_of(kind, random) : 0.0f);
    }
  }
}

inline void expect_same(const std::vector<float>& actual, const std::vector<float>& expected,
                        const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(bits(actual[i]), bits(expected[i]))
        << what << " token " << i / at(kWidth) << " column " << i % at(kWidth) << ": " << actual[i]
        << " instead of " << expected[i];
  }
}

/// loop(token, column) for every output.
template <typename Loop>
std::vector<float> each(const Slots& slots, Loop loop) {
  std::vector<float> values;
  for (std::int64_t token = 0; token < slots.route.tokens; ++token) {
    for (std::int64_t col = 0; col < kWidth; ++col) values.push_back(loop(token, col));
  }
  return values;
}

/// The y of a token's slots, zero where there is no expert.
inline std::vector<float> of_token(const Slots& slots, std::int64_t token, std::int64_t col) {
  std::vector<float> y;
  for (std::int64_t k = 0; k < slots.route.top_k; ++k) {
    y.push_back(slots.y[at((token * slots.route.top_k + k) * kWidth + col)]);
  }
  return y;
}

constexpr Values kAllValues[] = {Values::usual, Values::cancelling, Values::zeros, Values::tiny};
constexpr float kScalings[] = {1.0f, 2.5f, 1.8462643f};

inline std::string label(std::int64_t top_k, Values kind, bool absent, float scaling,
                         bool flushes) {
  return "K " + std::to_string(top_k) + " values " + std::to_string(static_cast<int>(kind)) +
         (absent ? " absent" : "") + " scaling " + std::to_string(scaling) +
         (flushes ? " flushes" : "");
}

/// check(slots, scaling, flushes, what) for all of them.
template <typename Check>
void for_all(std::int64_t first_k, std::int64_t last_k, Check check) {
  for (std::int64_t top_k = first_k; top_k <= last_k; ++top_k) {
    for (const Values kind : kAllValues) {
      for (const bool absent : {false, true}) {
        Slots slots;
        fill(slots, 5, top_k, kind, absent, static_cast<std::uint64_t>(top_k * 10 + absent));
        for (const float scaling : kScalings) {
          for (const bool flushes : {false, true}) {
            check(slots, scaling, flushes, label(top_k, kind, absent, scaling, flushes));
          }
        }
      }
    }
  }
}

}  // namespace moeref::testing
