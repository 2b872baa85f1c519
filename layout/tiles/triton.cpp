#include "layout/tiles/families.hpp"

namespace moeref::tiles {

std::span<const NamedStep> triton() { return {}; }

}  // namespace moeref::tiles
