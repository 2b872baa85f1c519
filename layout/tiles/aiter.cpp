#include "layout/tiles/families.hpp"

namespace moeref::tiles {

std::span<const NamedStep> aiter() { return {}; }

}  // namespace moeref::tiles
