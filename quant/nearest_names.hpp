#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moeref {

/// The names among `candidates` nearest to `wanted`, best first, at most `count`. Names are
/// compared part by part (parts lie between '.' or '/'): a part that lacks or is too many costs
/// little, a misspelt one its edit distance, another number (of a layer, of an expert) more than a
/// misspelling. Ties: longest common suffix, longest common prefix, order of names.
std::vector<std::string> nearest_names(std::string_view wanted,
                                       std::span<const std::string> candidates,
                                       std::size_t count = 3);

}  // namespace moeref
