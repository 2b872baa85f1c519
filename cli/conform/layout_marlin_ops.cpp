#include "cli/conform/layout_case.hpp"

namespace moeref::conform {

std::span<const NamedOperation> layout_marlin_operations() { return {}; }

}  // namespace moeref::conform
