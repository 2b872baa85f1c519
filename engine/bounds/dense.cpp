#include "engine/bounds/dense.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "engine/bounds/double_double.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/parallel.hpp"

namespace moeref::bounds {
namespace {

constexpr std::int64_t kPanelRows = 16;
constexpr std::size_t kLanes = 4;

/// What one dot product needs to know of its terms w[i] * x[i].
struct DotSums {
  double value = 0.0;      ///< sum of w x
  double magnitude = 0.0;  ///< sum of |w x|
  double stored = 0.0;     ///< sum of |w| stored(x)
  double own = 0.0;        ///< sum of |w| own(x)
};

/// Sums in a fixed order, four interleaved partial sums.
DotSums plain_dot(const double* weight, const double* value, const double* stored,
                  const double* own, std::size_t count) {
  std::array<DotSums, kLanes> lanes;
  for (std::size_t begin = 0; begin < count; begin += kLanes) {
    const std::size_t width = std::min(kLanes, count - begin);
    for (std::size_t lane = 0; lane < width; ++lane) {
      const std::size_t i = begin + lane;
      const double product = weight[i] * value[i];
      const double weight_size = std::fabs(weight[i]);
      lanes[lane].value += product;
      lanes[lane].magnitude += std::fabs(product);
      lanes[lane].stored += weight_size * stored[i];
      lanes[lane].own += weight_size * own[i];
    }
  }
  DotSums sums;
  for (const DotSums& lane : lanes) {
    sums.value += lane.value;
    sums.magnitude += lane.magnitude;
    sums.stored += lane.stored;
    sums.own += lane.own;
  }
  return sums;
}

/// The value as if computed in twice the precision and rounded once. Source: Ogita, Rump, Oishi,
/// Accurate sum and dot product, 2005, algorithm Dot2: error at most unit |value| + gamma(n)^2 *
/// magnitude.
double compensated_dot(const double* weight, const double* value, std::size_t count) {
  double sum = 0.0;
  double low = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    const DoubleDouble product = two_product(weight[i], value[i]);
    const DoubleDouble next = two_sum(sum, product.hi);
    sum = next.hi;
    low += next.lo + product.lo;
  }
  return sum + low;
}

/// Largest number of significant bits of a code's value.
int significant_bits(Format format) { return info(format).significand_bits; }

constexpr int kNoBits = std::numeric_limits<int>::max() / 4;  // exponent of the lowest bit of zero

/// Exponent of the lowest set bit; `kNoBits` for zero, infinity, NaN.
int lowest_bit(double value) {
  if (value == 0.0 || !std::isfinite(value)) return kNoBits;
  int exponent = 0;
  const double fraction = std::frexp(std::fabs(value), &exponent);  // 53 bits at most
  const auto integer = static_cast<std::uint64_t>(std::ldexp(fraction, 53));
  return exponent - 53 + std::countr_zero(integer);
}

int lowest_bit(std::span<const double> values) {
  int lowest = kNoBits;
  for (const double value : values) lowest = std::min(lowest, lowest_bit(value));
  return lowest;
}

/// Whether every sum of some of the terms, in any order, fits the significand: the terms are
/// multiples of 2^`lowest`, and no partial sum is larger than `magnitude`. Then nothing is rounded
/// at all.
bool sums_exactly(const RoundingModel& model, int lowest, double magnitude) {
  if (lowest >= kNoBits / 2) return magnitude == 0.0;
  return magnitude < model.largest && std::ldexp(1.0, lowest) >= model.tiny &&
         outward(magnitude) <= std::ldexp(1.0, lowest + model.significant_bits);
}

/// One row of the input of a linear layer, as its dot products see it.
struct InputRow {
  double size = 0.0;            ///< sum of |x|
  int lowest = kNoBits;         ///< lowest set bit
  bool stored_is_exact = true;  ///< no element has an error
  bool own_is_exact = true;
};

InputRow describe_row(const BoundedMatrix& input, std::int64_t row) {
  const auto begin = static_cast<std::size_t>(row * input.cols);
  const auto count = static_cast<std::size_t>(input.cols);
  const auto is_zero = [](double error) { return error == 0.0; };
  const auto part = [&](const std::vector<double>& all) {
    return std::span(all).subspan(begin, count);
  };
  InputRow described;
  for (const double value : part(input.value)) described.size += std::fabs(value);
  described.lowest = lowest_bit(part(input.value));
  described.stored_is_exact =
      std::all_of(part(input.stored).begin(), part(input.stored).end(), is_zero);
  described.own_is_exact = std::all_of(part(input.own).begin(), part(input.own).end(), is_zero);
  return described;
}

/// One row of the weight, dequantized.
struct WeightRow {
  std::span<const double> values;
  int lowest = kNoBits;  ///< lowest set bit
  double largest = 0.0;  ///< largest |w|

  explicit WeightRow(std::span<const double> row) : values(row), lowest(lowest_bit(row)) {
    for (const double value : row) largest = std::max(largest, std::fabs(value));
  }
};

/// What all elements of one linear layer share.
struct LayerErrors {
  double terms = 0.0;  ///< products and the bias
  double stored_weight_roundings = 0.0;
  double own_weight_roundings = 0.0;
  double largest_code =
      0.0;  ///< a scale that underflows is off by `tiny`, the weight by this much more
};

/// Error of one dot product: `moved` by its inputs, then `roundings` of sums and products and those
/// of the weights.
double dot_error(const RoundingModel& model, const LayerErrors& layer, double magnitude,
                 double moved, double roundings, double weight_roundings, double input_size) {
  const double above = magnitude + moved;
  if (above >= model.largest) return std::numeric_limits<double>::infinity();
  const double weight_underflow =
      weight_roundings > 0.0 ? (1.0 + layer.largest_code) * input_size : 0.0;
  return moved + model.gamma(roundings + weight_roundings) * above +
         model.tiny * (layer.terms + weight_underflow);
}

/// One element of a linear layer: its sums, and the errors of both evaluations.
Bounded bounded_dot(const Arithmetic& arithmetic, const LayerErrors& layer,
                    const BoundedMatrix& input, std::int64_t token, const InputRow& row,
                    const WeightRow& weights, const Bounded& added) {
  const auto offset = static_cast<std::size_t>(token * input.cols);
  const double* values = input.value.data() + offset;
  DotSums sums = plain_dot(weights.values.data(), values, input.stored.data() + offset,
                           input.own.data() + offset, weights.values.size());
  const bool compensates = arithmetic.compensated && std::isfinite(sums.value);
  if (compensates)
    sums.value = compensated_dot(weights.values.data(), values, weights.values.size());
  const double dot_size = std::fabs(sums.value);
  sums.value += added.value;
  const double magnitude = sums.magnitude + std::fabs(added.value);
  const int lowest = std::min(row.lowest + weights.lowest, lowest_bit(added.value));

  Bounded element{sums.value, 0.0, 0.0};
  const bool stored_is_exact = row.stored_is_exact && added.stored == 0.0 &&
                               layer.stored_weight_roundings == 0.0 &&
                               sums_exactly(arithmetic.stored, lowest, magnitude);
  if (!stored_is_exact) {
    element.stored = outward(dot_error(arithmetic.stored, layer, magnitude + added.stored,
                                       sums.stored + added.stored, layer.terms,
                                       layer.stored_weight_roundings, row.size));
  }
  if (weights.largest >= arithmetic.stored.largest)
    element.stored = std::numeric_limits<double>::infinity();
  const bool own_is_exact = row.own_is_exact && added.own == 0.0 &&
                            layer.own_weight_roundings == 0.0 &&
                            sums_exactly(arithmetic.own, lowest, magnitude);
  if (own_is_exact) return element;
  const double gamma = arithmetic.own.gamma(layer.terms);
  const double compensated_error =
      gamma * gamma * magnitude + arithmetic.own.unit * (dot_size + std::fabs(sums.value));
  element.own =
      outward((compensates ? compensated_error : 0.0) +
              dot_error(arithmetic.own, layer, magnitude + added.own, sums.own + added.own,
                        compensates ? 0.0 : layer.terms, layer.own_weight_roundings, row.size));
  return element;
}

/// How far the errors of one weight row move its dot product with one input row: the sum of
/// error(w) * (|x| + error(x)).
Bounded moved_by_weight(const BoundedMatrix& weight, std::int64_t row, const BoundedMatrix& input,
                        std::int64_t token) {
  Bounded moved;
  for (std::int64_t col = 0; col < weight.cols; ++col) {
    const Bounded w = weight.at(row, col);
    const Bounded x = input.at(token, col);
    moved.stored += w.stored * (std::fabs(x.value) + x.stored);
    moved.own += w.own * (std::fabs(x.value) + x.own);
  }
  return moved;
}

}  // namespace

BoundedMatrix::BoundedMatrix(std::int64_t row_count, std::int64_t col_count)
    : rows(row_count),
      cols(col_count),
      value(static_cast<std::size_t>(row_count * col_count)),
      stored(value.size()),
      own(value.size()) {}

Bounded BoundedMatrix::at(std::int64_t row, std::int64_t col) const {
  const auto index = static_cast<std::size_t>(row * cols + col);
  return {value[index], stored[index], own[index]};
}

void BoundedMatrix::set(std::int64_t row, std::int64_t col, const Bounded& element) {
  const auto index = static_cast<std::size_t>(row * cols + col);
  value[index] = element.value;
  stored[index] = element.stored;
  own[index] = element.own;
}

BoundedMatrix exact_matrix(std::span<const float> values, std::int64_t rows, std::int64_t cols) {
  if (static_cast<std::int64_t>(values.size()) != rows * cols) {
    fail("hidden", "{} values given, needs {} tokens x {}", values.size(), rows, cols);
  }
  BoundedMatrix matrix(rows, cols);
  std::copy(values.begin(), values.end(), matrix.value.begin());
  return matrix;
}

BoundedMatrix gather_rows(const BoundedMatrix& matrix, std::span<const std::int64_t> rows) {
  BoundedMatrix gathered(static_cast<std::int64_t>(rows.size()), matrix.cols);
  const auto copy_row = [&](const std::vector<double>& from, std::vector<double>& to,
                            std::size_t i) {
    const std::int64_t begin = rows[i] * matrix.cols;
    std::copy_n(from.begin() + begin, matrix.cols,
                to.begin() + static_cast<std::int64_t>(i) * matrix.cols);
  };
  for (std::size_t i = 0; i < rows.size(); ++i) {
    copy_row(matrix.value, gathered.value, i);
    copy_row(matrix.stored, gathered.stored, i);
    copy_row(matrix.own, gathered.own, i);
  }
  return gathered;
}

BoundedMatrix linear(const Arithmetic& arithmetic, const BoundedMatrix& weight,
                     const BoundedMatrix& input) {
  if (weight.cols != input.cols) {
    fail("weight", "has {} columns, its input has {}", weight.cols, input.cols);
  }
  std::vector<InputRow> rows;
  for (std::int64_t token = 0; token < input.rows; ++token)
    rows.push_back(describe_row(input, token));
  const LayerErrors layer{static_cast<double>(weight.cols), 0.0, 0.0, 0.0};
  BoundedMatrix output(input.rows, weight.rows);
  const auto width = static_cast<std::size_t>(weight.cols);
  for (std::int64_t row = 0; row < weight.rows; ++row) {
    const WeightRow weights(
        std::span(weight.value).subspan(static_cast<std::size_t>(row) * width, width));
    for (std::int64_t token = 0; token < input.rows; ++token) {
      output.set(token, row,
                 bounded_dot(arithmetic, layer, input, token, rows[static_cast<std::size_t>(token)],
                             weights, moved_by_weight(weight, row, input, token)));
    }
  }
  return output;
}

int dequantization_roundings(const ScaledMatrix& matrix, int precision_bits) {
  int bits = significant_bits(matrix.codes.format);
  int roundings = !matrix.scales && bits > precision_bits ? 1 : 0;
  if (matrix.scales) {
    bits += significant_bits(matrix.scales->format);
    // A power of two as scale leaves the significand alone; anything else may double its length.
    if (matrix.scales->format == Format::e8m0) bits = significant_bits(matrix.codes.format);
    if (bits > precision_bits) ++roundings;
  }
  switch (matrix.global_rule) {
    case GlobalScaleRule::none:
      return roundings;
    case GlobalScaleRule::multiply:
      // In f32 the scales are multiplied first, then the code: two roundings. In f64 the whole
      // product fits.
      return bits + significant_bits(Format::f32) > precision_bits ? 2 : roundings;
    case GlobalScaleRule::divide:
      return roundings + (precision_bits >= significant_bits(Format::f64) ? 1 : 2);
  }
  return roundings;
}

BoundedMatrix linear(const Arithmetic& arithmetic, const ScaledMatrix& weight,
                     const ScaledMatrix& bias, const BoundedMatrix& input, int threads,
                     const BoundedMatrix* residual) {
  if (weight.cols != input.cols) {
    fail(weight.name, "has {} columns, its input has {}", weight.cols, input.cols);
  }
  if (bias && bias.cols != weight.rows) {
    fail(bias.name, "has {} elements, {} has {} rows", bias.cols, weight.name, weight.rows);
  }
  const auto width = static_cast<std::size_t>(weight.cols);
  std::vector<double> bias_values(static_cast<std::size_t>(bias ? weight.rows : 0));
  if (bias) dequantize(bias, std::span<double>(bias_values));
  std::vector<InputRow> rows;
  for (std::int64_t token = 0; token < input.rows; ++token)
    rows.push_back(describe_row(input, token));
  const LayerErrors layer{
      static_cast<double>(weight.cols) + (bias ? 1.0 : 0.0) + (residual != nullptr ? 1.0 : 0.0),
      static_cast<double>(dequantization_roundings(weight, arithmetic.stored.significant_bits)),
      static_cast<double>(dequantization_roundings(weight, arithmetic.own.significant_bits)),
      static_cast<double>(info(weight.codes.format).max_finite)};

  BoundedMatrix output(input.rows, weight.rows);
  const std::int64_t panels = (weight.rows + kPanelRows - 1) / kPanelRows;
  parallel_for<std::vector<double>>(
      panels, threads, [&](std::int64_t panel, std::vector<double>& values) {
        const std::int64_t first = panel * kPanelRows;
        const std::int64_t count = std::min(kPanelRows, weight.rows - first);
        values.resize(static_cast<std::size_t>(count) * width);
        dequantize(row_slice(weight, first, count), std::span<double>(values));
        for (std::int64_t row = 0; row < count; ++row) {
          const WeightRow weights(std::span<const double>(values).subspan(
              static_cast<std::size_t>(row) * width, width));
          const double bias_value = bias ? bias_values[static_cast<std::size_t>(first + row)] : 0.0;
          for (std::int64_t token = 0; token < input.rows; ++token) {
            Bounded added = residual != nullptr ? residual->at(token, first + row) : Bounded{};
            added.value += bias_value;  // never both: no layer has a bias and a residual in one sum
            output.set(token, first + row,
                       bounded_dot(arithmetic, layer, input, token,
                                   rows[static_cast<std::size_t>(token)], weights, added));
          }
        }
      });
  return output;
}

}  // namespace moeref::bounds
