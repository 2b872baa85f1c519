#pragma once

#include <map>
#include <string>
#include <vector>

#include "cli/conform/ops.hpp"
#include "engine/moe.hpp"

namespace moeref::conform {

/// A whole fused MoE of a golden case, ready to run.
struct ForwardCase {
  const Backend* backend = nullptr;
  KernelLayer kernel;
  Numerics numerics;
  NumericsLevel level = NumericsLevel::replay;
  Route route;
  ScaledMatrix hidden;
  ForwardOptions options;
  std::map<std::string, Tensor, std::less<>> prepared;  ///< the tensors that were made on the way
};

/// The layer of a case op `moe_forward`.
/// Inputs: hidden_states BF16 [T, H], topk_ids I32 and topk_weights F32 [T, J], the weights in the
/// order of the kernel: w13, w2 (in the file, or in the files that params.weights names, their
/// first params.w13_rows rows of w13), scales and biases; or those of a checkpoint
/// (params.checkpoint gptoss, deepseek_v4), which are prepared first. params: backend, model,
/// tokens, and those of the backend's kernels. Error: one line for what is missing or does not fit.
ForwardCase read_forward_case(const GoldenCase& golden);

}  // namespace moeref::conform
