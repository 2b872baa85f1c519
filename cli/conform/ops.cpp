#include "cli/conform/ops.hpp"

#include <algorithm>
#include <array>

namespace moeref::conform {
namespace {

constexpr std::array kOperations{
    NamedOperation{"decode", run_decode},
    NamedOperation{"encode", run_encode},
    NamedOperation{"moe_block", run_moe_block},
    NamedOperation{"moe_routing", run_moe_routing},
};

}  // namespace

std::span<const NamedOperation> all_operations() { return kOperations; }

Operation find_operation(std::string_view op) {
  const auto found = std::find_if(kOperations.begin(), kOperations.end(),
                                  [&](const NamedOperation& entry) { return entry.op == op; });
  return found == kOperations.end() ? nullptr : found->run;
}

}  // namespace moeref::conform
