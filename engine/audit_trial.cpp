#include "engine/audit_trial.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/operand.hpp"
#include "quant/dequantize.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Pairs of tokens; pair p goes to experts p and p + 1, each slot with a weight of its own.
Route every_expert(const MoeLayer& layer) {
  const std::int64_t experts = layer.local_experts();
  Route route;
  route.tokens = 2 * std::max<std::int64_t>(experts, 2);
  route.top_k = std::min<std::int64_t>(experts, 2);
  for (std::int64_t slot = 0; slot < route.tokens * route.top_k; ++slot) {
    const std::int64_t pair = slot / route.top_k / 2;
    const std::int64_t expert = (pair + slot % route.top_k) % experts;
    route.ids.push_back(static_cast<std::int32_t>(layer.first_expert + expert));
    route.weights.push_back(0.5f + static_cast<float>(slot) * 0x1p-12f);
  }
  return route;
}

/// The power of two that brings the results of GEMM1 near 1, where no activation saturates: from
/// the root mean square of an up matrix.
int input_exponent(const MoeLayer& layer) {
  const ScaledMatrix& up = layer.experts.front().up;
  std::vector<double> values(to_size(up.rows * up.cols));
  dequantize(up, values);
  double squares = 0.0;
  for (const double value : values) squares += value * value;
  if (!std::isfinite(squares) || squares <= 0.0) return 0;
  int exponent = 0;
  std::frexp(squares / static_cast<double>(up.rows), &exponent);  // of a row, squared
  return std::clamp(-exponent / 2, -60, 60);
}

/// Signed powers of two, one in sixteen 0, as f32 [tokens, hidden]; the same in the first columns
/// whatever the padding is. The second token of a pair is the first one negated: each row of gate
/// and up is positive for one of them, so that no activation hides it.
std::vector<float> hidden_rows(std::int64_t tokens, std::int64_t hidden, std::int64_t padded,
                               int exponent) {
  std::vector<float> rows(to_size(tokens * padded));
  std::uint64_t state = 1;
  for (std::int64_t token = 0; token + 1 < tokens; token += 2) {
    for (std::int64_t col = 0; col < hidden; ++col) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const std::uint64_t bits = state >> 33;
      if (bits % 16 == 0) continue;
      const float magnitude = std::ldexp(1.0f, exponent - static_cast<int>(bits / 16 % 3));
      const float element = bits / 64 % 2 != 0 ? -magnitude : magnitude;
      rows[to_size(token * padded + col)] = element;
      rows[to_size((token + 1) * padded + col)] = -element;
    }
  }
  return rows;
}

}  // namespace

AuditTrial::AuditTrial(const MoeLayer& logical, int threads)
    : route_(every_expert(logical)),
      hidden_(logical.hidden),
      exponent_(input_exponent(logical)),
      threads_(threads) {}

ForwardResult AuditTrial::run(const MoeLayer& layer, bool keep_stages) const {
  const std::vector<float> rows = hidden_rows(route_.tokens, hidden_, layer.hidden, exponent_);
  ForwardOptions options;
  options.output = Format::f32;
  options.keep_stages = keep_stages;
  options.threads = threads_;
  return forward(layer, f32_matrix("hidden", rows.data(), route_.tokens, layer.hidden), route_,
                 options);
}

}  // namespace moeref
