#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "io/inspect/inspect.hpp"

namespace moeref {
namespace {

/// From so many values on, the absence of the largest codes is no accident.
constexpr std::int64_t kManyValues = 4096;
/// From so many scales on, one value for all is no accident.
constexpr std::int64_t kManyScales = 16;
/// Mean magnitudes of trained weights lie well inside.
constexpr double kLeastWeight = 0x1p-24;
constexpr double kMostWeight = 16.0;
/// E4M3FNUZ ends at 240, E4M3FN at 448: a tensor scaled for FN reaches above 240.
constexpr double kFnuzMax = 240.0;
/// A power-of-two scale leaves the largest value anywhere from 224 on; 208 is the code below.
constexpr double kBelowE8m0Range = 208.0;
constexpr double kE2m1Max = 6.0;

const TensorValues* find(const ValuesByTensor& values, const TensorView* view) {
  const auto found = view == nullptr ? values.end() : values.find(view);
  return found == values.end() ? nullptr : &found->second;
}

bool is_fp8(Format format) {
  return format == Format::e4m3 || format == Format::e4m3fnuz || format == Format::e5m2 ||
         format == Format::e5m2fnuz;
}

class ValueChecks {
 public:
  ValueChecks(const TensorSet& set, const ValuesByTensor& values, Findings& findings)
      : set_(set), values_(values), findings_(findings) {}

  void check(const WeightForm& form) {
    if (const TensorValues* weight = find(values_, form.weight))
      check_weight(form, weight->statistics);
    if (const TensorValues* scale = find(values_, form.scale)) {
      check_scale(*form.scale, scale->statistics);
      check_block_scales(form, scale->statistics);
    }
    for (const TensorView* view : {form.global_scale, form.input_scale}) {
      if (const TensorValues* scale = find(values_, view)) check_scale(*view, scale->statistics);
    }
    check_magnitude(form);
    check_zero_blocks(form);
    for (const TensorView* view : {form.weight, form.scale, form.global_scale, form.input_scale}) {
      seen_.insert(view);
    }
  }

  /// Tensors that are neither weights nor scales: biases, norms, tables.
  void check_others() {
    for (const auto& [view, read] : values_) {
      if (seen_.contains(view)) continue;
      if (read.statistics.nans > 0) {
        add(Severity::error, "tensor.nan", *view, "holds {} NaN", read.statistics.nans);
      }
      if (read.statistics.infinities > 0) {
        add(Severity::warning, "tensor.inf", *view, "holds {} infinities",
            read.statistics.infinities);
      }
    }
  }

 private:
  template <typename... Args>
  void add(Severity severity, std::string_view code, const TensorView& view,
           fmt::format_string<Args...> detail, Args&&... args) {
    findings_.add(severity, code, view.name, fmt::format(detail, std::forward<Args>(args)...));
  }

  void check_weight(const WeightForm& form, const ValueStatistics& values) {
    const TensorView& weight = *form.weight;
    const bool fp8 = is_fp8(form.element);
    if (values.nans > 0) {
      add(Severity::error, fp8 ? "fp8.nan-code" : "weight.nan", weight, "{} of {} codes are NaN",
          values.nans, values.count);
    }
    if (values.infinities > 0) {
      add(Severity::error, "weight.inf", weight, "{} of {} values are infinite", values.infinities,
          values.count);
    }
    if (form.element == Format::e4m3 && values.negative_zeros > 0) {
      add(Severity::note, "fp8.negative-zero", weight,
          "{} codes 0x80: -0 here, but NaN where the bytes are read as E4M3FNUZ (AMD)",
          values.negative_zeros);
    }
    if (values.count > 0 && values.zeros == values.count) {
      add(Severity::warning, "weight.all-zero", weight, "all {} values are 0", values.count);
      return;
    }
    if (values.count < kManyValues || !form.quantized()) return;
    const double least = form.scale_element == Format::e8m0 ? kBelowE8m0Range : kFnuzMax;
    if (form.element == Format::e4m3 && values.max_abs() <= least) {
      add(Severity::warning, "fp8.range-truncated", weight,
          "no code above {} among {}: scaled for E4M3FNUZ, or clipped; E4M3FN goes to 448",
          values.max_abs(), values.count);
    }
    if (form.element == Format::e2m1 && values.max_abs() < kE2m1Max) {
      add(Severity::warning, "fp4.range-truncated", weight,
          "no code above {} among {}; E2M1 goes to 6", values.max_abs(), values.count);
    }
  }

  void check_scale(const TensorView& scale, const ValueStatistics& values) {
    const bool e8m0 = scale.dtype == DType::f8_e8m0 || scale.dtype == DType::u8;
    if (values.nans > 0) {
      add(Severity::error, e8m0 ? "e8m0.nan-byte" : "scale.nan", scale, "{} of {} scales are NaN{}",
          values.nans, values.count, e8m0 ? " (0xFF)" : "");
    }
    if (values.infinities > 0) {
      add(Severity::error, "scale.inf", scale, "{} of {} scales are infinite", values.infinities,
          values.count);
    }
    if (values.zeros > 0) {
      const bool whole = values.count == values.zeros;
      add(whole ? Severity::error : Severity::warning, "scale.zero", scale, "{} of {} scales are 0",
          values.zeros, values.count);
    }
    if (values.negatives + values.negative_zeros > 0) {
      add(Severity::error, "scale.negative", scale, "{} of {} scales have the sign bit set",
          values.negatives + values.negative_zeros, values.count);
    }
    if (e8m0 && values.subnormals > 0) {
      add(Severity::warning, "e8m0.zero-byte", scale,
          "{} of {} bytes are 0x00: 2^-127 in OCP, 0 for decoders that shift the byte into an "
          "exponent; often the "
          "mark of a numeric cast from E8M0 to U8",
          values.subnormals, values.count);
    }
    if (values.count >= kManyScales && values.finite == values.count && values.min == values.max) {
      add(Severity::warning, "scale.constant", scale, "all {} scales are {}: never filled in?",
          values.count, values.min);
    }
  }

  void check_block_scales(const WeightForm& form, const ValueStatistics& values) {
    if (form.scale_element == Format::e4m3 && values.count >= kManyScales &&
        10 * values.subnormals > values.count) {
      add(Severity::warning, "nvfp4.scale-subnormal", *form.scale,
          "{} of {} block scales are subnormal E4M3 and have lost bits: was the global scale "
          "folded in?",
          values.subnormals, values.count);
    }
    if (is_ue8m0() && is_fp8(form.element) && form.scale_element != Format::e8m0 &&
        values.not_powers_of_two > 0) {
      add(Severity::warning, "ue8m0.not-power-of-two", *form.scale,
          "{} of {} scales are no power of two, but config.json says scale_fmt ue8m0",
          values.not_powers_of_two, values.count);
    }
  }

  bool is_ue8m0() const {
    if (!set_.config) return false;
    const auto quantization = set_.config->find("quantization_config");
    if (quantization == set_.config->end() || !quantization->is_object()) return false;
    const auto format = quantization->find("scale_fmt");
    return format != quantization->end() && *format == "ue8m0";
  }

  static bool plausible(double weight) { return weight >= kLeastWeight && weight <= kMostWeight; }

  /// Mean magnitudes of codes, scales and global scale together give that of the weights.
  void check_magnitude(const WeightForm& form) {
    const TensorValues* weight = find(values_, form.weight);
    const TensorValues* scale = find(values_, form.scale);
    if (weight == nullptr || scale == nullptr) return;
    const double codes = weight->statistics.mean_abs();
    const double scales = scale->statistics.mean_abs();
    const TensorValues* global_values = find(values_, form.global_scale);
    const double stored = global_values == nullptr ? 1.0 : global_values->statistics.mean_abs();
    if (codes == 0 || scales == 0 || stored == 0) return;  // told already
    const double global = form.global_divides ? 1 / stored : stored;
    const double typical = codes * scales * global;
    if (plausible(typical)) return;
    if (form.global_scale != nullptr && plausible(codes * scales / global)) {
      add(Severity::warning, "nvfp4.global-inverted", *form.global_scale,
          "weights come to about {:.3g}; if {} they come to {:.3g}: is it the reciprocal?", typical,
          form.global_divides ? "it multiplied" : "it divided", codes * scales / global);
    } else if (form.scale_element != Format::e8m0 && plausible(codes / scales * global)) {
      add(Severity::warning, "scale.inverted", *form.scale,
          "weights come to about {:.3g}; if it divided they come to {:.3g}: is it the reciprocal? "
          "(weight_scale_inv multiplies, despite its name)",
          typical, codes / scales * global);
    } else {
      add(Severity::warning, "weight.magnitude", *form.weight,
          "weights come to about {:.3g} with their scales", typical);
    }
  }

  void check_zero_blocks(const WeightForm& form) {
    if (form.block_rows == 0 || find(values_, form.weight) == nullptr || form.stack < 1) return;
    if (form.block_cols >= form.cols && form.block_rows >= form.rows) return;
    const bool packed = form.element == Format::e2m1;
    const std::int64_t row_bytes = packed ? form.cols / 2 : form.cols;
    const std::int64_t rows = form.stack * form.rows;
    if (row_bytes * rows != std::ssize(form.weight->bytes))
      return;  // the shapes do not fit, told already
    const std::int64_t block_bytes = packed ? form.block_cols / 2 : form.block_cols;
    const std::byte magnitude{packed ? std::uint8_t{0x77} : std::uint8_t{0x7F}};
    const std::int64_t block_count = (row_bytes + block_bytes - 1) / block_bytes;
    std::vector<char> filled(static_cast<std::size_t>(block_count));
    std::int64_t zero = 0;
    std::int64_t total = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      if (row % form.rows % form.block_rows == 0) std::ranges::fill(filled, char{0});
      const std::byte* bytes = form.weight->bytes.data() + row * row_bytes;
      for (std::int64_t block = 0; block < block_count; ++block) {
        char& flag = filled[static_cast<std::size_t>(block)];
        const std::int64_t end = std::min(row_bytes, (block + 1) * block_bytes);
        for (std::int64_t at = block * block_bytes; at < end && flag == 0; ++at) {
          flag = (bytes[at] & magnitude) != std::byte{0};
        }
      }
      const std::int64_t within = row % form.rows;
      if (within + 1 == form.rows || (within + 1) % form.block_rows == 0) {
        zero += std::ranges::count(filled, char{0});
        total += block_count;
      }
    }
    if (zero > 0 && zero < total) {
      add(Severity::warning, "block.all-zero", *form.weight, "{} of {} blocks of {}x{} are all 0",
          zero, total, form.block_rows, form.block_cols);
    }
  }

  const TensorSet& set_;
  const ValuesByTensor& values_;
  Findings& findings_;
  std::set<const TensorView*> seen_;
};

}  // namespace

void check_values(const TensorSet& set, std::span<const WeightForm> forms,
                  const ValuesByTensor& values, Findings& findings) {
  ValueChecks checks(set, values, findings);
  for (const WeightForm& form : forms) checks.check(form);
  checks.check_others();
}

}  // namespace moeref
