#include "layout/close_names.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

namespace moeref {
namespace {

std::size_t edit_distance(std::string_view from, std::string_view to) {
  std::vector<std::size_t> row(to.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < from.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < to.size(); ++j) {
      const std::size_t replaced = diagonal + (from[i] == to[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string close_names(std::string_view wanted, std::span<const std::string_view> names) {
  constexpr std::size_t kShown = 3;
  std::vector<std::string_view> ranked(names.begin(), names.end());
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](std::string_view left, std::string_view right) {
                     return edit_distance(wanted, left) < edit_distance(wanted, right);
                   });
  ranked.resize(std::min(ranked.size(), kShown));
  std::string text(ranked.front());
  for (std::size_t i = 1; i < ranked.size(); ++i) {
    text += i + 1 == ranked.size() ? " or " : ", ";
    text += ranked[i];
  }
  return text;
}

}  // namespace moeref
