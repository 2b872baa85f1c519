// moeref layout explain --find: where a logical element stands.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "cli/layout_commands.hpp"
#include "cli/layout_place.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

/// What --find asks for.
struct Wanted {
  std::optional<std::int64_t> expert;
  std::string projection;
  std::optional<std::int64_t> row;
  std::optional<std::int64_t> col;
};

Wanted parse_find(std::string text) {
  std::replace(text.begin(), text.end(), ',', ' ');
  Wanted wanted;
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    const std::string word = text.substr(at, end - at);
    at = end + 1;
    if (word.empty()) continue;
    if (word == "gate" || word == "up" || word == "down") {
      if (!wanted.projection.empty()) {
        fail("--find", "names {} and {}; name one", wanted.projection, word);
      }
      wanted.projection = word;
      continue;
    }
    const auto pairs = parse_pairs("--find", word, {"expert", "row", "col"});
    const std::int64_t value =
        parse_size("--find " + pairs.front().first, pairs.front().second, 0, INT64_MAX);
    auto& target = pairs.front().first == "expert" ? wanted.expert
                   : pairs.front().first == "row"  ? wanted.row
                                                   : wanted.col;
    if (target) fail("--find", "{} is given twice; give it once", pairs.front().first);
    target = value;
  }
  if (!wanted.expert) {
    fail("--find", "'{}' names no expert; write expert=3 gate row=17 col=5", text);
  }
  return wanted;
}

bool is_down(Slot slot) { return !is_w13(slot); }

/// The element of `tensor`. `of_weight`: rows and columns count those of the weight.
LogicalElement element_of(const PreparedLayer& layer, const PreparedTensor& tensor,
                          const Wanted& wanted, bool of_weight) {
  const Slot slot = source_slot(layer, tensor);
  const bool bias = is_bias(slot);
  if (!wanted.row || (!wanted.col && !bias)) {
    fail("--find", "needs row={} for {}; write expert=3 gate row=17{}",
         bias ? "" : " and col=", tensor.name, bias ? "" : " col=5");
  }
  LogicalElement element;
  element.slot = slot;
  element.expert = *wanted.expert;
  element.row = *wanted.row;
  element.col = bias ? 0 : *wanted.col;
  static constexpr std::array<std::string_view, 4> kProjections{"", "gate", "up", "down"};
  for (const std::string_view projection : kProjections) {
    if (projection == wanted.projection) element.projection = projection;
  }
  if (wanted.projection.empty() && layer.backend != nullptr) {
    if (!is_down(slot) && tensor.from->halves == 2) {
      fail("--find", "does not say which rows of {}: gate or up", tensor.name);
    }
    element.projection = is_down(slot) ? "down" : "up";
  }
  if (of_weight) {
    const LogicalExtent extent = logical_extent(layer, tensor);
    element.row /= extent.block_rows;
    element.col /= extent.block_cols;
  }
  return element;
}

struct Found {
  const PreparedTensor* tensor;
  LogicalElement element;
  std::vector<Meaning> places;
};

std::vector<Found> find_all(const Subject& subject, const Wanted& wanted) {
  const PreparedLayer& layer = subject.layer();
  std::vector<Found> all;
  for (const PreparedTensor& tensor : layer.tensors) {
    if (tensor.from == nullptr) continue;
    const bool named = subject.tensor == tensor.name;
    if (!subject.tensor.empty() && !named) continue;
    if (!named && layer.backend != nullptr) {
      if (wanted.projection.empty()) fail("--find", "does not say gate, up or down");
      const bool down = wanted.projection == "down";
      if (is_down(source_slot(layer, tensor)) != down) continue;
    }
    const LogicalElement element = element_of(layer, tensor, wanted, !named);
    all.push_back({&tensor, element, find_element(layer, tensor, element)});
  }
  return all;
}

void print_found(const Subject& subject, const Found& found) {
  if (found.places.empty()) {
    fmt::print("{}: not on this rank (expert {}, {} row {}, column {})\n", found.tensor->name,
               found.element.expert, found.element.projection, found.element.row,
               found.element.col);
    return;
  }
  fmt::print("{}: {}\n", found.tensor->name, describe(found.places.front().element));
  const auto bytes = subject.bytes(*found.tensor);
  const int whole = found.tensor->plan.map.element_bits;
  for (const Meaning& part : found.places) {
    std::string place = fmt::format("byte {:#x} ({})", part.bit / 8, part.bit / 8);
    if (part.bits % 8 != 0 || part.bit % 8 != 0) {
      place += ", " + bits_text("bit", part.bit % 8, part.bits, 8);
    }
    const std::string of = bits_text("bit", part.element_bit, part.bits, whole);
    if (!of.empty()) place += fmt::format(": {} of the element", of);
    if (!bytes.empty()) {
      place += fmt::format(" = {}", hex_bits(bits_at(bytes, part.bit, part.bits), part.bits));
    }
    fmt::print("  {}\n", place);
  }
}

/// Which of an expert's numbers is asked for: its only one, that of a half, or that of a row.
std::int64_t number_of(const Subject& subject, const PreparedTensor& tensor, const Wanted& wanted,
                       std::int64_t each) {
  if (each == 1) return 0;
  const std::int64_t halves = subject.layer().source->shape.halves();
  if (each == halves) {
    if (wanted.projection == "gate") return 0;
    if (wanted.projection == "up") return 1;
    fail("--find", "does not say which number of {}: gate or up", tensor.name);
  }
  // A row of the prepared matrix: all rows of its first half, then those of the second.
  if (!wanted.row) fail("--find", "needs row=, 0 to {} of {}", each - 1, tensor.name);
  if (*wanted.row >= each) {
    fail(tensor.name, "has {} rows for each expert, not row {}", each, *wanted.row);
  }
  return *wanted.row;
}

void find_scalar(const Subject& subject, const PreparedTensor& tensor, const Wanted& wanted,
                 const GlobalOptions& global) {
  const ScalarOwners owners = scalar_owners(subject, tensor);
  if (owners.each == 0) {
    explain_scalar(subject, tensor, 0, global);
    return;
  }
  const std::int64_t experts = owners.count / owners.each;
  const std::int64_t local = *wanted.expert - owners.first;
  if (local < 0 || local >= experts) {
    fail(tensor.name, "has experts {}..{}, not {}", owners.first, owners.first + experts - 1,
         *wanted.expert);
  }
  explain_scalar(subject, tensor,
                 local * owners.each + number_of(subject, tensor, wanted, owners.each), global);
}

}  // namespace

void explain_find(const Subject& subject, const std::string& text, const GlobalOptions& global) {
  const Wanted wanted = parse_find(text);
  if (!subject.tensor.empty()) {
    const PreparedTensor& tensor =
        subject.layer().tensors[find_tensor(subject.layer(), subject.tensor)];
    if (tensor.from == nullptr) {
      find_scalar(subject, tensor, wanted, global);
      return;
    }
  }
  const std::vector<Found> all = find_all(subject, wanted);
  if (!global.json) {
    for (const Found& found : all) print_found(subject, found);
    return;
  }
  json report = json::array();
  for (const Found& found : all) {
    json entry{{"tensor", found.tensor->name}, {"places", json::array()}};
    for (const Meaning& part : found.places) {
      json place = to_json(part);
      const auto bytes = subject.bytes(*found.tensor);
      if (!bytes.empty()) place["value"] = bits_at(bytes, part.bit, part.bits);
      entry["places"].push_back(std::move(place));
    }
    report.push_back(std::move(entry));
  }
  print_json(report);
}

}  // namespace moeref::cli
