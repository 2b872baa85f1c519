#pragma once

#include <optional>
#include <span>

#include "engine/exact/double_double.hpp"

namespace moeref::exact {

/// The sum of x_i * y_i, each product exact in f64, as two f64 numbers; nothing if they cannot hold
/// it, or some partial sum in the order taken.
std::optional<DoubleDouble> exact_dot(std::span<const double> x, std::span<const double> y);

}  // namespace moeref::exact
