#pragma once

#include <span>
#include <string>
#include <string_view>

namespace moeref {

/// The few of `names` with the smallest edit distance to `wanted`, for a message: "a, b or c".
/// Ties: the order of `names`, which is not empty.
std::string close_names(std::string_view wanted, std::span<const std::string_view> names);

}  // namespace moeref
