#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.hpp"
#include "engine/moe.hpp"
#include "io/checkpoint.hpp"
#include "io/layer_inputs.hpp"
#include "layout/prepare.hpp"
#include "layout/shard.hpp"
#include "quant/tensor.hpp"

namespace moeref::cli {

/// What decides the result of one case, beside the checkpoint and its inputs.
struct CaseOptions {
  std::string backend = "reference";
  std::vector<std::string> backend_options;  ///< key=value
  NumericsLevel level = NumericsLevel::reference;
  std::vector<std::string> kernel_options;  ///< key=value
  std::string routing;                      ///< of all_routing_kernels(); empty = reference
  /// The model's routed scaling factor is not in the router weights; the combine multiplies by it.
  bool scales_in_combine = false;
  Shard shard;
  Format output = Format::bf16;
  bool stages = false;
  bool weights = false;  ///< also write the weights as the backend prepares them
  const std::map<std::string, Tensor, std::less<>>* given = nullptr;  ///< ForwardOptions::given
};

/// One computed layer: the routing, the output, the stages if asked for.
struct ComputedCase {
  std::vector<float> logits;  ///< [tokens, experts]; empty if the routing was given
  Route route;
  RowOrder rows = RowOrder::slots;  ///< of the stages between the GEMMs
  ForwardResult result;
};

/// Error: a name that is none of reference, backend, replay.
NumericsLevel parse_level(const std::string& name);

/// What `options` leave to be found out before anything is computed. Error: options that the
/// backend or its kernels do not take, replay of a backend that has none, or options that go with
/// other numerics.
void check_numerics(const CaseOptions& options);

/// Error: a weight format that the backend does not take.
void check_format(const Backend& backend, const MoeLayer& layer);

/// Error: the layer, prepared for a backend, has no numerics with these options, which are not
/// reference.
void check_layer_numerics(const PreparedLayer& prepared, const MoeLayer& layer,
                          const CaseOptions& options);

/// Routes (unless the inputs bring a routing) and runs the layer's shard. Numerics backend and
/// replay: on the weights that the backend prepares, as its kernel reads them.
ComputedCase compute_case(const MoeLayer& layer, const LayerInputs& inputs,
                          const CaseOptions& options, const GlobalOptions& global,
                          const std::string& label);

/// Tensors out.* of a case: router_logits, topk_ids, topk_weights (if the layer routed itself),
/// stages, alternative.final.ORDER (other orders of addition that the kernel may take, where they
/// give other bits), final.
std::vector<Tensor> output_tensors(const MoeLayer& layer, const ComputedCase& computed,
                                   const CaseOptions& options);

/// Error: hidden states that bounds cannot be derived for.
void check_boundable(const LayerInputs& inputs);

/// Tensors low.final and high.final: the interval for every implementation that computes in f32, in
/// any order, from the same routing, and rounds once to the output type. Error: hidden states that
/// are not plain floats.
std::vector<Tensor> bound_tensors(const MoeLayer& layer, const LayerInputs& inputs,
                                  const ComputedCase& computed, const CaseOptions& options,
                                  const GlobalOptions& global);

/// The metadata "params" of a case: all that is needed to compute it again.
/// The checkpoint is named by its folder alone, so that the same job gives the same bytes wherever
/// it runs.
nlohmann::json case_params(const std::filesystem::path& checkpoint, const MoeLayer& layer,
                           const LayerInputs& inputs, const CaseOptions& options,
                           std::int64_t top_k, RowOrder rows);

/// The text of `params` for a file's metadata.
std::string metadata_text(const nlohmann::json& params);

/// Lower-case hexadecimal SHA-256 of a tensor's bytes.
std::string sha256(std::span<const std::byte> bytes);

}  // namespace moeref::cli
