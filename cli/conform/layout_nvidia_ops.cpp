#include <array>

#include "cli/conform/layout_case.hpp"

namespace moeref::conform {
namespace {

/// params: swap_halves (true: in.w13 is gate, up; false: already up, gate), gated.
GateOrder half_order(const GoldenCase& golden) {
  if (!flag_param(golden, "gated", true)) return GateOrder::none;
  return flag_param(golden, "swap_halves", false) ? GateOrder::gate_up : GateOrder::up_gate;
}

OpResult prepare_trtllm_nvfp4(const GoldenCase& golden) {
  return {run_backend("flashinfer_trtllm_nvfp4", {},
                      case_layer(golden, half_order(golden), "nvfp4", 4)),
          {}};
}

constexpr std::array kOperations{
    NamedOperation{"prepare_trtllm_nvfp4", prepare_trtllm_nvfp4},
};

}  // namespace

std::span<const NamedOperation> layout_nvidia_operations() { return kOperations; }

}  // namespace moeref::conform
