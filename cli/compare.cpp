#include "cli/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>

#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

constexpr std::size_t kListed = 5;

/// An element as a number, as bits, and as a position on the line of its type's values.
struct Element {
  double value;
  std::uint64_t bits;
  std::int64_t rank;  ///< neighbours differ by 1; -0 and +0 are equal
};

bool is_integer(DType dtype) { return dtype == DType::i32 || dtype == DType::i64; }

std::int64_t rank_of(std::uint64_t bits, int width) {
  const std::uint64_t sign = std::uint64_t{1} << (width - 1);
  const auto magnitude = static_cast<std::int64_t>(bits & (sign - 1));
  return (bits & sign) != 0 ? -magnitude : magnitude;
}

Element element(const TensorView& tensor, std::int64_t index) {
  switch (tensor.dtype) {
    case DType::bf16:
    case DType::f16: {
      const auto bits = tensor.at<std::uint16_t>(index);
      const Format format = tensor.dtype == DType::bf16 ? Format::bf16 : Format::f16;
      return {decode(format, bits), bits, rank_of(bits, 16)};
    }
    case DType::f32: {
      const auto bits = tensor.at<std::uint32_t>(index);
      return {std::bit_cast<float>(bits), bits, rank_of(bits, 32)};
    }
    case DType::f64: {
      const auto bits = tensor.at<std::uint64_t>(index);
      return {std::bit_cast<double>(bits), bits, rank_of(bits, 64)};
    }
    case DType::i32: {
      const auto value = tensor.at<std::int32_t>(index);
      return {static_cast<double>(value), static_cast<std::uint32_t>(value), value};
    }
    case DType::i64: {
      const auto value = tensor.at<std::int64_t>(index);
      return {static_cast<double>(value), static_cast<std::uint64_t>(value), value};
    }
    case DType::u8: {
      const auto value = tensor.at<std::uint8_t>(index);
      return {static_cast<double>(value), value, value};
    }
    case DType::f8_e4m3: {
      const auto bits = tensor.at<std::uint8_t>(index);
      return {decode(Format::e4m3, bits), bits, rank_of(bits, 8)};
    }
    default:
      fail(tensor.name,
           "has dtype {}, which check cannot compare; give BF16, F16, F32, F64, I32, "
           "I64, U8 or F8_E4M3",
           name(tensor.dtype));
  }
}

/// What the last dimension of a stage counts.
std::string_view last_axis(const std::string& tensor) {
  if (tensor == "topk_ids" || tensor == "topk_weights") return "slot";
  if (tensor == "router_logits") return "expert";
  return tensor == "final" ? "hidden" : "column";
}

/// "token 3, slot 1, column 17" for a flat index.
std::string coordinates_of(const std::string& tensor, const Shape& shape, std::int64_t index) {
  std::vector<std::int64_t> at(shape.size());
  for (std::size_t d = shape.size(); d-- > 0;) {
    at[d] = index % shape[d];
    index /= shape[d];
  }
  if (shape.size() == 2) return fmt::format("token {}, {} {}", at[0], last_axis(tensor), at[1]);
  if (shape.size() == 3) return fmt::format("token {}, slot {}, column {}", at[0], at[1], at[2]);
  std::string text = "index";
  for (const std::int64_t value : at) text += fmt::format(" {}", value);
  return text;
}

bool worse(const Difference& left, const Difference& right) {
  const double l = std::fabs(left.actual - left.golden);
  const double r = std::fabs(right.actual - right.golden);
  if (std::isnan(l) != std::isnan(r)) return std::isnan(l);
  if (!std::isnan(l) && l != r) return l > r;
  return left.index < right.index;
}

/// Sums of one comparison, over elements in order.
struct Sums {
  double actual_squared = 0.0;
  double golden_squared = 0.0;
  double product = 0.0;
  double difference_squared = 0.0;

  void add(double actual, double golden) {
    if (!std::isfinite(actual) || !std::isfinite(golden)) return;
    actual_squared += actual * actual;
    golden_squared += golden * golden;
    product += actual * golden;
    difference_squared += (actual - golden) * (actual - golden);
  }
  void write(Comparison& result) const {
    const double both = actual_squared + golden_squared;
    const double norm = std::sqrt(actual_squared) * std::sqrt(golden_squared);
    result.nmse = golden_squared > 0.0 ? difference_squared / golden_squared : 0.0;
    result.calc_diff = both > 0.0 ? 1.0 - 2.0 * product / both : 0.0;
    result.cosine = norm > 0.0 ? product / norm : 0.0;
    result.ratio = golden_squared > 0.0 ? product / golden_squared : 0.0;
  }
};

void count_specials(const Element& actual, const Element& golden, Comparison& result) {
  result.nan_actual += std::isnan(actual.value);
  result.nan_golden += std::isnan(golden.value);
  result.inf_actual += std::isinf(actual.value);
  result.inf_golden += std::isinf(golden.value);
  result.zero_actual += actual.value == 0.0;
  result.zero_golden += golden.value == 0.0;
}

void keep_worst(std::vector<Difference>& worst, const Difference& candidate) {
  const auto at = std::lower_bound(worst.begin(), worst.end(), candidate, worse);
  if (at == worst.end() && worst.size() == kListed) return;
  worst.insert(at, candidate);
  if (worst.size() > kListed) worst.pop_back();
}

void count_wrong(std::map<std::int64_t, Group>& groups, std::int64_t index, std::int64_t total,
                 double size) {
  Group& group = groups[index];
  group.index = index;
  group.total = total;
  ++group.wrong;
  group.largest = std::max(group.largest, size);
}

std::vector<Group> worst_groups(const std::map<std::int64_t, Group>& groups) {
  std::vector<Group> sorted;
  for (const auto& [index, group] : groups) {
    if (group.wrong > 0) sorted.push_back(group);
  }
  std::stable_sort(sorted.begin(), sorted.end(), [](const Group& left, const Group& right) {
    return left.wrong * right.total > right.wrong * left.total;
  });
  if (sorted.size() > kListed) sorted.resize(kListed);
  return sorted;
}

/// Blames the experts of wrong rows. A row is a token, or a (token, slot) if the tensor has slots:
/// then only the slot's expert is to blame.
void attribute_to_experts(const std::map<std::int64_t, Group>& rows, const TensorView& ids,
                          bool has_slots, Comparison& result) {
  if (!is_id_tensor(ids)) return;
  std::map<std::int64_t, Group> experts;
  for (std::int64_t token = 0; token < ids.shape[0]; ++token) {
    for (std::int64_t slot = 0; slot < ids.shape[1]; ++slot) {
      const std::int64_t at = token * ids.shape[1] + slot;
      const std::int64_t expert = id_at(ids, at);
      if (expert < 0) continue;
      Group& group = experts[expert];
      group.index = expert;
      ++group.total;
      const auto row = rows.find(has_slots ? at : token);
      if (row == rows.end() || row->second.wrong == 0) continue;
      ++group.wrong;
      group.largest = std::max(group.largest, row->second.largest);
    }
  }
  result.worst_experts = worst_groups(experts);
}

void check_bounds(const Context& context, const TensorView& golden) {
  for (const TensorView* bound : {context.low, context.high}) {
    if (bound == nullptr || (bound->shape == golden.shape && bound->dtype == golden.dtype))
      continue;
    fail(bound->name, "is {} {}; bounds must have the form of the tensor, {} {}",
         name(bound->dtype), to_string(bound->shape), name(golden.dtype), to_string(golden.shape));
  }
}

/// For each golden slot of a token, the actual slot with the same expert; nothing unless both hold
/// the same experts once.
std::optional<std::vector<std::int64_t>> slot_order(const TensorView& actual_ids,
                                                    const TensorView& golden_ids,
                                                    std::int64_t token) {
  const std::int64_t top_k = golden_ids.shape[1];
  std::map<std::int64_t, std::int64_t> slot_of;
  for (std::int64_t slot = 0; slot < top_k; ++slot) {
    slot_of[id_at(actual_ids, token * top_k + slot)] = slot;
  }
  if (static_cast<std::int64_t>(slot_of.size()) != top_k) return std::nullopt;
  std::vector<std::int64_t> order;
  for (std::int64_t slot = 0; slot < top_k; ++slot) {
    const auto found = slot_of.find(id_at(golden_ids, token * top_k + slot));
    if (found == slot_of.end()) return std::nullopt;
    order.push_back(found->second);
    slot_of.erase(found);
  }
  return order;
}

}  // namespace

std::int64_t id_at(const TensorView& ids, std::int64_t index) {
  return ids.dtype == DType::i32 ? ids.at<std::int32_t>(index) : ids.at<std::int64_t>(index);
}

bool is_id_tensor(const TensorView& ids) { return ids.shape.size() == 2 && is_integer(ids.dtype); }

std::optional<Tensor> align_slots(const TensorView& tensor, const TensorView& actual_ids,
                                  const TensorView& golden_ids) {
  if (!is_id_tensor(actual_ids) || !is_id_tensor(golden_ids) ||
      actual_ids.shape != golden_ids.shape || tensor.shape.size() < 2 ||
      tensor.shape[0] != golden_ids.shape[0] || tensor.shape[1] != golden_ids.shape[1]) {
    return std::nullopt;
  }
  Tensor aligned{
      tensor.name, tensor.dtype, tensor.shape, {tensor.bytes.begin(), tensor.bytes.end()}};
  const std::int64_t top_k = golden_ids.shape[1];
  const std::int64_t slots = golden_ids.shape[0] * top_k;
  if (slots == 0) return std::nullopt;
  const auto slot_bytes = static_cast<std::int64_t>(tensor.bytes.size()) / slots;
  bool changed = false;
  for (std::int64_t token = 0; token < golden_ids.shape[0]; ++token) {
    const auto order = slot_order(actual_ids, golden_ids, token);
    for (std::int64_t slot = 0; order && slot < top_k; ++slot) {
      const std::int64_t from = (*order)[static_cast<std::size_t>(slot)];
      changed |= from != slot;
      std::memcpy(aligned.bytes.data() + (token * top_k + slot) * slot_bytes,
                  tensor.bytes.data() + (token * top_k + from) * slot_bytes,
                  static_cast<std::size_t>(slot_bytes));
    }
  }
  if (!changed) return std::nullopt;
  return aligned;
}

std::string_view name(Verdict verdict) {
  switch (verdict) {
    case Verdict::identical:
      return "identical";
    case Verdict::allowed:
      return "allowed";
    case Verdict::wrong:
      return "wrong";
  }
  return "";
}

Comparison compare_tensors(const std::string& tensor, const TensorView& actual,
                           const TensorView& golden, const Context& context) {
  Comparison result;
  result.tensor = tensor;
  result.elements = golden.size();
  const bool both_ids = is_integer(actual.dtype) && is_integer(golden.dtype);
  if (actual.shape != golden.shape || (actual.dtype != golden.dtype && !both_ids)) {
    result.verdict = Verdict::wrong;
    result.mismatch =
        fmt::format("is {} {}, the golden tensor is {} {}", name(actual.dtype),
                    to_string(actual.shape), name(golden.dtype), to_string(golden.shape));
    if (actual.shape == golden.shape) {
      result.mismatch += fmt::format("; save it as {}", name(golden.dtype));
    }
    return result;
  }
  check_bounds(context, golden);
  const bool bounded = context.low != nullptr && context.high != nullptr;
  const bool has_slots = golden.shape.size() == 3;
  const std::int64_t token_size =
      golden.shape.empty() ? 1 : std::max<std::int64_t>(1, golden.size() / golden.shape[0]);
  const std::int64_t row_size = has_slots ? std::max<std::int64_t>(1, golden.shape[2]) : token_size;
  std::map<std::int64_t, Group> rows;  // what the experts answer for
  std::map<std::int64_t, Group> tokens;
  Sums sums;
  for (std::int64_t i = 0; i < golden.size(); ++i) {
    const Element a = element(actual, i);
    const Element g = element(golden, i);
    count_specials(a, g, result);
    sums.add(a.value, g.value);
    if (both_ids ? a.rank == g.rank : a.bits == g.bits) continue;
    ++result.differing;
    Difference difference;
    difference.index = i;
    difference.actual = a.value;
    difference.golden = g.value;
    const bool nan = std::isnan(a.value) || std::isnan(g.value);
    difference.ulps = nan ? -1 : std::abs(a.rank - g.rank);
    const double size = std::fabs(a.value - g.value);
    const double low = bounded ? element(*context.low, i).value : 0.0;
    const double high = bounded ? element(*context.high, i).value : 0.0;
    const bool inside = bounded && ((low <= a.value && a.value <= high) ||
                                    (std::isnan(a.value) && std::isnan(g.value)));
    if (!nan) {
      result.largest_ulps = std::max(result.largest_ulps, difference.ulps);
      result.largest_difference = std::max(result.largest_difference, size);
    }
    if (inside) continue;
    ++result.outside;
    count_wrong(rows, i / row_size, row_size, nan ? 0.0 : size);
    count_wrong(tokens, i / token_size, token_size, nan ? 0.0 : size);
    if (result.outside > 1 && result.worst.size() == kListed &&
        !worse(difference, result.worst.back())) {
      continue;
    }
    difference.coordinates = coordinates_of(tensor, golden.shape, i);
    if (bounded) difference.allowed = fmt::format("[{}, {}]", low, high);
    const int digits = info(golden.dtype).bits / 4;
    difference.actual_bits = fmt::format("0x{:0{}x}", a.bits, digits);
    difference.golden_bits = fmt::format("0x{:0{}x}", g.bits, digits);
    if (!result.first) result.first = difference;
    keep_worst(result.worst, difference);
  }
  sums.write(result);
  result.verdict = result.differing == 0 ? Verdict::identical
                   : result.outside == 0 ? Verdict::allowed
                                         : Verdict::wrong;
  result.worst_rows = worst_groups(tokens);
  if (context.topk_ids != nullptr) attribute_to_experts(rows, *context.topk_ids, has_slots, result);
  return result;
}

}  // namespace moeref::cli
