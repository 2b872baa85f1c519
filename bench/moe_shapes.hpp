#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bench/bench_context.hpp"
#include "engine/routing.hpp"
#include "quant/moe_layer.hpp"

namespace moeref::bench {

/// A layer of a published model's sizes.
struct MoeShape {
  const char* name;
  const char* weights;  ///< a form of random_weight
  std::int64_t hidden;
  std::int64_t intermediate;
  std::int64_t experts;
  std::int64_t top_k;
  bool gated;
};
std::span<const MoeShape> moe_shapes();

/// A layer of random weights. Experts are as many as together are larger than every cache, then the
/// same again: each reads memory as if it had its own.
struct BenchLayer {
  std::vector<Operand> operands;
  MoeLayer layer;
  std::int64_t bytes_per_expert = 0;
};
std::unique_ptr<const BenchLayer> make_layer(const MoeShape& shape);

/// Every expert gets as many slots as any other, or one more.
Route even_route(std::int64_t tokens, std::int64_t top_k, std::int64_t experts);

}  // namespace moeref::bench
