#include "engine/audit_difference.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "quant/dequantize.hpp"

namespace moeref {
namespace {

using Part = ScaledMatrix Expert::*;

struct NamedPart {
  Part part;
  std::string_view name;
};

constexpr NamedPart kGate{&Expert::gate, "gate"};
constexpr NamedPart kUp{&Expert::up, "up"};
constexpr NamedPart kDown{&Expert::down, "down"};

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

bool same(double left, double right) {
  return left == right || (std::isnan(left) && std::isnan(right));
}

/// The values of a matrix; zero beyond its sizes, and everywhere if it is absent.
class Values {
 public:
  Values(const NamedPart& named, const Expert& expert)
      : name_(named.name), matrix_(expert.*named.part) {
    if (!matrix_) return;
    values_.resize(to_size(matrix_.rows * matrix_.cols));
    dequantize(matrix_, values_);
  }
  std::string_view name() const { return name_; }
  const ScaledMatrix& matrix() const { return matrix_; }
  std::int64_t rows() const { return matrix_.rows; }
  std::int64_t cols() const { return matrix_.cols; }
  bool has(std::int64_t row, std::int64_t col) const {
    return !values_.empty() && row < rows() && col < cols();
  }
  double at(std::int64_t row, std::int64_t col) const {
    return has(row, col) ? values_[to_size(row * cols() + col)] : 0.0;
  }

 private:
  std::string_view name_;
  ScaledMatrix matrix_;
  std::vector<double> values_;
};

bool same_row(const Values& left, std::int64_t row, const Values& right, std::int64_t other) {
  for (std::int64_t col = 0; col < std::max(left.cols(), right.cols()); ++col) {
    if (!same(left.at(row, col), right.at(other, col))) return false;
  }
  return true;
}

bool same_column(const Values& left, std::int64_t col, const Values& right, std::int64_t other) {
  for (std::int64_t row = 0; row < std::max(left.rows(), right.rows()); ++row) {
    if (!same(left.at(row, col), right.at(row, other))) return false;
  }
  return true;
}

std::string wanted(const Values& meant, std::string_view axis, std::int64_t number,
                   std::int64_t size) {
  return number < size ? fmt::format("{} {} {}", meant.name(), axis, number) : "padding";
}

/// Which row of `sources` stands where row `row` of the kernel's matrix is.
std::string find_row(const Values& seen, std::int64_t row, const Values& meant,
                     const std::vector<Values>& sources) {
  const std::string begin = fmt::format("the kernel's {} row {} is", seen.name(), row);
  const std::string end = fmt::format(", must be {}", wanted(meant, "row", row, meant.rows()));
  if (same_row(seen, row, meant, meant.rows())) return fmt::format("{} 0{}", begin, end);
  for (const Values& source : sources) {
    for (std::int64_t other = 0; other < source.rows(); ++other) {
      if (same_row(seen, row, source, other)) {
        return fmt::format("{} {} row {}{}", begin, source.name(), other, end);
      }
    }
  }
  return {};
}

std::string find_column(const Values& seen, std::int64_t col, const Values& meant) {
  const std::string begin = fmt::format("the kernel's {} column {} is", seen.name(), col);
  const std::string end = fmt::format(", must be {}", wanted(meant, "column", col, meant.cols()));
  if (same_column(seen, col, meant, meant.cols())) return fmt::format("{} 0{}", begin, end);
  for (std::int64_t other = 0; other < meant.cols(); ++other) {
    if (same_column(seen, col, meant, other)) {
      return fmt::format("{} {} column {}{}", begin, meant.name(), other, end);
    }
  }
  return {};
}

/// A single element that no row or column of the meant layer explains.
std::string describe_element(const Values& seen, const Values& meant, std::int64_t row,
                             std::int64_t col) {
  const std::string place = fmt::format("the kernel's {} row {}, column {}", seen.name(), row, col);
  if (!meant.has(row, col)) {
    return fmt::format("{} is {}, must be padding", place, seen.at(row, col));
  }
  if (seen.has(row, col) &&
      same(element_at(seen.matrix(), row, col), element_at(meant.matrix(), row, col))) {
    const float scale = scale_at(seen.matrix(), row, col);
    const float right = scale_at(meant.matrix(), row, col);
    if (scale != right) {
      return fmt::format("{} has its code, but the block scale {}, must be {}", place, scale,
                         right);
    }
  }
  return fmt::format("{} is {}, must be {}", place, seen.at(row, col), meant.at(row, col));
}

std::string first_difference(const NamedPart& named, const Expert& kernel, const Expert& meant,
                             const std::vector<NamedPart>& sources) {
  const Values seen(named, kernel);
  const Values right(named, meant);
  for (std::int64_t row = 0; row < std::max(seen.rows(), right.rows()); ++row) {
    for (std::int64_t col = 0; col < std::max(seen.cols(), right.cols()); ++col) {
      if (same(seen.at(row, col), right.at(row, col))) continue;
      std::vector<Values> candidates;
      for (const NamedPart& source : sources) candidates.emplace_back(source, meant);
      std::string text = find_row(seen, row, right, candidates);
      if (text.empty()) text = find_column(seen, col, right);
      return text.empty() ? describe_element(seen, right, row, col) : text;
    }
  }
  return {};
}

/// A bias is one row: its elements stand for rows of the matrix.
std::string first_bias_difference(const NamedPart& named, const Expert& kernel,
                                  const Expert& meant) {
  const Values seen(named, kernel);
  const Values right(named, meant);
  for (std::int64_t i = 0; i < std::max(seen.cols(), right.cols()); ++i) {
    if (same(seen.at(0, i), right.at(0, i))) continue;
    return fmt::format("the kernel's {} of row {} is {}, must be {}", named.name, i, seen.at(0, i),
                       right.at(0, i));
  }
  return {};
}

std::string first_in_expert(const Expert& kernel, const Expert& meant) {
  const std::vector<NamedPart> w13 =
      meant.gate ? std::vector<NamedPart>{kGate, kUp} : std::vector<NamedPart>{kUp};
  std::string text;
  for (const NamedPart& named : w13) {
    if (text.empty()) text = first_difference(named, kernel, meant, w13);
  }
  if (text.empty()) text = first_difference(kDown, kernel, meant, {kDown});
  for (const NamedPart& bias :
       {NamedPart{&Expert::gate_bias, "gate bias"}, NamedPart{&Expert::up_bias, "up bias"},
        NamedPart{&Expert::down_bias, "down bias"}}) {
    if (text.empty()) text = first_bias_difference(bias, kernel, meant);
  }
  return text;
}

/// Where column `col` of a row of `stage` stands in the kernel's, wider stage.
std::int64_t kernel_column(const std::string& stage, std::int64_t col, const MoeLayer& kernel,
                           const MoeLayer& meant) {
  const bool is_up = stage == "gemm1" && meant.gated() && col >= meant.intermediate;
  return is_up ? col - meant.intermediate + kernel.intermediate : col;
}

}  // namespace

std::string first_wrong_weight(const MoeLayer& kernel, const MoeLayer& meant) {
  for (std::size_t e = 0; e < meant.experts.size(); ++e) {
    const std::string text = first_in_expert(kernel.experts[e], meant.experts[e]);
    if (text.empty()) continue;
    return fmt::format("expert {}: {}", meant.first_expert + static_cast<std::int64_t>(e), text);
  }
  return {};
}

std::string first_wrong_stage(const ForwardResult& kernel_run, const ForwardResult& meant_run,
                              const MoeLayer& kernel, const MoeLayer& meant, const Route& route) {
  for (std::size_t s = 0; s < meant_run.stages.size(); ++s) {
    const Stage& right = meant_run.stages[s];
    const Stage& seen = kernel_run.stages[s];
    const std::vector<float> right_values = right.values();
    const std::vector<float> seen_values = seen.values();
    const std::int64_t width = right.tensor.shape.back();
    const std::int64_t kernel_width = seen.tensor.shape.back();
    const auto rows = std::ssize(right_values) / width;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < width; ++col) {
        const std::int64_t other = kernel_column(right.name, col, kernel, meant);
        const float is = seen_values[to_size(row * kernel_width + other)];
        const float must = right_values[to_size(row * width + col)];
        if (std::bit_cast<std::uint32_t>(is) == std::bit_cast<std::uint32_t>(must)) continue;
        return fmt::format(
            "all weights and biases are right, {} of expert {}, column {}, is {}, "
            "must be {}{}",
            right.name, route.ids[to_size(row)], col, is, must,
            right.name == "act" ? ": the activation's parameters differ" : "");
      }
    }
  }
  return {};
}

}  // namespace moeref
