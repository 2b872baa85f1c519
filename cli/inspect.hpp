#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "io/inspect/inspect.hpp"

namespace moeref::cli {

/// The report as a page: one line a group of tensors, then the findings, worst first.
std::string report_text(const InspectReport& report);
/// The same for programs. Counts and extremes as numbers; a value that no finite element gives is
/// null.
nlohmann::json report_json(const InspectReport& report);

}  // namespace moeref::cli
