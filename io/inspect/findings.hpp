#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "io/inspect/name_group.hpp"

namespace moeref {

/// How sure it is that something is wrong.
enum class Severity : std::uint8_t {
  error,    ///< no reader can make sense of it: NaN scales, missing tensors
  warning,  ///< readable, but very likely not what was meant
  note,     ///< legal, and a known trap for some reader
};
std::string_view name(Severity severity);

/// One kind of thing found, on all tensors of one form of name.
struct Finding {
  Severity severity = Severity::note;
  std::string code;     ///< "scale.nan": stable, for scripts
  std::string tensors;  ///< the group's name, see NameGroup
  std::int64_t count = 0;
  std::string first;   ///< the first tensor
  std::string detail;  ///< what is the matter with the first, and what that means
};

/// Gathers findings; the same code on tensors of the same form is one finding.
class Findings {
 public:
  void add(Severity severity, std::string_view code, std::string_view tensor, std::string detail);
  /// Errors first, then by code and name.
  std::vector<Finding> list() const;

 private:
  struct Gathered {
    NameGroup group;
    std::string first;
    std::string detail;
  };
  std::map<std::tuple<Severity, std::string, std::string>, Gathered> gathered_;
};

}  // namespace moeref
