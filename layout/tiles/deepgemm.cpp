#include "layout/tiles/families.hpp"

namespace moeref::tiles {

std::span<const NamedStep> deepgemm() { return {}; }

}  // namespace moeref::tiles
