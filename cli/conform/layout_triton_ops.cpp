#include <array>

#include "cli/conform/memory_order.hpp"
#include "layout/tiles/triton.hpp"
#include "quant/error.hpp"

namespace moeref::conform {
namespace {

using Steps = std::vector<Step>;

/// params.mx_axis: whether K is the last axis, so that rows are as stored. Error: neither of the
/// last two.
bool k_is_last(const GoldenCase& golden, std::string_view input) {
  const auto rank = static_cast<std::int64_t>(golden.input(input).shape.size());
  const std::int64_t axis = golden.integer_param("mx_axis");
  const std::int64_t from_end = axis < 0 ? axis : axis - rank;
  if (from_end != -1 && from_end != -2) {
    fail(golden.path.string(), "mx_axis is {}; it must be one of the last two of {}", axis, rank);
  }
  return from_end == -1;
}

int stored_bits(const GoldenCase& golden, std::string_view input) {
  return info(golden.input(input).dtype).bits;
}

/// Rows of K: the last axis is K, or it is exchanged with the one before (FP4: repacked).
TensorStack rows_of_k(const GoldenCase& golden, std::string_view input, int bits, bool last_is_k) {
  return last_is_k ? matrices(golden, input, bits) : transposed_matrices(golden, input, bits);
}

OpResult run(const GoldenCase& golden, std::string_view input, const TensorStack& stack,
             const Steps& steps, bool keep_first = false) {
  return {{{"y", run_in_memory_order(golden, input, stack, steps, keep_first)}}, {}};
}

/// params: mx_axis, mma_version. in: x. out: y.
OpResult hopper_value(const GoldenCase& golden) {
  const Steps steps{Tile{tiles::hopper_mx_value(golden.integer_param("mma_version"))},
                    PermuteBits{tiles::hopper_mx_bits()}};
  return run(golden, "x", rows_of_k(golden, "x", 4, k_is_last(golden, "x")), steps);
}

/// params: mma_version. in: w [.., N, K / 2], whatever mx_axis the layout then has. out: y.
OpResult hopper_value_v35(const GoldenCase& golden) {
  const Steps steps{Tile{tiles::hopper_mx_value_v35(golden.integer_param("mma_version"))},
                    PermuteBits{tiles::hopper_mx_bits()}};
  return run(golden, "w", matrices(golden, "w", 4), steps);
}

/// params: mx_axis, num_warps. in: s. out: y.
OpResult hopper_scale(const GoldenCase& golden) {
  const Steps steps{Tile{tiles::hopper_mx_scale(golden.positive_param("num_warps"))}};
  return run(golden, "s", rows_of_k(golden, "s", stored_bits(golden, "s"), k_is_last(golden, "s")),
             steps);
}

/// in: s [.., K / 32, N]. out: y.
OpResult blackwell_scale(const GoldenCase& golden) {
  return run(golden, "s", transposed_matrices(golden, "s", stored_bits(golden, "s")),
             {Tile{tiles::blackwell_mx_scale()}}, true);
}

/// params: mode = batched. in: s [.., M, K / 32]. out: y.
OpResult blackwell_activation_scale(const GoldenCase& golden) {
  const std::string mode = golden.text_param("mode").value_or("batched");
  if (mode != "batched") {
    fail(golden.path.string(), "mode is '{}'; a tensor alone tells the layout of 'batched' only",
         mode);
  }
  return run(golden, "s", matrices(golden, "s", stored_bits(golden, "s")),
             {Tile{tiles::blackwell_mx_scale()}}, true);
}

/// in: x [.., K, N / 2]. out: y.
OpResult blackwell_value(const GoldenCase& golden) {
  return run(golden, "x", transposed_matrices(golden, "x", 4), {Tile{tiles::blackwell_mx_value()}});
}

/// params: block_k, block_n. in: x [.., K, N / 2]. out: y.
OpResult blackwell_value_shuffled(const GoldenCase& golden) {
  const Steps steps{Tile{tiles::blackwell_mx4_value_shuffled(golden.integer_param("block_k"),
                                                             golden.integer_param("block_n"))}};
  return run(golden, "x", transposed_matrices(golden, "x", 4), steps, true);
}

/// in: s [.., K / 32, N]. out: y.
OpResult cdna4_scale(const GoldenCase& golden) {
  return run(golden, "s", transposed_matrices(golden, "s", stored_bits(golden, "s")),
             {Tile{tiles::cdna4_mx_scale()}});
}

constexpr std::array kOperations{
    NamedOperation{"triton.BlackwellActMXScale", blackwell_activation_scale},
    NamedOperation{"triton.BlackwellMX4ValueShuffled", blackwell_value_shuffled},
    NamedOperation{"triton.BlackwellMXScale", blackwell_scale},
    NamedOperation{"triton.BlackwellMXValue", blackwell_value},
    NamedOperation{"triton.CDNA4MXScale", cdna4_scale},
    NamedOperation{"triton.HopperMXScale", hopper_scale},
    NamedOperation{"triton.HopperMXValue", hopper_value},
    NamedOperation{"triton.HopperMXValue.v35", hopper_value_v35},
};

}  // namespace

std::span<const NamedOperation> layout_triton_operations() { return kOperations; }

}  // namespace moeref::conform
