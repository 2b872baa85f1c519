#include "layout/tiles/families.hpp"

namespace moeref::tiles {

std::span<const NamedStep> sm90() { return {}; }

}  // namespace moeref::tiles
