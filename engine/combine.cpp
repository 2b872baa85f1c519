#include "engine/combine.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "engine/exact/linear_form.hpp"
#include "engine/exact/rounding.hpp"
#include "engine/gemm_problem.hpp"
#include "engine/kernel_rounding.hpp"
#include "engine/prepared_rows.hpp"
#include "engine/sum_bounds.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/gpu/functions.hpp"
#include "quant/parallel.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// One slot of a token, its expert here.
struct SlotTerm {
  std::int64_t slot = 0;   ///< of the layer
  std::size_t number = 0;  ///< of the token
  float weight = 1.0f;
  ScaledMatrix bias;  ///< of GEMM2, if the combine adds it
};

std::vector<SlotTerm> terms_of(const CombineNumerics& numerics, const CombineInputs& inputs,
                               std::int64_t token) {
  const Route& route = inputs.route;
  std::vector<SlotTerm> terms;
  for (std::int64_t k = 0; k < route.top_k; ++k) {
    const std::int64_t slot = token * route.top_k + k;
    const std::int64_t expert = route.ids[to_size(slot)] - inputs.layer.first_expert;
    if (route.ids[to_size(slot)] < 0 || expert < 0 || expert >= inputs.layer.local_experts()) {
      continue;
    }
    SlotTerm term;
    term.slot = slot;
    term.number = to_size(k);
    if (inputs.router_weight == WeightPoint::combine) {
      term.weight = kernel_rounded(inputs.weights, route.weights[to_size(slot)]);
    }
    if (numerics.adds_bias) term.bias = inputs.layer.experts[to_size(expert)].down_bias;
    terms.push_back(term);
  }
  return terms;
}

struct Scratch {
  exact::LinearForm form;
  std::vector<float> y;         ///< [slots, width]
  std::vector<float> bias;      ///< [slots, width]
  std::vector<float> residual;  ///< [width]
  std::vector<float> out;       ///< [width]
  std::vector<float> slots;     ///< [power of two]
  std::vector<double> wide;     ///< [width]
};

/// The f32 operations of a kernel, with or without flush.
struct Operations {
  bool flushes;
  float plus(float a, float b) const {
    return flushes ? gpu::add_ftz(a, b) : gpu::canonical(a + b);
  }
  float times(float a, float b) const { return flushes ? gpu::mul_ftz(a, b) : gpu::mul(a, b); }
  float fused(float a, float b, float c) const {
    return flushes ? gpu::fma_ftz(a, b, c) : gpu::fma(a, b, c);
  }
};

/// One rounding to the output type: in f32 first, where the kernel computes in f32, or of the exact
/// result.
struct OneStep {
  bool replays;
  Format output;
  float times(float a, float b) const {
    if (replays) return kernel_rounded(output, gpu::mul(a, b));
    return exact::round_to(output, static_cast<double>(a) * b + 0.0);
  }
  /// The sum of two numbers of 16 bits, or of f32 that is the output type: as if rounded once in
  /// f64.
  float plus(float a, float b) const {
    if (replays) return kernel_rounded(output, gpu::canonical(a + b));
    return exact::round_to(output, static_cast<double>(a) + b + 0.0);
  }
};

/// One column of one token.
class Column {
 public:
  Column(const CombineNumerics& numerics, const OneStep& step, const CombineInputs& inputs,
         const std::vector<SlotTerm>& terms, Scratch& scratch)
      : numerics_(numerics),
        step_(step),
        inputs_(inputs),
        output_(step.output),
        terms_(terms),
        scratch_(scratch),
        op_{numerics.flushes} {}

  float exact(std::int64_t col) {
    exact::LinearForm& form = scratch_.form;
    form.clear();
    double ieee = 0.0;
    for (std::size_t i = 0; i < terms_.size(); ++i) {
      const double weight = terms_[i].weight;
      form.add_product(weight, y(i, col));
      ieee += weight * y(i, col);
      if (!terms_[i].bias) continue;
      form.add_product(weight, bias(i, col));
      ieee += weight * bias(i, col);
    }
    const bool scales = numerics_.scaling == ScalingPoint::in_sum;
    const double scaling = scales ? inputs_.scaling : 1.0;
    const double residual = inputs_.residual != nullptr ? scratch_.residual[to_size(col)] : 0.0;
    form.multiply_by(scaling);
    form.add(residual);
    ieee = ieee * scaling + residual;
    return std::isfinite(ieee) ? form.round(output_)
           : std::isnan(ieee)  ? exact::canonical_nan()
                               : static_cast<float>(ieee);
  }

  /// The same of all columns: some side by side in two f64 numbers each; what those leave in doubt,
  /// one by one.
  void exact_row(std::span<float> out) {
    const simd::GemmKernels& kernels = *chosen_kernels().gemm;
    const std::size_t width = out.size();
    const double error = row_bound(width, kernels);
    const double scaling = numerics_.scaling == ScalingPoint::in_sum ? inputs_.scaling : 1.0;
    for (std::size_t first = 0; first < width; first += simd::kPanelColumns) {
      const std::size_t columns = std::min(simd::kPanelColumns, width - first);
      double high[simd::kPanelColumns] = {};
      double low[simd::kPanelColumns] = {};
      double errors[simd::kPanelColumns];
      double values[simd::kPanelColumns] = {};
      const auto add = [&](std::size_t i, const std::vector<float>& from) {
        std::copy_n(from.data() + i * width + first, columns, values);
        const double weight = terms_[i].weight;
        kernels.add_segment(values, 1, kNoScales.data(), &weight, high, low);
      };
      for (std::size_t i = 0; i < terms_.size(); ++i) {
        add(i, scratch_.y);
        if (terms_[i].bias) add(i, scratch_.bias);
      }
      std::fill_n(errors, simd::kPanelColumns, error);
      double residual[simd::kPanelColumns] = {};
      simd::FinishTerms terms;
      terms.high = high;
      terms.low = low;
      terms.error = errors;
      terms.multipliers = &scaling;
      terms.multiplier_count = scaling == 1.0 ? 0 : 1;
      if (inputs_.residual != nullptr) {
        std::copy_n(scratch_.residual.data() + first, columns, residual);
        terms.addends[0] = residual;
      }
      float results[simd::kPanelColumns];
      const std::uint32_t doubts = kernels.finish(terms, output_type(output_), results);
      for (std::size_t j = 0; j < columns; ++j) {
        out[first + j] =
            (doubts >> j & 1) == 0 ? results[j] : exact(static_cast<std::int64_t>(first + j));
      }
    }
  }

  float weighted_fma(std::int64_t col) const {
    float sum = 0.0f;
    for (std::size_t i = 0; i < terms_.size(); ++i) {
      const float value = terms_[i].bias ? op_.plus(y(i, col), bias(i, col)) : y(i, col);
      sum = op_.fused(terms_[i].weight, value, sum);
    }
    return scaled(sum);
  }

  float sum(std::int64_t col) const {
    // A slot without an expert here holds a row of zeros.
    const auto count = to_size(inputs_.route.top_k);
    float sum = numerics_.starts_at_zero ? op_.plus(0.0f, slot_value(0, col)) : slot_value(0, col);
    for (std::size_t k = 1; k < count; ++k) sum = op_.plus(sum, slot_value(k, col));
    return scaled(sum);
  }

  float folded_sum(std::int64_t col) {
    const auto count = to_size(inputs_.route.top_k);
    const int bits = static_cast<int>(std::bit_width(count - 1));
    std::vector<float>& u = scratch_.slots;
    u.assign(std::size_t{1} << bits, 0.0f);
    for (std::size_t k = 0; k < count; ++k) u[k] = slot_value(k, col);
    const auto fold = [&](int bit) {
      const std::size_t step = std::size_t{1} << bit;
      for (std::size_t k = 0; k < u.size(); ++k) {
        if ((k & step) == 0) u[k] = op_.plus(u[k], u[k | step]);
      }
    };
    for (int bit = numerics_.fold_from - 1; bit >= 0; --bit) fold(bit);
    for (int bit = bits - 1; bit >= numerics_.fold_from; --bit) fold(bit);
    return scaled(u.front());
  }

  /// Rounded to the output type after each slot.
  float running(std::int64_t col, bool weighs) const {
    float sum = 0.0f;
    for (std::size_t i = 0; i < terms_.size(); ++i) {
      sum = step_.plus(sum, weighs ? step_.times(terms_[i].weight, y(i, col)) : y(i, col));
    }
    return sum;
  }

 private:
  float y(std::size_t i, std::int64_t col) const {
    return scratch_.y[i * to_size(inputs_.gemm2.cols()) + to_size(col)];
  }
  float bias(std::size_t i, std::int64_t col) const {
    return scratch_.bias[i * to_size(inputs_.gemm2.cols()) + to_size(col)];
  }
  /// What the folded sums of a row lack at most; infinity if one of its numbers is not finite.
  double row_bound(std::size_t width, const simd::GemmKernels& kernels) {
    double total = 0.0;
    int lowest = RowReach::kNoBits;
    std::int64_t count = 0;
    const auto add = [&](std::size_t i, const std::vector<float>& from) {
      scratch_.wide.assign(from.begin() + static_cast<std::ptrdiff_t>(i * width),
                           from.begin() + static_cast<std::ptrdiff_t>((i + 1) * width));
      const Window window = window_of(scratch_.wide, kernels);
      const double weight = std::fabs(static_cast<double>(terms_[i].weight));
      ++count;
      if (window.empty || weight == 0.0) return;
      constexpr int kLargest = 128;  // of finite f32 numbers
      total += window.largest > kLargest ? HUGE_VAL : std::ldexp(weight, window.largest);
      if (std::isfinite(total)) {
        lowest = std::min(lowest, window.lowest + lowest_exponent(weight));
      }
    };
    for (std::size_t i = 0; i < terms_.size(); ++i) {
      add(i, scratch_.y);
      if (terms_[i].bias) add(i, scratch_.bias);
    }
    return fold_bound(count, total * (1.0 + 0x1p-30), lowest);
  }

  /// Of the slot number k of the token, +0 if it has no expert here.
  float slot_value(std::size_t k, std::int64_t col) const {
    for (std::size_t i = 0; i < terms_.size(); ++i) {
      if (terms_[i].number == k) return y(i, col);
    }
    return 0.0f;
  }
  float scaled(float sum) const {
    const bool here = numerics_.scaling == ScalingPoint::in_sum && inputs_.scaling != 1.0f;
    return kernel_rounded(output_, here ? op_.times(sum, inputs_.scaling) : sum);
  }

  const CombineNumerics& numerics_;
  OneStep step_;
  const CombineInputs& inputs_;
  Format output_;
  const std::vector<SlotTerm>& terms_;
  Scratch& scratch_;
  Operations op_;
};

void read_slots(const CombineInputs& inputs, const std::vector<SlotTerm>& terms, std::int64_t token,
                Scratch& scratch) {
  const auto width = to_size(inputs.gemm2.cols());
  scratch.y.resize(terms.size() * width);
  scratch.bias.assign(terms.size() * width, 0.0f);
  for (std::size_t i = 0; i < terms.size(); ++i) {
    inputs.gemm2.get(terms[i].slot, 0, std::span(scratch.y).subspan(i * width, width));
    for (std::size_t col = 0; terms[i].bias && col < width; ++col) {
      scratch.bias[i * width + col] =
          static_cast<float>(element_at(terms[i].bias, 0, static_cast<std::int64_t>(col)));
    }
  }
  if (inputs.residual == nullptr) return;
  scratch.residual.resize(width);
  inputs.residual->get(token, 0, scratch.residual);
}

float round_again(const CombineNumerics& numerics, const OneStep& step, float scaling,
                  float value) {
  if (numerics.scaling != ScalingPoint::after_sum || scaling == 1.0f) return value;
  return step.times(value, scaling);
}

}  // namespace

Rows combine(const CombineNumerics& numerics, NumericsLevel level, const CombineInputs& inputs,
             Format output, int threads) {
  const std::int64_t width = inputs.gemm2.cols();
  Rows out("combine", output, inputs.route.tokens, width);
  const bool exact = level != NumericsLevel::replay || numerics.form == CombineForm::exact;
  const OneStep step{!exact, output};
  const bool stepwise =
      numerics.form == CombineForm::running || numerics.form == CombineForm::atomic_add;
  if (stepwise && numerics.scaling == ScalingPoint::in_sum) {
    fail("combine",
         "rounds every addition and has no sum for the routed scaling factor (in_sum); "
         "numerics need after_sum or with_shared");
  }
  parallel_for<Scratch>(inputs.route.tokens, threads, [&](std::int64_t token, Scratch& scratch) {
    const std::vector<SlotTerm> terms = terms_of(numerics, inputs, token);
    read_slots(inputs, terms, token, scratch);
    Column column(numerics, step, inputs, terms, scratch);
    scratch.out.resize(to_size(width));
    const bool by_rows = exact && !stepwise;
    if (by_rows) column.exact_row(scratch.out);
    for (std::int64_t col = 0; col < width; ++col) {
      float value = 0.0f;
      if (by_rows) {
        value = scratch.out[to_size(col)];
      } else if (stepwise) {
        value = column.running(col, numerics.form == CombineForm::running);
      } else if (numerics.form == CombineForm::weighted_fma) {
        value = column.weighted_fma(col);
      } else if (numerics.form == CombineForm::folded_sum) {
        value = column.folded_sum(col);
      } else {
        value = column.sum(col);
      }
      scratch.out[to_size(col)] = round_again(numerics, step, inputs.scaling, value);
    }
    out.put(token, 0, scratch.out);
  });
  return out;
}

Rows join_shared(const CombineNumerics& numerics, float scaling, Rows routed, const Rows* shared) {
  const bool scales = numerics.scaling == ScalingPoint::with_shared && scaling != 1.0f;
  if (shared == nullptr && !scales) return routed;
  const Format output = routed.format();
  Rows out("final", output, routed.rows(), routed.cols());
  std::vector<float> sum(to_size(routed.cols()));
  std::vector<float> addend(sum.size());
  exact::LinearForm form;
  const OneStep step{/*replays=*/false, output};
  for (std::int64_t row = 0; row < routed.rows(); ++row) {
    routed.get(row, 0, sum);
    if (shared != nullptr) shared->get(row, 0, addend);
    for (std::size_t col = 0; col < sum.size(); ++col) {
      if (!scales) {
        sum[col] = step.plus(sum[col], addend[col]);
        continue;
      }
      const double ieee = static_cast<double>(sum[col]) * scaling + addend[col];
      if (!std::isfinite(ieee)) {
        sum[col] = std::isnan(ieee) ? exact::canonical_nan() : static_cast<float>(ieee);
        continue;
      }
      form.clear();
      form.add_product(scaling, sum[col]);
      form.add(addend[col]);
      sum[col] = form.round(output);
    }
    out.put(row, 0, sum);
  }
  return out;
}

}  // namespace moeref
