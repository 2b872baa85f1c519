#include "layout/axis_table.hpp"

namespace moeref {

AxisTable::AxisTable(std::int64_t size) {
  entries_.reserve(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i) entries_.push_back(AxisEntry::index(i));
}

void AxisTable::permute(std::int64_t size,
                        const std::function<std::int64_t(std::int64_t)>& source) {
  std::vector<AxisEntry> permuted;
  permuted.reserve(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i) permuted.push_back((*this)[source(i)]);
  entries_ = std::move(permuted);
}

void AxisTable::pad_parts(std::int64_t parts, std::int64_t part_size, int step, std::byte fill) {
  const std::int64_t present = size() / parts;
  std::vector<AxisEntry> padded;
  padded.reserve(static_cast<std::size_t>(parts * part_size));
  for (std::int64_t part = 0; part < parts; ++part) {
    for (std::int64_t i = 0; i < part_size; ++i) {
      padded.push_back(i < present ? (*this)[part * present + i] : AxisEntry::pad(step, fill));
    }
  }
  entries_ = std::move(padded);
}

AxisInverse::AxisInverse(const AxisTable& table, std::int64_t inputs)
    : outputs_(static_cast<std::size_t>(inputs)) {
  for (std::int64_t out = 0; out < table.size(); ++out) {
    const AxisEntry entry = table[out];
    if (!entry.is_pad()) outputs_[static_cast<std::size_t>(entry.index())].push_back(out);
  }
}

}  // namespace moeref
