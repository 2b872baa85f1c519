#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "engine/bounds/block.hpp"
#include "engine/bounds/dense.hpp"
#include "engine/operand.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "tests/support/random_matrix.hpp"

namespace moeref::bounds {
namespace {

using moeref::testing::kAllSchemes;
using moeref::testing::OwnedMatrix;
using moeref::testing::random_matrix;
using moeref::testing::Scheme;
using moeref::testing::Spread;

std::vector<float> bf16_values(std::size_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) {
    value = decode(Format::bf16, encode(Format::bf16, normal(random), EncodePolicy::eigen));
  }
  return values;
}

std::vector<float> in_f32(const ScaledMatrix& matrix) {
  std::vector<float> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
  dequantize(matrix, DequantizeOrder::checkpoint, Format::f32, values);
  return values;
}

/// A dot product in f32, its terms added in a random order: one after the other, or always the two
/// at the front.
float shuffled_dot(std::span<const float> weights, std::span<const float> values,
                   std::mt19937_64& random) {
  std::vector<float> terms;
  for (std::size_t i = 0; i < weights.size(); ++i) terms.push_back(weights[i] * values[i]);
  std::shuffle(terms.begin(), terms.end(), random);
  if (random() % 2 == 0) return std::accumulate(terms.begin(), terms.end(), 0.0f);
  for (std::size_t front = 0; front + 1 < terms.size(); front += 2)
    terms.push_back(terms[front] + terms[front + 1]);
  return terms.back();
}

/// A matrix of one f32 row, a view of `values`.
ScaledMatrix one_row(const std::vector<float>& values) {
  ScaledMatrix matrix;
  matrix.name = "weights";
  matrix.rows = 1;
  matrix.cols = static_cast<std::int64_t>(values.size());
  matrix.codes.data = reinterpret_cast<const std::byte*>(values.data());
  matrix.codes.format = Format::f32;
  matrix.codes.row_stride = matrix.cols;
  return matrix;
}

TEST(Linear, EnclosesF32DotProductsInAnyOrderForEveryFormat) {
  std::mt19937_64 random(21);
  constexpr std::int64_t kRows = 5;
  constexpr std::int64_t kCols = 256;
  constexpr std::int64_t kTokens = 3;
  const Arithmetic& f32 = arithmetic(Precision::f32);
  for (const Scheme scheme : kAllSchemes) {
    for (const Spread spread : {Spread::tame, Spread::wide}) {
      const OwnedMatrix weight = random_matrix(scheme, spread, kRows, kCols, random);
      const std::vector<float> weights = in_f32(weight.matrix);
      const std::vector<float> values = bf16_values(kTokens * kCols, random);
      const BoundedMatrix output =
          linear(f32, weight.matrix, {}, exact_matrix(values, kTokens, kCols));
      for (int round = 0; round < 40; ++round) {
        for (std::int64_t token = 0; token < kTokens; ++token) {
          for (std::int64_t row = 0; row < kRows; ++row) {
            const auto row_weights = std::span<const float>(weights).subspan(
                static_cast<std::size_t>(row * kCols), kCols);
            const auto row_values = std::span<const float>(values).subspan(
                static_cast<std::size_t>(token * kCols), kCols);
            const double stored =
                static_cast<double>(shuffled_dot(row_weights, row_values, random));
            const Bounded bounded = output.at(token, row);
            const double difference = std::fabs(stored - bounded.value);
            ASSERT_LE(difference, bounded.total()) << name(scheme);
          }
        }
      }
    }
  }
}

TEST(Linear, HasABoundThatTheWorstOrderReaches) {
  // 1, then 255 halves of its last place: added one by one in f32, each is lost.
  std::vector<float> weights(256, 0x1p-24f);
  weights[0] = 1.0f;
  const std::vector<float> ones(256, 1.0f);
  float stored = 0.0f;
  for (const float weight : weights) stored += weight;
  ASSERT_EQ(stored, 1.0f);
  const Bounded bounded =
      linear(arithmetic(Precision::f32), one_row(weights), {}, exact_matrix(ones, 1, 256)).at(0, 0);
  const double difference = std::fabs(static_cast<double>(stored) - bounded.value);
  EXPECT_LE(difference, bounded.total());
  EXPECT_GT(difference, 0.99 * bounded.total());
}

TEST(Linear, EnclosesDotProductsOfDisplacedInputs) {
  std::mt19937_64 random(22);
  const OwnedMatrix weight = random_matrix(Scheme::bf16, Spread::tame, 4, 64, random);
  const std::vector<float> weights = in_f32(weight.matrix);
  BoundedMatrix input = exact_matrix(bf16_values(64, random), 1, 64);
  std::fill(input.stored.begin(), input.stored.end(), 0.125);
  const BoundedMatrix output = linear(arithmetic(Precision::f64), weight.matrix, {}, input);
  for (std::int64_t row = 0; row < 4; ++row) {
    double displaced = 0.0;  // every input moved to where it hurts most
    for (std::size_t i = 0; i < 64; ++i) {
      const double w = static_cast<double>(weights[static_cast<std::size_t>(row) * 64 + i]);
      displaced += w * (input.value[i] + std::copysign(0.125, w));
    }
    const Bounded bounded = output.at(0, row);
    EXPECT_LE(std::fabs(displaced - bounded.value), bounded.total());
    EXPECT_GT(std::fabs(displaced - bounded.value), 0.999 * bounded.total());
  }
}

TEST(Linear, HasNoErrorWhereEveryPartialSumFits) {
  std::mt19937_64 random(23);
  const OwnedMatrix weight = random_matrix(Scheme::mxfp4, Spread::tame, 8, 128, random);
  const BoundedMatrix input = exact_matrix(bf16_values(128, random), 1, 128);
  const BoundedMatrix in_f64 = linear(arithmetic(Precision::f64), weight.matrix, {}, input);
  for (const double stored : in_f64.stored) EXPECT_EQ(stored, 0.0);
  for (const double own : in_f64.own) EXPECT_EQ(own, 0.0);
  // Integers up to 2^24 in f32: exact up to the limit, rounded beyond.
  const std::vector<float> ones(2, 1.0f);
  const auto stored_error = [&](float large, float small) {
    const std::vector<float> weights{large, small};
    return linear(arithmetic(Precision::f32), one_row(weights), {}, exact_matrix(ones, 1, 2))
        .stored[0];
  };
  EXPECT_EQ(stored_error(16777214.0f, 1.0f), 0.0);
  EXPECT_GT(stored_error(16777216.0f, 1.0f), 0.0);
}

TEST(Linear, CountsTheRoundingsOfEveryDequantization) {
  std::mt19937_64 random(24);
  const auto roundings = [&](Scheme scheme, int bits) {
    return dequantization_roundings(random_matrix(scheme, Spread::tame, 128, 128, random).matrix,
                                    bits);
  };
  EXPECT_EQ(roundings(Scheme::bf16, 24), 0);
  EXPECT_EQ(roundings(Scheme::mxfp4, 24), 0);
  EXPECT_EQ(roundings(Scheme::mxfp8, 24), 0);
  EXPECT_EQ(roundings(Scheme::e4m3_block128, 24), 1);
  EXPECT_EQ(roundings(Scheme::e4m3_block128_bf16, 24), 0);
  EXPECT_EQ(roundings(Scheme::nvfp4_multiplied, 24), 2);
  EXPECT_EQ(roundings(Scheme::nvfp4_divided, 24), 2);
  EXPECT_EQ(roundings(Scheme::e4m3_block128, 53), 0);
  EXPECT_EQ(roundings(Scheme::nvfp4_multiplied, 53), 0);
  EXPECT_EQ(roundings(Scheme::nvfp4_divided, 53), 1);
}

/// Weights with errors of their own, as rounded scales leave them.
TEST(Linear, EnclosesSumsOfWeightsThatWereMoved) {
  std::mt19937_64 random(26);
  std::uniform_real_distribution<double> unit(-1.0, 1.0);
  constexpr std::int64_t kWidth = 96;
  BoundedMatrix weight(3, kWidth);
  BoundedMatrix input(2, kWidth);
  for (const double distance : {1e-5, 1e-2, 0.25}) {
    const auto fill = [&](BoundedMatrix& matrix) {
      for (std::size_t i = 0; i < matrix.value.size(); ++i) {
        matrix.value[i] = unit(random);
        matrix.stored[i] = distance;
      }
    };
    fill(weight);
    fill(input);
    const BoundedMatrix output = linear(arithmetic(Precision::f32), weight, input);
    double worst = 0.0;
    for (int trial = 0; trial < 20; ++trial) {
      for (std::int64_t row = 0; row < output.rows; ++row) {
        for (std::int64_t col = 0; col < output.cols; ++col) {
          std::vector<float> moved_weight;
          std::vector<float> moved_input;
          for (std::int64_t k = 0; k < kWidth; ++k) {
            // Displaced in the direction that moves the product, or anywhere; then rounded.
            const Bounded w = weight.at(col, k);
            const Bounded x = input.at(row, k);
            const double room = distance - 0x1p-22;
            const double sign = trial == 0 ? 1.0 : unit(random);
            moved_weight.push_back(
                static_cast<float>(w.value + room * std::copysign(sign, x.value)));
            moved_input.push_back(
                static_cast<float>(x.value + room * std::copysign(sign, w.value)));
          }
          const float result = shuffled_dot(moved_weight, moved_input, random);
          const double difference =
              std::fabs(static_cast<double>(result) - output.at(row, col).value);
          const double bound = output.at(row, col).total();
          ASSERT_LE(difference, bound);
          worst = std::max(worst, difference / bound);
        }
      }
    }
    EXPECT_GT(worst, 0.5) << distance;
  }
}

TEST(Linear, AgreesForExactWeightsWithTheOneOfScaledMatrices) {
  std::mt19937_64 random(27);
  const OwnedMatrix weight = random_matrix(Scheme::bf16, Spread::wide, 40, 96, random);
  BoundedMatrix exact_weight(40, 96);
  dequantize(weight.matrix, std::span<double>(exact_weight.value));
  const BoundedMatrix input = exact_matrix(bf16_values(5 * 96, random), 5, 96);
  for (const Precision precision : {Precision::f32, Precision::f64}) {
    const BoundedMatrix one = linear(arithmetic(precision), weight.matrix, {}, input);
    const BoundedMatrix other = linear(arithmetic(precision), exact_weight, input);
    EXPECT_EQ(one.value, other.value);
    EXPECT_EQ(one.stored, other.stored);
    EXPECT_EQ(one.own, other.own);
  }
}

TEST(Linear, GivesTheSameBitsForAnyNumberOfThreads) {
  std::mt19937_64 random(25);
  const OwnedMatrix weight = random_matrix(Scheme::e4m3_row, Spread::wide, 100, 96, random);
  const BoundedMatrix input = exact_matrix(bf16_values(5 * 96, random), 5, 96);
  const BoundedMatrix one = linear(arithmetic(Precision::f32), weight.matrix, {}, input, 1);
  const BoundedMatrix four = linear(arithmetic(Precision::f32), weight.matrix, {}, input, 4);
  EXPECT_EQ(one.value, four.value);
  EXPECT_EQ(one.stored, four.stored);
  EXPECT_EQ(one.own, four.own);
}

/// A small layer with everything: biases, latent projections, a shared expert.
struct SmallLayer {
  std::vector<OwnedMatrix> storage;
  MoeLayer layer;

  SmallLayer(ActivationForm form, Scheme scheme, bool latent, std::mt19937_64& random) {
    const std::int64_t width = latent ? 64 : 128;
    const auto make = [&](Scheme of, std::int64_t rows, std::int64_t cols) {
      storage.push_back(random_matrix(of, Spread::tame, rows, cols, random));
      return storage.back().matrix;
    };
    const auto make_expert = [&](std::int64_t input, std::int64_t rows) {
      Expert expert;
      if (is_gated(form)) expert.gate = make(scheme, rows, input);
      expert.up = make(scheme, rows, input);
      expert.down = make(scheme, input, rows);
      if (is_gated(form)) expert.gate_bias = make(Scheme::bf16, 1, rows);
      expert.up_bias = make(Scheme::bf16, 1, rows);
      expert.down_bias = make(Scheme::bf16, 1, input);
      return expert;
    };
    layer.hidden = 128;
    layer.intermediate = 96;
    layer.latent = latent ? width : 0;
    layer.activation.form = form;
    layer.activation.limit = 3.0f;
    layer.activation.alpha = 1.702f;
    layer.activation.beta = 1.0f;
    layer.shared_activation.form = form;
    layer.router = make(Scheme::bf16, 4, 128);
    for (int expert = 0; expert < 4; ++expert) layer.experts.push_back(make_expert(width, 96));
    layer.shared = make_expert(128, 96);
    if (latent) {
      layer.latent_in = make(Scheme::bf16, width, 128);
      layer.latent_out = make(Scheme::bf16, 128, width);
    }
  }
};

using Vector = std::vector<float>;

Vector shuffled_linear(const ScaledMatrix& weight, const ScaledMatrix& bias, const Vector& input,
                       std::mt19937_64& random) {
  const Vector weights = in_f32(weight);
  const Vector biases = bias ? in_f32(bias) : Vector(static_cast<std::size_t>(weight.rows));
  Vector output;
  for (std::size_t row = 0; row < static_cast<std::size_t>(weight.rows); ++row) {
    output.push_back(
        shuffled_dot(std::span(weights).subspan(row * input.size(), input.size()), input, random) +
        biases[row]);
  }
  return output;
}

/// The formulas of `ActivationForm` in f32, as PyTorch's elementwise kernels compute them.
float activate_in_f32(const Activation& activation, float gate, float up) {
  const auto silu = [](float x, float alpha) {
    return x * (1.0f / (1.0f + std::exp(-(alpha * x))));
  };
  const auto gelu = [](float x) {
    return 0.5f * x * (1.0f + std::erf(x * static_cast<float>(M_SQRT1_2)));
  };
  const auto gelu_tanh = [](float x) {
    return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
  };
  const float limit = activation.limit;
  const float clamped = std::clamp(up, -limit, limit);
  switch (activation.form) {
    case ActivationForm::swiglu:
      return silu(std::min(gate, limit), activation.alpha) * (clamped + activation.beta);
    case ActivationForm::silu_clamp_after:
      return std::min(silu(gate, 1.0f), limit) * clamped;
    case ActivationForm::geglu_erf:
      return gelu(gate) * up;
    case ActivationForm::geglu_tanh:
      return gelu_tanh(gate) * up;
    case ActivationForm::relu2:
      return std::max(up, 0.0f) * std::max(up, 0.0f);
    case ActivationForm::silu:
      return silu(up, 1.0f);
    case ActivationForm::gelu_erf:
      return gelu(up);
    case ActivationForm::gelu_tanh:
      return gelu_tanh(up);
  }
  return 0.0f;
}

Vector run_in_f32(const Expert& expert, const Activation& activation, const Vector& input,
                  std::mt19937_64& random) {
  const Vector up = shuffled_linear(expert.up, expert.up_bias, input, random);
  const Vector gate = is_gated(activation.form)
                          ? shuffled_linear(expert.gate, expert.gate_bias, input, random)
                          : up;
  Vector middle;
  for (std::size_t i = 0; i < up.size(); ++i)
    middle.push_back(activate_in_f32(activation, gate[i], up[i]));
  return shuffled_linear(expert.down, expert.down_bias, middle, random);
}

/// One token through the whole layer in f32, every sum in a random order.
Vector forward_in_f32(const MoeLayer& layer, const Vector& hidden,
                      std::span<const std::int32_t> ids, std::span<const float> weights,
                      std::mt19937_64& random) {
  const Vector input =
      layer.latent != 0 ? shuffled_linear(layer.latent_in, {}, hidden, random) : hidden;
  std::vector<std::size_t> slots(ids.size());
  std::iota(slots.begin(), slots.end(), 0u);
  std::shuffle(slots.begin(), slots.end(), random);
  Vector sum(input.size());
  for (const std::size_t slot : slots) {
    if (ids[slot] < 0) continue;
    const Vector output = run_in_f32(layer.experts[static_cast<std::size_t>(ids[slot])],
                                     layer.activation, input, random);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weights[slot] * output[i];
  }
  if (layer.latent != 0) sum = shuffled_linear(layer.latent_out, {}, sum, random);
  const Vector shared = run_in_f32(*layer.shared, layer.shared_activation, hidden, random);
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += shared[i];
  return sum;
}

constexpr ActivationForm kAllForms[] = {ActivationForm::swiglu,    ActivationForm::silu_clamp_after,
                                        ActivationForm::geglu_erf, ActivationForm::geglu_tanh,
                                        ActivationForm::relu2,     ActivationForm::silu,
                                        ActivationForm::gelu_erf,  ActivationForm::gelu_tanh};

TEST(Block, IntervalsEncloseF32ForwardsInAnyOrderForEveryActivation) {
  std::mt19937_64 random(31);
  for (const ActivationForm form : kAllForms) {
    for (const Scheme scheme : {Scheme::mxfp4, Scheme::e4m3_row}) {
      const SmallLayer small(form, scheme, /*latent=*/form == ActivationForm::relu2, random);
      const Vector hidden = bf16_values(128, random);
      const Route route{1, 3, {2, -1, 0}, {0.75f, 0.5f, 0.25f}};
      const OutputIntervals wide = output_intervals(small.layer, hidden, route, Format::f32);
      const OutputIntervals narrow = output_intervals(small.layer, hidden, route, Format::bf16);
      for (int round = 0; round < 10; ++round) {
        const Vector output = forward_in_f32(small.layer, hidden, route.ids, route.weights, random);
        for (std::size_t i = 0; i < output.size(); ++i) {
          ASSERT_GE(output[i], wide.low[i]) << static_cast<int>(form);
          ASSERT_LE(output[i], wide.high[i]) << static_cast<int>(form);
          const float rounded =
              decode(Format::bf16, encode(Format::bf16, output[i], EncodePolicy::eigen));
          ASSERT_GE(rounded, narrow.low[i]);
          ASSERT_LE(rounded, narrow.high[i]);
        }
      }
    }
  }
}

TEST(Block, IntervalsOfBf16AreMostlyOneOrTwoNumbers) {
  std::mt19937_64 random(32);
  const SmallLayer small(ActivationForm::swiglu, Scheme::mxfp4, false, random);
  const Vector hidden = bf16_values(128, random);
  const OutputIntervals intervals =
      output_intervals(small.layer, hidden, {1, 2, {1, 3}, {0.5f, 0.5f}}, Format::bf16);
  int narrow = 0;
  for (std::size_t i = 0; i < intervals.low.size(); ++i) {
    ASSERT_LE(static_cast<double>(intervals.low[i]),
              intervals.value[i] + std::fabs(intervals.value[i]) * 0x1p-8);
    const auto code = [&](float value) {
      return static_cast<int>(encode(Format::bf16, value, EncodePolicy::eigen));
    };
    narrow += std::abs(code(intervals.high[i]) - code(intervals.low[i])) <= 1 ? 1 : 0;
  }
  EXPECT_GT(narrow, 120);  // of 128
}

TEST(Block, ExpertsOfOtherRanksGiveNothing) {
  std::mt19937_64 random(33);
  SmallLayer small(ActivationForm::silu, Scheme::bf16, false, random);
  const Vector hidden = bf16_values(128, random);
  const std::vector<std::int32_t> ids{1, 3};
  const std::vector<double> weights{0.5, 0.25};
  const auto routed = [&] {
    return evaluate_outputs(arithmetic(Precision::f64), small.layer, exact_matrix(hidden, 1, 128),
                            exact_route(ids, weights, 1, 2))
        .routed.value;
  };
  const std::vector<double> whole = routed();
  const std::vector<Expert> experts = small.layer.experts;
  small.layer.total_experts = 4;
  small.layer.experts = {experts[0], experts[1]};
  const std::vector<double> first = routed();
  small.layer.experts = {experts[2], experts[3]};
  small.layer.first_expert = 2;
  const std::vector<double> second = routed();
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_DOUBLE_EQ(whole[i], first[i] + second[i]);
}

TEST(OutputIntervals, HoldASumThatBeginsWithTheSharedExpert) {
  // Sixteen slots of 1 and a shared expert of 2^24: added one by one to the shared output, each 1
  // is lost.
  const auto identity = [](const float* value) {
    Expert expert;
    expert.up = f32_matrix("up", value, 1, 1);
    expert.down = f32_matrix("down", value + 1, 1, 1);
    return expert;
  };
  const float routed[] = {1.0f, 1.0f};
  const float shared[] = {4096.0f, 1.0f};  // relu2: 2^24
  MoeLayer layer;
  layer.hidden = 1;
  layer.intermediate = 1;
  layer.activation.form = ActivationForm::relu2;
  layer.shared_activation.form = ActivationForm::relu2;
  for (int e = 0; e < 16; ++e) layer.experts.push_back(identity(routed));
  layer.shared = identity(shared);
  Route route{1, 16, {}, std::vector<float>(16, 1.0f)};
  for (std::int32_t e = 0; e < 16; ++e) route.ids.push_back(e);
  const std::vector<float> hidden{1.0f};
  const OutputIntervals intervals = output_intervals(layer, hidden, route, Format::f32);
  EXPECT_LE(intervals.low[0], 0x1p24f);
  EXPECT_GE(intervals.high[0], 0x1p24f + 16.0f);
  EXPECT_GE(intervals.low[0], 0x1p24f - 64.0f);
}

TEST(Block, RejectsAnExpertThatTheLayerLacks) {
  std::mt19937_64 random(34);
  const SmallLayer small(ActivationForm::silu, Scheme::bf16, false, random);
  const Vector hidden = bf16_values(128, random);
  const Route route{1, 1, {4}, {1.0f}};
  EXPECT_THROW(output_intervals(small.layer, hidden, route, Format::bf16), Error);
}

}  // namespace
}  // namespace moeref::bounds
