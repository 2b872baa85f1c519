#include "layout/explain.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "quant/error.hpp"

namespace moeref {
namespace {

/// One axis of a projection's tensor: the whole model's, and where the rank's part of it begins.
struct WholeAxis {
  std::int64_t size;
  std::int64_t block;
  std::int64_t begin;
};

/// `weight_size`, `weight_begin`: in weight rows or columns.
WholeAxis whole_axis(std::int64_t weight_size, std::int64_t weight_begin, std::int64_t local,
                     std::int64_t block) {
  if (block == kWholeAxis) return {1, std::max<std::int64_t>(weight_size, 1), 0};
  const std::int64_t begin = weight_begin / block;
  return {std::max(ceil_div(weight_size, block), begin + local), block, begin};
}

/// Both axes of the tensor that a matrix is made from.
struct Whole {
  Slot slot;
  WholeAxis rows;
  WholeAxis cols;
};

Whole whole_of(const PreparedLayer& layer, const PreparedTensor& tensor) {
  const Slot slot = source_slot(layer, tensor);
  const TensorStack& stack = *tensor.from;
  const LayerShape& shape = layer.source->shape;
  if (layer.backend == nullptr) {
    return {slot, {stack.half_rows, stack.block_rows, 0}, {stack.cols, stack.block_cols, 0}};
  }
  const bool cut_rows = is_w13(slot);
  const bool cut_cols = slot == Slot::w2 || slot == Slot::w2_scale;
  const std::int64_t weight_cols = is_bias(slot) ? 1
                                   : cut_cols    ? shape.full_intermediate
                                                 : shape.hidden;
  return {slot,
          whole_axis(cut_rows ? shape.full_intermediate : shape.hidden,
                     cut_rows ? layer.range.begin : 0, stack.half_rows, stack.block_rows),
          whole_axis(weight_cols, cut_cols ? layer.range.begin : 0, stack.cols, stack.block_cols)};
}

std::string_view projection_of(const PreparedLayer& layer, const TensorStack& stack, Slot slot,
                               std::int64_t half) {
  if (stack.halves == 2) return half == 0 ? "gate" : "up";
  if (layer.backend == nullptr) return "";
  return is_w13(slot) ? "up" : "down";
}

LogicalElement element_at(const PreparedLayer& layer, const TensorStack& stack, const Whole& whole,
                          std::int64_t expert, std::int64_t row, std::int64_t col) {
  LogicalElement element;
  element.slot = whole.slot;
  element.expert = layer.source->shape.first_expert + expert;
  element.projection = projection_of(layer, stack, whole.slot, row / stack.half_rows);
  element.row = whole.rows.begin + row % stack.half_rows;
  element.col = whole.cols.begin + col;
  element.block_rows = whole.rows.block;
  element.block_cols = whole.cols.block;
  return element;
}

/// One bit of a prepared tensor: which bit of which placed element of which local expert it is.
struct Spot {
  std::int64_t expert;
  std::int64_t place;
  int element_bit;
};

Spot spot_of(const IndexMap& map, std::int64_t bit) {
  const std::int64_t expert_bits = map.out_elements() * map.element_bits;
  std::int64_t inside = bit % expert_bits;
  if (map.words) inside = inside / 32 * 32 + map.words->source(static_cast<int>(inside % 32));
  return {bit / expert_bits, inside / map.element_bits,
          static_cast<int>(inside % map.element_bits)};
}

/// One bit.
Meaning part_at(std::int64_t bit, int element_bit) {
  Meaning part;
  part.bit = bit;
  part.bits = 1;
  part.element_bit = element_bit;
  return part;
}

Meaning meaning_of(const PreparedLayer& layer, const PreparedTensor& tensor, const Whole& whole,
                   std::int64_t bit, const Spot& spot) {
  const IndexMap& map = tensor.plan.map;
  const Origin origin = map.origin(spot.place);
  Meaning meaning = part_at(bit, 0);
  if (origin.pad) {
    meaning.pad = true;
    meaning.pad_step = map.pad_steps[static_cast<std::size_t>(origin.pad_step)];
    meaning.fill = origin.fill;
  } else {
    meaning.element = element_at(layer, *tensor.from, whole, spot.expert, origin.row, origin.col);
    meaning.element_bit = spot.element_bit;
  }
  return meaning;
}

bool is_same_element(const LogicalElement& left, const LogicalElement& right) {
  return left.expert == right.expert && left.projection == right.projection &&
         left.row == right.row && left.col == right.col;
}

/// Whether the bit that `next` is follows those of `last`.
bool continues(const Meaning& last, const Meaning& next) {
  if (last.pad || next.pad) {
    return last.pad && next.pad && last.pad_step == next.pad_step && last.fill == next.fill;
  }
  return is_same_element(last.element, next.element) &&
         last.element_bit + last.bits == next.element_bit;
}

/// Places of an axis after its steps that hold input `index`.
std::vector<std::int64_t> places_of(const AxisTable& axis, std::int64_t index) {
  std::vector<std::int64_t> places;
  for (std::int64_t out = 0; out < axis.size(); ++out) {
    if (!axis[out].is_pad() && axis[out].index() == index) places.push_back(out);
  }
  return places;
}

/// The half that a projection's rows are, or -1.
int half_of(const PreparedLayer& layer, const TensorStack& stack, Slot slot,
            std::string_view projection) {
  for (int half = 0; half < stack.halves; ++half) {
    if (projection_of(layer, stack, slot, half) == projection) return half;
  }
  return -1;
}

/// Error: the model has no such element.
void check_element(const PreparedLayer& layer, const PreparedTensor& tensor, const Whole& whole,
                   const LogicalElement& element) {
  const auto check = [&tensor](std::int64_t value, std::int64_t size, std::string_view what) {
    if (value < 0 || value >= size) {
      fail(tensor.name, "{} {} does not exist; there are {}, counted from 0", what, value, size);
    }
  };
  check(element.expert, logical_extent(layer, tensor).experts, "expert");
  if (half_of(layer, *tensor.from, whole.slot, element.projection) < 0) {
    const auto name_of = [&](int half) {
      const std::string_view known = projection_of(layer, *tensor.from, whole.slot, half);
      return known.empty() ? std::string_view("no projection") : known;
    };
    fail(tensor.name, "has no '{}' rows; it holds {}{}{}", element.projection, name_of(0),
         tensor.from->halves == 2 ? " and " : "", tensor.from->halves == 2 ? name_of(1) : "");
  }
  check(element.row, whole.rows.size, "row");
  check(element.col, whole.cols.size, "column");
}

/// "weight row 17" or "weight rows 128..255".
std::string range_text(std::string_view what, std::int64_t index, std::int64_t block) {
  if (block == 1) return fmt::format("{} {}", what, index);
  return fmt::format("{}s {}..{}", what, index * block, (index + 1) * block - 1);
}

}  // namespace

Slot source_slot(const PreparedLayer& layer, const PreparedTensor& tensor) {
  for (int i = 0; i < kSlotCount; ++i) {
    const auto slot = static_cast<Slot>(i);
    if (tensor.from != nullptr && layer.source->find(slot) == tensor.from) return slot;
  }
  fail(tensor.name, "holds factors made from scalars; it has no rows and columns to explain");
}

LogicalExtent logical_extent(const PreparedLayer& layer, const PreparedTensor& tensor) {
  const Whole whole = whole_of(layer, tensor);
  const LayerShape& shape = layer.source->shape;
  return {std::max(shape.total_experts, shape.first_expert + tensor.from->experts), whole.rows.size,
          whole.cols.size, whole.rows.block, whole.cols.block};
}

std::vector<Meaning> explain_bits(const PreparedLayer& layer, const PreparedTensor& tensor,
                                  std::int64_t first, std::int64_t count) {
  const Whole whole = whole_of(layer, tensor);
  const std::int64_t bits = byte_count(tensor) * 8;
  if (first < 0 || count < 0 || first > bits || count > bits - first) {
    fail(tensor.name, "byte {} is outside; the tensor has {} bytes", first / 8, bits / 8);
  }
  std::vector<Meaning> meanings;
  for (std::int64_t bit = first; bit < first + count; ++bit) {
    Meaning next = meaning_of(layer, tensor, whole, bit, spot_of(tensor.plan.map, bit));
    if (!meanings.empty() && continues(meanings.back(), next)) {
      ++meanings.back().bits;
    } else {
      meanings.push_back(std::move(next));
    }
  }
  return meanings;
}

std::vector<Meaning> explain_byte(const PreparedLayer& layer, const PreparedTensor& tensor,
                                  std::int64_t byte) {
  const std::int64_t bytes = byte_count(tensor);
  if (byte < 0 || byte >= bytes) {
    fail(tensor.name, "byte {} is outside; the tensor has {} bytes", byte, bytes);
  }
  return explain_bits(layer, tensor, byte * 8, 8);
}

std::vector<Meaning> bits_of_place(const IndexMap& map, std::int64_t expert, std::int64_t place) {
  const std::int64_t expert_bits = map.out_elements() * map.element_bits;
  std::vector<Meaning> meanings;
  for (int element_bit = 0; element_bit < map.element_bits; ++element_bit) {
    std::int64_t bit = place * map.element_bits + element_bit;
    if (map.words) bit = bit / 32 * 32 + map.words->target(static_cast<int>(bit % 32));
    bit += expert * expert_bits;
    const bool follows = !meanings.empty() && meanings.back().bit + meanings.back().bits == bit;
    if (follows) {
      ++meanings.back().bits;
    } else {
      meanings.push_back(part_at(bit, element_bit));
    }
  }
  return meanings;
}

std::vector<Meaning> find_element(const PreparedLayer& layer, const PreparedTensor& tensor,
                                  const LogicalElement& element) {
  const Whole whole = whole_of(layer, tensor);
  if (whole.slot != element.slot) return {};
  check_element(layer, tensor, whole, element);
  const TensorStack& stack = *tensor.from;
  const IndexMap& map = tensor.plan.map;
  const std::int64_t expert = element.expert - layer.source->shape.first_expert;
  const std::int64_t row = element.row - whole.rows.begin;
  const std::int64_t col = element.col - whole.cols.begin;
  const bool owned = expert >= 0 && expert < stack.experts && row >= 0 && row < stack.half_rows &&
                     col >= 0 && col < stack.cols;
  if (!owned) return {};
  const int half = half_of(layer, stack, whole.slot, element.projection);
  const auto columns = places_of(map.cols, col);
  std::vector<Meaning> meanings;
  for (const std::int64_t out_row : places_of(map.rows, half * stack.half_rows + row)) {
    for (const std::int64_t out_col : columns) {
      for (Meaning& part : bits_of_place(map, expert, map.place_of(out_row, out_col))) {
        part.element = element_at(layer, stack, whole, expert, half * stack.half_rows + row, col);
        meanings.push_back(std::move(part));
      }
    }
  }
  std::sort(meanings.begin(), meanings.end(),
            [](const Meaning& left, const Meaning& right) { return left.bit < right.bit; });
  return meanings;
}

std::string describe(const LogicalElement& element) {
  const std::string of = element.projection.empty() ? "" : std::string(element.projection) + " ";
  if (is_bias(element.slot)) {
    return fmt::format("expert {}, {}bias of row {}", element.expert, of, element.row);
  }
  if (is_scale(element.slot)) {
    return fmt::format("expert {}, {}scale row {}, column {} ({}, {})", element.expert, of,
                       element.row, element.col,
                       range_text("weight row", element.row, element.block_rows),
                       range_text("column", element.col, element.block_cols));
  }
  return fmt::format("expert {}, {}row {}, column {}", element.expert, of, element.row,
                     element.col);
}

std::string describe(const Meaning& meaning) {
  if (!meaning.pad) return describe(meaning.element);
  return fmt::format("padding by {}, 0x{:02X}", meaning.pad_step,
                     std::to_integer<int>(meaning.fill));
}

}  // namespace moeref
