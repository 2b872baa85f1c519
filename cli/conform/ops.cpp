#include "cli/conform/ops.hpp"

#include <algorithm>
#include <array>

namespace moeref::conform {
namespace {

constexpr std::array kValueOperations{
    NamedOperation{"decode", run_decode},
    NamedOperation{"encode", run_encode},
    NamedOperation{"moe_block", run_moe_block},
    NamedOperation{"moe_routing", run_moe_routing},
};

constexpr std::array kAreas{
    layout_trtllm_operations, layout_nvidia_operations,   layout_marlin_operations,
    layout_triton_operations, layout_deepgemm_operations, layout_amd_operations,
    aiter_forward_operations, quantizer_operations,       gpu_operations,
    matrix_operations,        forward_operations};

std::vector<NamedOperation> collect() {
  std::vector<NamedOperation> all(kValueOperations.begin(), kValueOperations.end());
  for (const auto area : kAreas) {
    const auto operations = area();
    all.insert(all.end(), operations.begin(), operations.end());
  }
  return all;
}

}  // namespace

std::span<const NamedOperation> all_operations() {
  static const std::vector<NamedOperation> operations = collect();
  return operations;
}

Operation find_operation(std::string_view op) {
  const auto operations = all_operations();
  const auto found = std::find_if(operations.begin(), operations.end(),
                                  [&](const NamedOperation& entry) { return entry.op == op; });
  return found == operations.end() ? nullptr : found->run;
}

}  // namespace moeref::conform
