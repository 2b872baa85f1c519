#include "engine/bounds/functions.hpp"

#include "engine/bounds/double_double.hpp"

namespace moeref::bounds {
namespace {

constexpr DoubleDouble kSqrtHalf{0x1.6a09e667f3bcdp-1, -0x1.bdd3413b26456p-55};
constexpr DoubleDouble kSqrtTwoOverPi{0x1.9884533d43651p-1, -0x1.cbc0d30ebfd15p-55};
constexpr double kTwoOverSqrtPi = 1.1283791670955126;
constexpr double kGeluCubic = 0.044715;
constexpr double kSoftplusThreshold = 20.0;
/// The derivatives used below are themselves computed in double; they may cancel, so this much of
/// the uncancelled size is added.
constexpr double kDerivativeSlack = 0x1p-48;

double sigmoid_value(double x) { return sigmoid(DoubleDouble{x, 0.0}).hi; }
double exp_value(double x) { return exp(DoubleDouble{x, 0.0}).hi; }

/// sigmoid and 1 - sigmoid at x, and from above over [x - d, x + d]: |d log(sigmoid) / dx| <= 1.
struct SigmoidAround {
  double value;
  double rest;
  double reach;  ///< both change by no more than this factor
  double value_above;
  double rest_above;

  SigmoidAround(double x, double distance)
      : value(sigmoid_value(x)),
        rest(sigmoid_value(-x)),
        reach(growth(distance)),
        value_above(std::min(1.0, value * reach)),
        rest_above(std::min(1.0, rest * reach)) {}

  /// |sigmoid(x + d) - sigmoid(x)| for |d| <= distance; the derivative is sigmoid * (1 - sigmoid)
  /// <= 1/4.
  double moved(double distance) const {
    return std::min(1.0, std::min(0.25, value_above * rest_above) * distance);
  }
  /// Rounding of 1 / (1 + exp(-x)) anywhere near x: exp moves 1 + exp(-x) by its share, then a sum
  /// and a quotient.
  double rounding(const RoundingModel& model) const {
    if (model.single_functions) return model.round(value_above);
    // Where exp(-x) may overflow the quotient may be 0.
    const bool overflows = value * model.largest <= (1.0 + 4.0 * model.function_error) * reach;
    const double relative = overflows ? 1.0 : rest_above * model.function_error + 2.0 * model.unit;
    return value_above * relative * (1.0 + 4.0 * model.function_error) + 6.0 * model.tiny;
  }
};

/// t(x) = range * tanh(x / range), step by step: a quotient, the function, a product.
struct TanhAround {
  double range;        ///< |range|
  double range_error;  ///< of |range|
  bool divides_exactly;
  DoubleDouble value;    ///< t(x), at x itself
  double slope;          ///< t'(x) = 1 - tanh^2
  double distance;       ///< of x
  double argument_size;  ///< |x / range|, from above over [x - d, x + d]

  TanhAround(double x, const Bounded& of_range, Channel error, double distance_of_x)
      : range(std::fabs(of_range.value)), range_error(of_range.*error), distance(distance_of_x) {
    int exponent = 0;
    divides_exactly = range_error == 0.0 && std::frexp(range, &exponent) == 0.5;
    const DoubleDouble wide_range{range, 0.0};
    const DoubleDouble argument = DoubleDouble{x, 0.0} / wide_range;
    value = wide_range * tanh(argument);
    slope = slope_at(argument.hi);
    argument_size = (std::fabs(x) + distance) / range;
  }
  /// |t(x + d) - t(x)|; |t''| < 0.77 / range, and t rises by at most 1 for 1, from -range to range.
  double moved() const {
    const double by_slope = (slope + kDerivativeSlack) * distance;
    return std::min({by_slope + half_bend() * distance * distance, distance, 2.0 * range});
  }
  /// Half of the largest |t''|.
  double half_bend() const { return 0.385 / range; }
  /// |t| over [x - d, x + d].
  double above() const { return std::min(range, std::fabs(value.hi) + moved()); }
  /// Rounding of the steps anywhere near x.
  double rounding(const RoundingModel& model) const {
    // An infinite quotient has the right tanh: only its relative error counts.
    const double roundings = (divides_exactly ? 0.0 : 2.0) + (range_error > 0.0 ? 1.0 : 0.0);
    const double argument_error = model.gamma(roundings) * argument_size + 2.0 * model.tiny;
    const double reach = distance / range + argument_error;
    const double slope_above = std::min(1.0, slope + 0.77 * reach);
    const double tanh_above = std::min(1.0, above() / range);
    const double tanh_error = slope_above * argument_error + model.round_library(tanh_above);
    const double product = (range + range_error) * (tanh_above + tanh_error);
    return (range + range_error) * tanh_error + range_error * tanh_above +
           (divides_exactly ? model.tiny : model.round(product));
  }

  /// 1 - tanh^2, without cancellation.
  static double slope_at(double argument) {
    return 4.0 * sigmoid_value(2.0 * argument) * sigmoid_value(-2.0 * argument);
  }
};

/// x * 1 for infinity, x * 0 = NaN for minus infinity: the formula step by step.
Bounded gelu_of_nonfinite(double x) { return exact(x * (x > 0.0 ? 1.0 : 0.0)); }

}  // namespace

Bounded sigmoid(const Arithmetic& arithmetic, const Bounded& x) {
  return with_errors(sigmoid_value(x.value), arithmetic,
                     [&](const RoundingModel& model, Channel error) {
                       const SigmoidAround around(x.value, x.*error);
                       return around.moved(x.*error) + around.rounding(model);
                     });
}

Bounded swish(const Arithmetic& arithmetic, const Bounded& x, const Bounded& alpha) {
  const double argument = alpha.value * x.value;
  const double value = x.value * sigmoid_value(argument);
  const bool multiplies_alpha = alpha.value != 1.0;
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
    const double distance = x.*error;
    const double alpha_above = std::fabs(alpha.value) + alpha.*error;
    const double x_above = std::fabs(x.value) + distance;
    // Error of the argument alpha * x apart from x's own: alpha's, and the rounding of the product.
    const double argument_error =
        alpha.*error * x_above + (multiplies_alpha ? model.round(alpha_above * x_above) : 0.0);
    const SigmoidAround around(argument, alpha_above * distance + argument_error);
    // f(x) = x sigmoid(alpha x): f' = s (1 + alpha x (1 - s)), |f''| <= |alpha| / 2.
    const double slope = std::fabs(around.value * (1.0 + argument * around.rest)) +
                         kDerivativeSlack * around.value * (1.0 + std::fabs(argument));
    const double moved = slope * distance + 0.25 * alpha_above * distance * distance;
    const double sigmoid_error = around.moved(argument_error) + around.rounding(model);
    return moved + x_above * sigmoid_error +
           model.round(x_above * (around.value_above + sigmoid_error));
  });
}

Bounded softplus(const Arithmetic& arithmetic, const Bounded& x) {
  const double value = softplus(x.value).hi;
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
    const double distance = x.*error;
    const SigmoidAround around(x.value, distance);  // the derivative of softplus is the sigmoid
    const double moved = around.value_above * distance;
    if (model.single_functions) return moved + model.round(value + moved);
    double total = moved;
    if (x.value + distance >
        kSoftplusThreshold) {  // x stands for log1p(exp(x)) = x + log1p(exp(-x))
      total += exp_value(distance - x.value) * (1.0 + kDerivativeSlack);
    }
    if (x.value - distance <= kSoftplusThreshold) {  // exp and log1p, each by the library
      const double above = value + moved;
      total +=
          (around.value_above + above) * model.function_error * (1.0 + 4.0 * model.function_error) +
          8.0 * model.tiny;
    }
    return total;
  });
}

Bounded square_root(const Arithmetic& arithmetic, const Bounded& x) {
  const double root = std::sqrt(x.value);
  return with_errors(root, arithmetic, [&](const RoundingModel& model, Channel error) {
    const double distance = x.*error;
    const double low_root = std::sqrt(std::max(0.0, x.value - distance));
    const double both = root + low_root;
    // On either side |sqrt(x + d) - sqrt(x)| = |d| / (sqrt(x + d) + sqrt(x)).
    const double moved = both > 0.0 ? distance / both : std::sqrt(distance);
    return moved + model.round(root + moved);
  });
}

Bounded gelu_erf(const Arithmetic& arithmetic, const Bounded& x) {
  if (!std::isfinite(x.value)) return gelu_of_nonfinite(x.value);
  const DoubleDouble wide{x.value, 0.0};
  const DoubleDouble argument = wide * kSqrtHalf;
  const DoubleDouble twice_cdf = DoubleDouble{1.0, 0.0} + erf(argument);
  const double value = 0.5 * (wide * twice_cdf).hi;
  const double t = argument.hi;
  const double density = 0.5 * kTwoOverSqrtPi * exp_value(-t * t);  // dt-derivative of erf / 2
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
    const double distance = x.*error;
    const double x_above = std::fabs(x.value) + distance;
    // f' = cdf + x * normal density, |f''| = density * |2 - x^2| < 0.8.
    const double cdf = 0.5 * twice_cdf.hi;
    const double slope = std::fabs(cdf + t * density) + kDerivativeSlack * (1.0 + std::fabs(t));
    const double moved = slope * distance + 0.4 * distance * distance;
    if (model.single_functions) {  // 1 + erf cancels for negative x: its error is absolute
      return moved + 2.0 * model.round(std::fabs(value) + moved) + x_above * 0x1p-90;
    }
    // The argument: sqrt(1/2) and the product round. |erf''| < 0.97 bounds the slope within reach
    // of x's error.
    const double t_above = std::fabs(t) + distance;
    const double erf_slope = std::min(kTwoOverSqrtPi, 2.0 * density + 0.97 * distance);
    const double erf_error = erf_slope * t_above * 2.0 * model.unit + model.function_error;
    const double sum_above = std::min(2.0, twice_cdf.hi + kTwoOverSqrtPi * distance);
    const double sum_error = erf_error + model.round(sum_above + erf_error);
    return moved + 0.5 * (x_above * sum_error + model.round(x_above * (sum_above + sum_error))) +
           2.0 * model.tiny;
  });
}

Bounded gelu_tanh(const Arithmetic& arithmetic, const Bounded& x) {
  if (!std::isfinite(x.value)) return gelu_of_nonfinite(x.value);
  const DoubleDouble wide{x.value, 0.0};
  const DoubleDouble cubic = DoubleDouble{447.15, 0.0} / DoubleDouble{10000.0, 0.0};
  const DoubleDouble inner = kSqrtTwoOverPi * (wide + cubic * wide * wide * wide);
  const DoubleDouble cdf = sigmoid(inner + inner);  // (1 + tanh(t)) / 2 = sigmoid(2 t)
  const double value = (wide * cdf).hi;
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
    const double distance = x.*error;
    const double x_above = std::fabs(x.value) + distance;
    const double scale = kSqrtTwoOverPi.hi;
    const double rest = sigmoid_value(-2.0 * inner.hi);
    const double inner_slope = scale * (1.0 + 3.0 * kGeluCubic * x.value * x.value);
    // f' = s + 2 x s (1 - s) inner'; |f''| < 1.
    const double second = 2.0 * x.value * cdf.hi * rest * inner_slope;
    const double slope = std::fabs(cdf.hi + second) + kDerivativeSlack * (1.0 + std::fabs(second));
    const double moved = slope * distance + 0.5 * distance * distance;
    if (model.single_functions) return moved + 2.0 * model.round(std::fabs(value) + moved);
    // x^2, x^3, the coefficient, its product, the sum, sqrt(2/pi), its product: seven roundings.
    const double inner_above = scale * x_above * (1.0 + kGeluCubic * x_above * x_above);
    const double inner_error = model.gamma(7.0) * inner_above + 16.0 * model.tiny;
    // tanh' = 4 s (1 - s), evaluated within reach of x's error.
    const double reach =
        2.0 * (scale * (1.0 + 3.0 * kGeluCubic * x_above * x_above) * distance + inner_error);
    const SigmoidAround around(2.0 * inner.hi, reach);
    const double tanh_above = std::min(1.0, std::fabs(around.value - around.rest) + 0.5 * reach);
    const double tanh_error = 4.0 * around.moved(inner_error) + model.round_library(tanh_above);
    const double sum_error = tanh_error + model.round(2.0 * around.value_above + tanh_error);
    return moved + 0.5 * (x_above * sum_error +
                          model.round(x_above * (2.0 * around.value_above + sum_error)));
  });
}

Bounded scaled_tanh(const Arithmetic& arithmetic, const Bounded& x, const Bounded& range) {
  if (!std::isfinite(x.value)) return exact(std::fabs(range.value) * std::tanh(x.value));
  const double value = TanhAround(x.value, range, &Bounded::own, 0.0).value.hi;
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
    const TanhAround around(x.value, range, error, x.*error);
    if (model.single_functions) return around.moved() + model.round(around.above());
    return around.moved() + around.rounding(model);
  });
}

Bounded tanh_glu(const Arithmetic& arithmetic, const Bounded& x, const Bounded& range) {
  if (!std::isfinite(x.value)) {
    return exact(std::fabs(range.value) * std::tanh(x.value) * sigmoid_value(x.value));
  }
  const DoubleDouble wide_sigmoid = sigmoid(DoubleDouble{x.value, 0.0});
  const double value = (TanhAround(x.value, range, &Bounded::own, 0.0).value * wide_sigmoid).hi;
  return with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
    const double distance = x.*error;
    const TanhAround tanh_part(x.value, range, error, distance);
    const SigmoidAround sigmoid_part(x.value, distance);
    // f = t s: f' = t' s + t s (1 - s) <= 1.25; |f''| <= |t''| + 2 t' s' + |t s''|, where s' <= 1/4
    // and |t s''| <= |x s''| < 0.16.
    const double size = std::fabs(tanh_part.value.hi);
    const double slope = std::fabs(tanh_part.slope * sigmoid_part.value +
                                   tanh_part.value.hi * sigmoid_part.value * sigmoid_part.rest) +
                         kDerivativeSlack * sigmoid_part.value * (1.0 + size);
    const double half_bend = tanh_part.half_bend() + 0.33;
    const double moved =
        std::min(slope * distance + half_bend * distance * distance, 1.25 * distance);
    if (model.single_functions) return moved + model.round(std::fabs(value) + moved);
    const double tanh_error = tanh_part.rounding(model);
    const double tanh_above = tanh_part.above();
    const double sigmoid_error = sigmoid_part.rounding(model);
    const double sigmoid_above = sigmoid_part.value_above + sigmoid_error;
    return moved + tanh_above * sigmoid_error + tanh_error * sigmoid_above +
           model.round((tanh_above + tanh_error) * sigmoid_above);
  });
}

std::vector<Bounded> softmax_numerators(const Arithmetic& arithmetic,
                                        const std::vector<Bounded>& x) {
  double largest = -std::numeric_limits<double>::infinity();
  for (const Bounded& element : x) largest = std::max(largest, element.value);
  Bounded top;
  for (const Bounded& element : x) {
    top.stored = std::max(top.stored, element.stored);
    top.own = std::max(top.own, element.own);
  }
  std::vector<Bounded> numerators;
  numerators.reserve(x.size());
  for (const Bounded& element : x) {
    const double distance_below = largest - element.value;
    const double value = exp_value(-distance_below);
    numerators.push_back(
        with_errors(value, arithmetic, [&](const RoundingModel& model, Channel error) {
          const double moved =
              element.*error + model.round(distance_below + element.*error + top.*error);
          const double above = value * growth(moved);
          return (above - value) + model.round_library(above);
        }));
  }
  return numerators;
}

std::vector<Bounded> shares(const Arithmetic& arithmetic, const std::vector<Bounded>& x,
                            const Bounded& epsilon, const Bounded& scaling) {
  Bounded sum = epsilon;
  for (const Bounded& element : x) {
    sum.value += element.value;
    sum.stored += element.stored;
    sum.own += element.own;
  }
  const bool adds_epsilon = epsilon.value != 0.0;
  const bool scales = scaling.value != 1.0;
  const double roundings = static_cast<double>(x.size()) + (adds_epsilon ? 1.0 : 0.0);
  std::vector<Bounded> result;
  result.reserve(x.size());
  for (const Bounded& element : x) {
    const Bounded share = with_errors(
        element.value / sum.value, arithmetic, [&](const RoundingModel& model, Channel error) {
          const double rest = std::max(0.0, sum.value - element.value);
          const double rest_error = sum.*error - element.*error;
          // x / (x + rest) with x off by e and the rest by r differs by (e rest + x r) / (sum *
          // moved sum).
          const double smallest_sum = sum.value - std::fabs(element.*error - rest_error);
          if (!(smallest_sum > 0.0)) return std::numeric_limits<double>::infinity();
          const double moved =
              (element.*error * (rest + 0x1p-50 * sum.value) + element.value * rest_error) /
              (sum.value * smallest_sum);
          const double above = element.value / sum.value + moved;
          return moved + model.gamma(roundings) * above + 2.0 * model.tiny;
        });
    result.push_back(scales ? multiply(arithmetic, share, scaling) : share);
  }
  return result;
}

ActivationConstants activation_constants(const Arithmetic& arithmetic, const Activation& activation,
                                         std::size_t expert) {
  const auto pick = [&](const std::vector<float>& per_expert, float scalar) {
    return constant(arithmetic, per_expert.empty() ? scalar : per_expert.at(expert));
  };
  return {activation.form, pick(activation.alphas, activation.alpha),
          pick(activation.betas, activation.beta), pick(activation.limits, activation.limit)};
}

Bounded activate(const Arithmetic& arithmetic, const ActivationConstants& constants,
                 const Bounded& gate, const Bounded& up) {
  const auto clamped_up = [&] {
    return at_least(at_most(up, constants.limit), negate(constants.limit));
  };
  switch (constants.form) {
    case ActivationForm::swiglu: {
      const Bounded limited = at_most(gate, constants.limit);
      const Bounded glu = swish(arithmetic, limited, constants.alpha);
      const Bounded factor = clamped_up();
      const bool shifts = constants.beta.value != 0.0;
      return multiply(arithmetic, glu, shifts ? add(arithmetic, factor, constants.beta) : factor);
    }
    case ActivationForm::silu_clamp_after:
      return multiply(arithmetic, at_most(swish(arithmetic, gate, exact(1.0)), constants.limit),
                      clamped_up());
    case ActivationForm::geglu_erf:
      return multiply(arithmetic, gelu_erf(arithmetic, gate), up);
    case ActivationForm::geglu_tanh:
      return multiply(arithmetic, gelu_tanh(arithmetic, gate), up);
    case ActivationForm::relu2: {
      const Bounded positive = at_least(up, exact(0.0));
      return multiply(arithmetic, positive, positive);
    }
    case ActivationForm::silu:
      return swish(arithmetic, up, exact(1.0));
    case ActivationForm::gelu_erf:
      return gelu_erf(arithmetic, up);
    case ActivationForm::gelu_tanh:
      return gelu_tanh(arithmetic, up);
  }
  return {};
}

}  // namespace moeref::bounds
