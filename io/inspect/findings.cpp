#include "io/inspect/findings.hpp"

namespace moeref {

std::string_view name(Severity severity) {
  switch (severity) {
    case Severity::error:
      return "error";
    case Severity::warning:
      return "warning";
    case Severity::note:
      return "note";
  }
  return "";
}

void Findings::add(Severity severity, std::string_view code, std::string_view tensor,
                   std::string detail) {
  const NumberedName name = split_numbers(tensor);
  Gathered& gathered = gathered_[{severity, std::string(code), name.form}];
  if (gathered.group.size() == 0) {
    gathered.first = tensor;
    gathered.detail = std::move(detail);
  }
  gathered.group.add(name);
}

std::vector<Finding> Findings::list() const {
  std::vector<Finding> findings;
  for (const auto& [key, gathered] : gathered_) {
    findings.push_back({std::get<0>(key), std::get<1>(key), gathered.group.shown(),
                        gathered.group.size(), gathered.first, gathered.detail});
  }
  return findings;
}

}  // namespace moeref
