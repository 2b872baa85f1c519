#include "engine/bounds/bounded.hpp"

#include <fmt/format.h>

#include <cfloat>
#include <charconv>
#include <stdexcept>
#include <string>

#include "engine/bounds/double_double.hpp"

namespace moeref::bounds {
namespace {

// Functions here are evaluated in twice the precision and rounded once; one unit more than that is
// room to spare.
constexpr RoundingModel kOwn{53, 0x1p-53, 0x1p-1074, 0x1p-52, DBL_MAX, true};
constexpr RoundingModel kStoredF32{24, 0x1p-24, 0x1p-149, 8 * 0x1p-24, FLT_MAX, false};
constexpr RoundingModel kStoredF64{53, 0x1p-53, 0x1p-1074, 8 * 0x1p-53, DBL_MAX, false};

constexpr Arithmetic kArithmeticF32{kStoredF32, kOwn, false};
constexpr Arithmetic kArithmeticF64{kStoredF64, kOwn, true};

/// Error of min or max: none if the limit certainly wins, else that of the operand or of the limit,
/// whichever is larger.
template <typename Wins>
double selection_error(const Bounded& x, const Bounded& limit, Channel error, const Wins& wins) {
  if (wins(x.*error, limit.*error)) return limit.*error;
  return std::max(x.*error, limit.*error);
}

template <typename Wins>
Bounded select(double value, const Bounded& x, const Bounded& limit, const Wins& wins) {
  return {value, selection_error(x, limit, &Bounded::stored, wins),
          selection_error(x, limit, &Bounded::own, wins)};
}

}  // namespace

const Arithmetic& arithmetic(Precision precision) {
  return precision == Precision::f32 ? kArithmeticF32 : kArithmeticF64;
}

bool RoundingModel::holds(double value) const {
  if (value == 0.0) return true;
  if (!(std::fabs(value) <= largest)) return false;
  int exponent = 0;
  const double significand = std::ldexp(std::frexp(value, &exponent), significant_bits);
  return significand == std::trunc(significand) && std::fmod(value, tiny) == 0.0;
}

double Bounded::total() const { return outward(stored + own + kOwn.round(std::fabs(value))); }

Bounded constant(const Arithmetic& arithmetic, float spelled) {
  if (!std::isfinite(spelled)) return exact(static_cast<double>(spelled));
  const std::string decimal =
      fmt::format("{}", spelled);  // the shortest that reads back as this f32
  double value = 0.0;
  const auto parsed = std::from_chars(decimal.data(), decimal.data() + decimal.size(), value);
  if (parsed.ec != std::errc{}) throw std::logic_error("constant: unreadable decimal " + decimal);
  if (value == static_cast<double>(spelled)) return exact(value);
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel) {
    return model.round(std::fabs(value));
  });
}

Bounded script_constant(const Arithmetic& arithmetic, double value) {
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel) {
    return model.holds(value) ? 0.0 : model.round(std::fabs(value));
  });
}

Bounded add(const Arithmetic& arithmetic, const Bounded& x, const Bounded& y) {
  const double value = x.value + y.value;
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
    const double moved = x.*error + y.*error;
    return moved + model.round(std::fabs(value) + moved);
  });
}

Bounded multiply(const Arithmetic& arithmetic, const Bounded& x, const Bounded& y) {
  const double value = x.value * y.value;
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
    const double moved =
        std::fabs(x.value) * (y.*error) + (x.*error) * (std::fabs(y.value) + y.*error);
    return moved + model.round(std::fabs(value) + moved);
  });
}

Bounded scale(const Arithmetic& arithmetic, const Bounded& x, double factor) {
  const DoubleDouble product = two_product(x.value, factor);
  return with_errors(product.hi, arithmetic, [&](const RoundingModel& model, Channel error) {
    if (x.*error == 0.0 && product.lo == 0.0 && model.holds(product.hi)) return 0.0;
    const double moved = x.*error * std::fabs(factor);
    return moved + model.round(std::fabs(product.hi) + moved);
  });
}

Bounded sum(const Arithmetic& arithmetic, std::span<const Bounded> terms) {
  double value = 0.0;
  double magnitude = 0.0;
  for (const Bounded& term : terms) {
    value += term.value;
    magnitude += std::fabs(term.value);
  }
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
    double moved = 0.0;
    double count = 0.0;
    for (const Bounded& term : terms) {
      moved += term.*error;
      count += term.value == 0.0 && term.*error == 0.0 ? 0.0 : 1.0;
    }
    const double above = magnitude + moved;
    if (above >= model.largest) return std::numeric_limits<double>::infinity();
    return moved + model.gamma(std::max(0.0, count - 1.0)) * above;
  });
}

Bounded at_most(const Bounded& x, const Bounded& limit) {
  const double value = x.value > limit.value ? limit.value : x.value;  // NaN stays NaN
  return select(value, x, limit, [&](double x_error, double limit_error) {
    return x.value - x_error > limit.value + limit_error;
  });
}

Bounded at_least(const Bounded& x, const Bounded& limit) {
  const double value = x.value < limit.value ? limit.value : x.value;
  return select(value, x, limit, [&](double x_error, double limit_error) {
    return x.value + x_error < limit.value - limit_error;
  });
}

}  // namespace moeref::bounds
