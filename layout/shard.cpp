#include "layout/shard.hpp"

#include <fmt/format.h>

#include "quant/error.hpp"

namespace moeref {
namespace {

void check_rank(const char* option, std::int64_t rank, std::int64_t size) {
  if (size < 1 || rank < 0 || rank >= size) {
    fail(option, "rank {}/{} does not exist; give R/N with N >= 1 and 0 <= R < N", rank, size);
  }
}

std::int64_t share_of(std::int64_t total, std::int64_t size, const char* option,
                      const std::string& what) {
  if (total % size != 0) {
    fail(option, "{} is {}, which {} ranks do not divide; choose a divisor of {}", what, total,
         size, total);
  }
  return total / size;
}

/// Gate and up by rows, down by columns.
Expert shard_expert(Expert expert, std::int64_t begin, std::int64_t share) {
  for (ScaledMatrix* by_rows : {&expert.gate, &expert.up}) {
    if (*by_rows) *by_rows = row_slice(*by_rows, begin, share);
  }
  for (ScaledMatrix* bias : {&expert.gate_bias, &expert.up_bias}) {
    if (*bias) *bias = col_slice(*bias, begin, share);
  }
  expert.down = col_slice(expert.down, begin, share);
  if (begin != 0) expert.down_bias = ScaledMatrix{};
  return expert;
}

void slice(std::vector<float>& values, std::int64_t begin, std::int64_t count) {
  if (!values.empty()) values = {values.begin() + begin, values.begin() + begin + count};
}

void keep_experts(MoeLayer& layer, std::int64_t begin, std::int64_t count) {
  layer.total_experts = layer.expert_count();
  layer.first_expert += begin;
  layer.experts = {layer.experts.begin() + begin, layer.experts.begin() + begin + count};
  slice(layer.activation.alphas, begin, count);
  slice(layer.activation.betas, begin, count);
  slice(layer.activation.limits, begin, count);
}

}  // namespace

MoeLayer shard(const MoeLayer& layer, const Shard& rank) {
  check_rank("--tp", rank.tp_rank, rank.tp_size);
  check_rank("--ep", rank.ep_rank, rank.ep_size);
  MoeLayer part = layer;
  if (rank.ep_size > 1) {
    const std::int64_t count =
        share_of(layer.local_experts(), rank.ep_size, "--ep", "the number of experts");
    keep_experts(part, rank.ep_rank * count, count);
    if (rank.ep_rank != 0) part.shared.reset();
  }
  if (rank.tp_size > 1) {
    part.intermediate = share_of(layer.intermediate, rank.tp_size, "--tp", "the intermediate size");
    for (Expert& expert : part.experts) {
      expert = shard_expert(expert, rank.tp_rank * part.intermediate, part.intermediate);
    }
    if (part.shared) {
      const std::int64_t width = share_of(part.shared->up.rows, rank.tp_size, "--tp",
                                          "the shared expert's intermediate size");
      part.shared = shard_expert(*part.shared, rank.tp_rank * width, width);
    }
  }
  return part;
}

MoeLayer tp_part(const MoeLayer& layer, std::int64_t begin, std::int64_t count) {
  MoeLayer part = layer;
  part.intermediate = count;
  part.shared.reset();
  for (Expert& expert : part.experts) expert = shard_expert(expert, begin, count);
  return part;
}

}  // namespace moeref
