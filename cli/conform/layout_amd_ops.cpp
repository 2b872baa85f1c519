#include "cli/conform/layout_case.hpp"

namespace moeref::conform {

std::span<const NamedOperation> layout_amd_operations() { return {}; }

}  // namespace moeref::conform
