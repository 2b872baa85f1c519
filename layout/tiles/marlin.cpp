#include "layout/tiles/families.hpp"

namespace moeref::tiles {

std::span<const NamedStep> marlin() { return {}; }

}  // namespace moeref::tiles
