#include "io/inspect/weight_forms.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

namespace moeref {
namespace {

constexpr std::int64_t kMxBlock = 32;
constexpr std::int64_t kNvfp4Block = 16;

bool is_byte(DType dtype) { return dtype == DType::u8 || dtype == DType::i8; }
bool is_e4m3(DType dtype) { return dtype == DType::f8_e4m3 || dtype == DType::f8_e4m3fnuz; }
bool is_fp8(DType dtype) {
  return is_e4m3(dtype) || dtype == DType::f8_e5m2 || dtype == DType::f8_e5m2fnuz;
}
bool is_plain_float(DType dtype) {
  return dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f32 || dtype == DType::f64;
}

/// What scales belong to: the suffix of a scale, and the suffixes of the weight it may scale.
struct ScaleName {
  std::string_view suffix;
  std::array<std::string_view, 2> weights;
};
constexpr std::array<ScaleName, 8> kScaleNames{{
    {".weight_scale", {".weight", ".weight_packed"}},
    {".weight_scale_inv", {".weight", ".weight"}},
    {".scale", {".weight", ".weight"}},
    {"_scales", {"_blocks", "_blocks"}},
    {".weight_scale_2", {".weight", ".weight"}},
    {".weight_global_scale", {".weight_packed", ".weight_packed"}},
    {".input_scale", {".weight", ".weight"}},
    {".input_global_scale", {".weight_packed", ".weight_packed"}},
}};

class Recogniser {
 public:
  Recogniser(const TensorSet& set, Findings& findings) : set_(set), findings_(findings) {
    read_config_block();
  }

  std::vector<WeightForm> run() {
    for (const auto& [name, view] : set_.tensors) {
      if (auto form = recognise(name, *view)) forms_.push_back(std::move(*form));
    }
    report_orphans();
    return std::move(forms_);
  }

 private:
  const TensorView* with(const std::string& prefix, std::string_view suffix) const {
    return set_.find(prefix + std::string(suffix));
  }

  /// `weight_block_size` of config.json: which square FP8 blocks have scales is stated nowhere
  /// else.
  void read_config_block() {
    if (!set_.config) return;
    const auto child = [](const nlohmann::json& parent,
                          std::string_view key) -> const nlohmann::json* {
      const auto found = parent.find(key);
      return found != parent.end() && found->is_object() ? &*found : nullptr;
    };
    const nlohmann::json* section = child(*set_.config, "quantization_config");
    if (section == nullptr) {
      const nlohmann::json* text = child(*set_.config, "text_config");
      section = text == nullptr ? nullptr : child(*text, "quantization_config");
    }
    if (section == nullptr) return;
    const auto block = section->find("weight_block_size");
    if (block == section->end() || !block->is_array() || block->size() != 2) return;
    if (!block->at(0).is_number_integer() || !block->at(1).is_number_integer()) return;
    block_rows_ = std::max<std::int64_t>(1, block->at(0).get<std::int64_t>());
    block_cols_ = std::max<std::int64_t>(1, block->at(1).get<std::int64_t>());
  }

  std::optional<WeightForm> recognise(const std::string& name, const TensorView& weight) {
    WeightForm form;
    form.weight = &weight;
    const auto take = [&](std::string_view suffix) {
      if (!name.ends_with(suffix)) return false;
      form.prefix = name.substr(0, name.size() - suffix.size());
      return true;
    };
    if (take("_blocks") && weight.shape.size() == 4) return stacked_mxfp4(form);
    if (take(".weight_packed")) return packed(form);
    if (take(".weight") && weight.shape.size() >= 2) return weight_and_scale(form);
    const bool stacked = name.find("experts.") != std::string::npos && weight.shape.size() == 3 &&
                         is_plain_float(weight.dtype);
    if (!stacked) return std::nullopt;
    form.prefix = name;
    return plain(form);
  }

  WeightForm plain(WeightForm form) const {
    const Shape& shape = form.weight->shape;
    form.element = *format_of(form.weight->dtype);
    form.format =
        form.weight->dtype == DType::bf16 ? "BF16" : std::string(name(form.weight->dtype));
    form.stack = shape.size() == 3 ? shape[0] : 1;
    form.rows = shape[shape.size() - 2];
    form.cols = shape.back();
    return form;
  }

  WeightForm stacked_mxfp4(WeightForm form) {
    const Shape& shape = form.weight->shape;
    form.format = "MXFP4 (GPT-OSS)";
    form.element = Format::e2m1;
    form.scale = with(form.prefix, "_scales");
    form.scale_element = Format::e8m0;
    form.stack = shape[0];
    form.rows = shape[1];
    form.cols = shape[2] * shape[3] * 2;
    set_block(form, 1, kMxBlock);
    if (form.scale == nullptr) {
      report_missing_scale(form, form.prefix + "_scales");
    } else {
      check_shape(form, {{shape[0], shape[1], shape[2]}});
    }
    return form;
  }

  /// Two-dimensional packed FP4.
  void set_packed(WeightForm& form) const {
    form.element = Format::e2m1;
    form.rows = form.weight->shape.size() == 2 ? form.weight->shape[0] : 0;
    form.cols = form.weight->shape.size() == 2 ? 2 * form.weight->shape[1] : 0;
  }

  static void set_block(WeightForm& form, std::int64_t rows, std::int64_t cols) {
    form.block_rows = rows;
    form.block_cols = cols;
  }

  WeightForm packed(WeightForm form) {
    form.format = "NVFP4 (compressed-tensors)";
    set_packed(form);
    if (with(form.prefix, ".weight") != nullptr) {
      findings_.add(Severity::error, "weight.ambiguous", form.weight->name,
                    "stands beside a tensor .weight: a layer has one or the other");
    }
    form.scale = with(form.prefix, ".weight_scale");
    form.global_scale = with(form.prefix, ".weight_global_scale");
    form.input_scale = with(form.prefix, ".input_global_scale");
    form.global_divides = true;
    finish_nvfp4(form, ".weight_global_scale");
    return form;
  }

  void finish_nvfp4(WeightForm& form, std::string_view global_suffix) {
    form.scale_element = Format::e4m3;
    set_block(form, 1, kNvfp4Block);
    if (form.scale == nullptr) return report_missing_scale(form, form.prefix + ".weight_scale");
    if (form.global_scale == nullptr) {
      report_missing_scale(form, form.prefix + std::string(global_suffix));
    }
    check_shape(form, {{form.rows, form.cols / kNvfp4Block}});
  }

  std::optional<WeightForm> weight_and_scale(WeightForm form) {
    const DType dtype = form.weight->dtype;
    if (is_plain_float(dtype)) return plain(form);
    form.input_scale = with(form.prefix, ".input_scale");
    if (is_byte(dtype)) return byte_weight(form);
    if (is_fp8(dtype)) return fp8_weight(form);
    return std::nullopt;
  }

  std::optional<WeightForm> byte_weight(WeightForm form) {
    set_packed(form);
    form.global_scale = with(form.prefix, ".weight_scale_2");
    form.scale = with(form.prefix, ".weight_scale");
    if (form.global_scale != nullptr) {
      form.format = "NVFP4 (ModelOpt)";
      finish_nvfp4(form, ".weight_scale_2");
      return form;
    }
    if (form.scale == nullptr) form.scale = with(form.prefix, ".scale");
    form.format = "MXFP4";
    form.scale_element = Format::e8m0;
    set_block(form, 1, kMxBlock);
    if (form.scale == nullptr) {
      report_missing_scale(form, form.prefix + ".scale");
    } else if (form.scale->dtype == DType::f8_e4m3) {
      form.scale_element = Format::e4m3;
      form.format = "FP4 with E4M3 block scales";
      set_block(form, 1, kNvfp4Block);
      report_missing_scale(form, form.prefix + ".weight_scale_2");
      check_shape(form, {{form.rows, form.cols / kNvfp4Block}});
    } else {
      check_shape(form, {{form.rows, form.cols / kMxBlock}});
    }
    return form;
  }

  WeightForm fp8_weight(WeightForm form) {
    const Shape& shape = form.weight->shape;
    form.element = *format_of(form.weight->dtype);
    form.rows = shape[shape.size() - 2];
    form.cols = shape.back();
    form.stack = shape.size() == 3 ? shape[0] : 1;
    for (const std::string_view suffix : {".weight_scale_inv", ".scale", ".weight_scale"}) {
      if (form.scale == nullptr) form.scale = with(form.prefix, suffix);
    }
    const std::string type = is_e4m3(form.weight->dtype) ? "FP8" : "FP8 E5M2";
    form.format = type;
    if (form.scale == nullptr) {
      report_missing_scale(form, form.prefix + ".weight_scale(_inv)");
      return form;
    }
    form.scale_element = format_of(form.scale->dtype).value_or(Format::e8m0);
    const Shape& scale = form.scale->shape;
    const bool per_row = scale == Shape{form.rows, 1} || scale == Shape{form.rows};
    if (element_count(scale) == 1 && form.rows * form.cols > 1 &&
        !form.scale->name.ends_with("_inv") && form.scale_element != Format::e8m0) {
      form.format = type + " per tensor";
      set_block(form, form.rows, form.cols);
    } else if (per_row && !form.scale->name.ends_with("_inv")) {
      form.format = type + " per channel";
      set_block(form, 1, form.cols);
    } else if (is_byte(form.scale->dtype) && scale == Shape{form.rows, form.cols / kMxBlock}) {
      form.format = "MXFP8";
      set_block(form, 1, kMxBlock);
    } else {
      square_blocks(form, type);
    }
    return form;
  }

  void square_blocks(WeightForm& form, const std::string& type) {
    const Shape& scale = form.scale->shape;
    const auto fits = [&](std::int64_t rows, std::int64_t cols) {
      return scale == Shape{ceil_div(form.rows, rows), ceil_div(form.cols, cols)};
    };
    std::int64_t rows = block_rows_;
    std::int64_t cols = block_cols_;
    for (const std::int64_t side : {128, 64, 32, 256}) {
      if (!fits(rows, cols) && fits(side, side)) rows = cols = side;
    }
    form.format = fmt::format("{} blocks {}x{}", type, rows, cols);
    set_block(form, rows, cols);
    check_shape(form, {{ceil_div(form.rows, rows), ceil_div(form.cols, cols)}});
    if (set_.config != nullptr && fits(rows, cols) &&
        (rows != block_rows_ || cols != block_cols_)) {
      findings_.add(Severity::warning, "scale.block-size", form.scale->name,
                    fmt::format("fits blocks of {}x{}, config.json says (or its default is) {}x{}",
                                rows, cols, block_rows_, block_cols_));
    }
  }

  void check_shape(const WeightForm& form, const Shape& needed) {
    if (form.scale->shape == needed) return;
    findings_.add(Severity::error, "scale.shape", form.scale->name,
                  fmt::format("is {}, the weight {} needs {}", to_string(form.scale->shape),
                              to_string(form.weight->shape), to_string(needed)));
  }

  void report_missing_scale(const WeightForm& form, const std::string& missing) {
    findings_.add(Severity::error, "scale.missing", form.weight->name,
                  fmt::format("is {} but there is no {}", name(form.weight->dtype), missing));
  }

  /// Scales whose weight is not there.
  void report_orphans() {
    for (const auto& [name, view] : set_.tensors) {
      for (const ScaleName& scale : kScaleNames) {
        if (!name.ends_with(scale.suffix)) continue;
        // Other layers have a ".scale" of their own; those of weights are exponents.
        const bool exponents_only = scale.suffix == ".scale" || scale.suffix == "_scales";
        if (exponents_only && view->dtype != DType::f8_e8m0 && view->dtype != DType::u8) break;
        const std::string prefix = name.substr(0, name.size() - scale.suffix.size());
        const bool weight =
            with(prefix, scale.weights[0]) != nullptr || with(prefix, scale.weights[1]) != nullptr;
        if (!weight) {
          findings_.add(Severity::warning, "scale.orphan", name,
                        fmt::format("scales {}{}, which is not here", prefix, scale.weights[0]));
        }
        break;
      }
    }
  }

  const TensorSet& set_;
  Findings& findings_;
  std::vector<WeightForm> forms_;
  std::int64_t block_rows_ = 128;
  std::int64_t block_cols_ = 128;
};

}  // namespace

std::vector<WeightForm> recognise_weights(const TensorSet& set, Findings& findings) {
  return Recogniser(set, findings).run();
}

}  // namespace moeref
