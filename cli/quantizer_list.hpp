#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/commands.hpp"

namespace moeref::cli {

/// Every quantizer with all that explain_quantizer shows.
nlohmann::json quantizers_json();
/// One line a quantizer.
void list_quantizers(const GlobalOptions& global);
/// Formula, special values, source, options of one. Error: an unknown name.
void explain_quantizer(const std::string& name, const GlobalOptions& global);

}  // namespace moeref::cli
