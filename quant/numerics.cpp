#include "quant/numerics.hpp"

namespace moeref {

std::string_view name(NumericsLevel level) {
  switch (level) {
    case NumericsLevel::reference:
      return "reference";
    case NumericsLevel::backend:
      return "backend";
    case NumericsLevel::replay:
      break;
  }
  return "replay";
}

std::string_view name(ReplayEvidence evidence) {
  switch (evidence) {
    case ReplayEvidence::measured:
      return "measured";
    case ReplayEvidence::derived:
      return "derived";
    case ReplayEvidence::none:
      break;
  }
  return "none";
}

}  // namespace moeref
