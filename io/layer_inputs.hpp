#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "quant/scaled_matrix.hpp"
#include "quant/tensor.hpp"

namespace moeref {

/// What goes into a layer: hidden states in any activation format, token ids where a layer routes
/// by them, and the routing if it is given from outside.
struct LayerInputs {
  std::string origin;                   ///< the file they come from, for messages; empty = random
  ScaledMatrix hidden;                  ///< [tokens, hidden]
  std::vector<std::int64_t> input_ids;  ///< [tokens], or empty
  std::vector<std::int32_t> topk_ids;   ///< [tokens, top_k], or empty: the layer routes itself
  std::vector<float> topk_weights;      ///< [tokens, top_k]
  std::int64_t top_k = 0;               ///< of the given routing
  std::vector<TensorView>
      tensors;  ///< everything above under its own name, for writing it out again
  std::vector<std::shared_ptr<const void>> storage;
};

/// Reads inputs from a safetensors file; names may carry the prefix "in." of a golden case.
///   hidden_states (or hidden)  BF16, F16, F32 [tokens, hidden]
///                              F8_E4M3 [tokens, hidden] with hidden_states_scale F32 [], [1],
///                              [tokens], [tokens, 1] or [tokens, ceil(hidden / 128)], or F8_E8M0 /
///                              U8 [tokens, hidden / 32] (MXFP8) U8 [tokens, hidden / 2] (packed
///                              FP4) with hidden_states_scale F8_E8M0 / U8 [tokens, hidden / 32]
///                              (MXFP4) or F8_E4M3 [tokens, hidden / 16] (NVFP4), the latter with
///                              hidden_states_global_scale F32 [] (multiplied) if there is one
///   input_ids                  I64 or I32 [tokens]
///   topk_ids, topk_weights     I32 or I64 [tokens, top_k] and F32 or BF16 [tokens, top_k], both or
///   none
/// Error: missing tensors, shapes or dtypes that are none of these, `hidden` differs from the
/// layer's.
LayerInputs read_layer_inputs(const std::filesystem::path& path, std::int64_t hidden);

/// bf16 hidden states that are a function of (seed, token, column) alone: the first tokens do not
/// depend on their number. `vocabulary` > 0 also draws token ids below it.
LayerInputs random_layer_inputs(std::int64_t tokens, std::int64_t hidden, std::uint64_t seed,
                                std::int64_t vocabulary);

}  // namespace moeref
