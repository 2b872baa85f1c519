#include "quant/nearest_names.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <tuple>
#include <unordered_map>

namespace moeref {
namespace {

constexpr std::string_view kSeparators = "._-/";
constexpr std::size_t kMaxParts = 64;      // of a name; more are cut off in front
constexpr std::size_t kMaxPartBytes = 64;  // of a part; more are cut off in front
constexpr int kOtherNumber = 5;            // "experts.3" for "experts.4"

using Parts = std::vector<std::string_view>;

Parts split(std::string_view name) {
  Parts parts;
  while (true) {
    const std::size_t at = name.find_last_of(kSeparators);
    const bool is_last = at == name.npos || parts.size() + 1 == kMaxParts;
    parts.push_back(name.substr(at + 1));  // npos + 1 = 0: the whole name
    if (is_last) break;
    name = name.substr(0, at);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

bool is_number(std::string_view part) {
  return !part.empty() &&
         std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// Of a part that one name has and the other lacks.
int cost_of_presence(std::string_view part) {
  return 3 + static_cast<int>(std::min(part.size(), kMaxPartBytes) / 4);
}

/// Levenshtein distance of the last 64 bytes; `limit` if it is that or more.
int edit_distance(std::string_view from, std::string_view to, int limit) {
  const auto cut = [](std::string_view part) {
    return part.size() > kMaxPartBytes ? part.substr(part.size() - kMaxPartBytes) : part;
  };
  from = cut(from);
  to = cut(to);
  const auto from_size = static_cast<int>(from.size());
  const auto to_size = static_cast<int>(to.size());
  if (std::abs(from_size - to_size) >= limit) return limit;
  // Only cells with |row - col| < limit can hold less than `limit`.
  std::array<int, kMaxPartBytes + 1> row;
  for (int col = 0; col <= to_size; ++col)
    row[static_cast<std::size_t>(col)] = std::min(col, limit);
  for (int i = 1; i <= from_size; ++i) {
    const int begin = std::max(1, i - limit + 1);
    const int end = std::min(to_size, i + limit - 1);
    int diagonal = row[static_cast<std::size_t>(begin - 1)];
    row[static_cast<std::size_t>(begin - 1)] = begin == 1 ? std::min(i, limit) : limit;
    for (int col = begin; col <= end; ++col) {
      const auto at = static_cast<std::size_t>(col);
      const bool is_equal = from[static_cast<std::size_t>(i - 1)] == to[at - 1];
      const int above = col == i + limit - 1 ? limit : row[at];  // outside the band
      const int best = std::min({diagonal + (is_equal ? 0 : 1), above + 1, row[at - 1] + 1, limit});
      diagonal = row[at];
      row[at] = best;
    }
  }
  return row[static_cast<std::size_t>(to_size)];
}

int cost_of_change(std::string_view from, std::string_view to) {
  if (from == to) return 0;
  if (is_number(from) && is_number(to)) return kOtherNumber;
  const int both = cost_of_presence(from) + cost_of_presence(to);
  return 1 + edit_distance(from, to, both - 1);
}

/// The distance of many names to one. Names share a small vocabulary of parts, so each pair of
/// parts is compared once.
class NameDistance {
 public:
  explicit NameDistance(std::string_view wanted) : wanted_(split(wanted)) {
    for (const std::string_view part : wanted_) presence_.push_back(cost_of_presence(part));
  }

  int operator()(std::string_view candidate) {
    // row[i]: cost of turning the first i parts of `wanted` into the parts of the candidate seen so
    // far
    std::vector<int>& row = row_;
    row.assign(wanted_.size() + 1, 0);
    std::partial_sum(presence_.begin(), presence_.end(), row.begin() + 1);
    for (const std::string_view part : split(candidate)) {
      const PartCosts& costs = costs_of(part);
      int diagonal = row[0];
      row[0] += costs.presence;
      for (std::size_t i = 1; i < row.size(); ++i) {
        const int best = std::min({diagonal + costs.change[i - 1], row[i] + costs.presence,
                                   row[i - 1] + presence_[i - 1]});
        diagonal = row[i];
        row[i] = best;
      }
    }
    return row.back();
  }

 private:
  struct PartCosts {
    int presence;
    std::vector<int> change;  // from each part of `wanted`
  };

  const PartCosts& costs_of(std::string_view part) {
    const auto [at, is_new] = vocabulary_.try_emplace(part);
    if (is_new) {
      at->second.presence = cost_of_presence(part);
      for (const std::string_view from : wanted_)
        at->second.change.push_back(cost_of_change(from, part));
    }
    return at->second;
  }

  Parts wanted_;
  std::vector<int> presence_;
  std::vector<int> row_;
  std::unordered_map<std::string_view, PartCosts> vocabulary_;
};

template <typename Iterator>
std::ptrdiff_t common_length(Iterator left, Iterator left_end, Iterator right, Iterator right_end) {
  return std::mismatch(left, left_end, right, right_end).first - left;
}

}  // namespace

std::vector<std::string> nearest_names(std::string_view wanted,
                                       std::span<const std::string> candidates, std::size_t count) {
  struct Ranked {
    int cost;
    std::ptrdiff_t other_suffix;  // negated length in common, so that less is better
    std::ptrdiff_t other_prefix;
    std::string_view name;
    auto key() const { return std::tie(cost, other_suffix, other_prefix, name); }
  };
  NameDistance distance(wanted);
  std::vector<Ranked> ranked;
  ranked.reserve(candidates.size());
  for (const std::string_view name : candidates) {
    ranked.push_back(
        {distance(name), -common_length(name.rbegin(), name.rend(), wanted.rbegin(), wanted.rend()),
         -common_length(name.begin(), name.end(), wanted.begin(), wanted.end()), name});
  }
  std::sort(ranked.begin(), ranked.end(),
            [](const Ranked& left, const Ranked& right) { return left.key() < right.key(); });
  std::vector<std::string> nearest;
  for (const Ranked& candidate : ranked) {
    if (nearest.size() == count) break;
    if (nearest.empty() || nearest.back() != candidate.name) nearest.emplace_back(candidate.name);
  }
  return nearest;
}

}  // namespace moeref
