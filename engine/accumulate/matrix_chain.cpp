#include "engine/accumulate/matrix_chain.hpp"

#include <bit>
#include <cmath>

#include "quant/cast.hpp"
#include "quant/formats.hpp"

namespace moeref::accumulate {
namespace {

constexpr std::size_t kScaledBlock = 32;  ///< of FusedDot::block_scales

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

int width_of(TermOrder order) {
  switch (order) {
    case TermOrder::natural:
      return 2;
    case TermOrder::kw4:
      return 4;
    case TermOrder::kw8:
      return 8;
  }
  return 2;
}

template <typename T>
std::span<const T> part(const std::vector<T>& values, std::size_t first, std::size_t count) {
  return std::span(values).subspan(first, count);
}

/// The IEEE sum that follows an instruction which began with +0.
std::uint32_t added(StepOutput output, std::uint32_t p, std::uint32_t c) {
  if (output == StepOutput::f16_nearest) {
    // Rounded to 24 bits, then to 11: as if once, since 24 >= 2 * 11 + 2.
    const float sum =
        widen_f16(static_cast<std::uint16_t>(p)) + widen_f16(static_cast<std::uint16_t>(c));
    return std::isnan(sum) ? kUnitNanF16 : encode(Format::f16, sum, EncodePolicy::eigen);
  }
  const float sum = std::bit_cast<float>(p) + std::bit_cast<float>(c);
  return std::isnan(sum) ? kUnitNanF32 : std::bit_cast<std::uint32_t>(sum);
}

class Chain {
 public:
  Chain(const UnitRow& a, const UnitRow& b, std::uint32_t c) : a_(a), b_(b), sum_(c) {}

  std::uint32_t operator()(const FusedDot& unit) {
    const auto terms = to_size(unit.terms);
    const auto instruction = to_size(unit.k);
    for (std::size_t first = 0; first < a_.numbers.size(); first += instruction) {
      const std::uint32_t c = sum_;
      if (unit.accumulator == AccumulatorPoint::added_after) sum_ = 0;
      for (std::size_t k = first; k < first + instruction; k += terms) {
        sum_ = fused_step(unit, part(a_.numbers, k, terms), part(b_.numbers, k, terms), sum_,
                          scale_exponent(unit, k));
        if (nan_scale_) return sum_ = kUnitNanF32;
      }
      if (unit.accumulator == AccumulatorPoint::added_after) sum_ = added(unit.output, sum_, c);
    }
    return sum_;
  }

  std::uint32_t operator()(const ScaledGroupDot& unit) {
    const auto instruction = to_size(unit.k);
    const auto scales = instruction / to_size(unit.block);
    for (std::size_t k = 0, s = 0; k < a_.numbers.size(); k += instruction, s += scales) {
      sum_ = scaled_group_step(unit, part(a_.numbers, k, instruction),
                               part(b_.numbers, k, instruction), part(a_.scales, s, scales),
                               part(b_.scales, s, scales), sum_);
    }
    return sum_;
  }

  std::uint32_t operator()(const MfmaDot& unit) {
    const auto terms = to_size(unit.terms);
    for (std::size_t k = 0; k < a_.numbers.size(); k += terms) {
      sum_ = mfma_step(unit, part(a_.numbers, k, terms), part(b_.numbers, k, terms), sum_);
    }
    return sum_;
  }

  std::uint32_t operator()(const FmaChain&) { return fma_step(a_.numbers, b_.numbers, sum_); }

 private:
  int scale_exponent(const FusedDot& unit, std::size_t k) {
    if (!unit.block_scales) return 0;
    const UnitNumber& sa = a_.scales[k / kScaledBlock];
    const UnitNumber& sb = b_.scales[k / kScaledBlock];
    nan_scale_ = sa.kind == NumberKind::nan || sb.kind == NumberKind::nan;
    return sa.exponent + sb.exponent;
  }

  const UnitRow& a_;
  const UnitRow& b_;
  std::uint32_t sum_;
  bool nan_scale_ = false;
};

}  // namespace

std::vector<std::int64_t> term_order(const FusedDot& unit, std::int64_t k) {
  const std::int64_t width = width_of(unit.order);
  const std::int64_t steps = width / 2;  // that share a chunk
  const std::int64_t chunk = unit.terms * steps;
  const std::int64_t whole = std::max<std::int64_t>(chunk, unit.k);
  const std::int64_t padded = (k + whole - 1) / whole * whole;
  std::vector<std::int64_t> order;
  order.reserve(to_size(padded));
  for (std::int64_t first = 0; first < padded; first += chunk) {
    for (std::int64_t step = 0; step < steps; ++step) {
      for (std::int64_t i = 0; i < chunk; ++i) {
        if (i % width / 2 != step) continue;
        order.push_back(first + i < k ? first + i : -1);
      }
    }
  }
  return order;
}

std::vector<UnitNumber> in_order(std::span<const UnitNumber> numbers,
                                 std::span<const std::int64_t> order) {
  std::vector<UnitNumber> ordered;
  ordered.reserve(order.size());
  for (const std::int64_t k : order) ordered.push_back(k < 0 ? UnitNumber{} : numbers[to_size(k)]);
  return ordered;
}

std::uint32_t run_chain(const MatrixUnit& unit, const UnitRow& a, const UnitRow& b,
                        std::uint32_t c) {
  return std::visit(Chain(a, b, c), unit);
}

}  // namespace moeref::accumulate
