#include "layout/recoder.hpp"

#include <stdexcept>

namespace moeref {

void Recoder::restore(const Place&, std::span<const std::byte>, std::span<std::byte>) const {
  throw std::logic_error(name() + " cannot be inverted");
}

}  // namespace moeref
