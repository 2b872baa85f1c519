#include "io/linear.hpp"

#include <fmt/ranges.h>

#include <algorithm>

#include "io/linear_schemes.hpp"
#include "io/scale_checks.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

using namespace weight_formats;

std::string describe(const TensorView& tensor) {
  return fmt::format("{} {}", name(tensor.dtype), to_string(tensor.shape));
}

/// Reads one module; the members are what all steps need.
class LinearReader {
 public:
  LinearReader(const TensorIndex& tensors, const QuantizationConfig& quantization,
               const std::string& module, const LinearShape& shape)
      : tensors_(tensors), quantization_(quantization), module_(module), shape_(shape) {}

  LinearLayer read() {
    refuse_foreign_tensors();
    find_scales();
    const Scheme& scheme = recognise();
    layer_.format = scheme.format;
    layer_.parts.push_back({"weight", weight_});
    read_codes(scheme);
    if (scheme.spread != ScaleSpread::none) read_scales(scheme, *scale(scheme.scale));
    if (!scheme.global.empty()) read_global(scheme, *scale(scheme.global));
    read_input_scale();
    read_bias();
    return std::move(layer_);
  }

 private:
  const IndexedTensor* find(std::string_view suffix) const {
    return tensors_.find(module_ + std::string(suffix));
  }
  const IndexedTensor* scale(std::string_view suffix) const {
    for (const auto& [name, tensor] : scales_) {
      if (name == suffix) return tensor;
    }
    return nullptr;
  }

  void refuse_foreign_tensors() const {
    for (const std::string_view suffix : kForeignSuffixes) {
      if (const IndexedTensor* foreign = find(suffix)) {
        fail(
            tensors_.subject(*foreign),
            "is part of a quantization that is not supported (zero points, reordering or smoothing "
            "scales); export the model as FP8, MXFP4, NVFP4 or BF16");
      }
    }
  }

  void find_scales() {
    for (const std::string_view suffix : kScaleSuffixes) {
      if (const IndexedTensor* found = find(suffix)) scales_.emplace_back(suffix, found);
    }
    weight_ = find(".weight");
    const IndexedTensor* packed = find(".weight_packed");
    if (weight_ != nullptr && packed != nullptr) {
      fail(tensors_.subject(*weight_),
           "{}.weight_packed is there too, needs one of the two; remove the stale one", module_);
    }
    weight_suffix_ = packed != nullptr ? ".weight_packed" : ".weight";
    if (packed != nullptr) weight_ = packed;
    if (weight_ == nullptr) weight_ = &tensors_.at(module_ + ".weight");  // throws
  }

  bool fits(const Scheme& scheme) const {
    if (scheme.weight != weight_suffix_) return false;
    if (scheme.weight_payload != payload_of(weight_->view->dtype)) return false;
    const std::size_t wanted = (scheme.scale.empty() ? 0u : 1u) + (scheme.global.empty() ? 0u : 1u);
    if (scales_.size() != wanted) return false;
    if (!scheme.global.empty() && scale(scheme.global) == nullptr) return false;
    if (scheme.scale.empty()) return true;
    const IndexedTensor* found = scale(scheme.scale);
    if (found == nullptr) return false;
    const Payload payload = payload_of(found->view->dtype);
    return payload != Payload::other &&
           std::find(scheme.scale_payloads.begin(), scheme.scale_payloads.end(), payload) !=
               scheme.scale_payloads.end();
  }

  const Scheme& recognise() const {
    const auto found = std::find_if(kSchemes.begin(), kSchemes.end(),
                                    [&](const Scheme& scheme) { return fits(scheme); });
    if (found != kSchemes.end()) return *found;
    const std::string subject = tensors_.subject(*weight_);
    const Payload payload = payload_of(weight_->view->dtype);
    if (scales_.empty() && payload == Payload::e4m3) {
      fail(subject,
           "is {} without any scale, needs {}.weight_scale_inv, .weight_scale or .scale; add the "
           "scale, FP8 codes alone have no value",
           describe(*weight_->view), module_);
    }
    std::vector<std::string> present;
    for (const auto& [suffix, tensor] : scales_) {
      present.push_back(fmt::format("{} {}", suffix, describe(*tensor->view)));
    }
    std::vector<std::string> known;
    for (const Scheme& scheme : kSchemes) {
      if (scheme.weight_payload != payload || scheme.weight != weight_suffix_) continue;
      known.push_back(scheme.scale.empty() ? "no scale"
                                           : fmt::format("{}{}{} ({})", scheme.scale,
                                                         scheme.global.empty() ? "" : " + ",
                                                         scheme.global, scheme.format));
    }
    if (known.empty()) {
      fail(subject,
           "is {}, needs BF16, F16, F32 or F8_E4M3, or packed FP4 as U8 or I8; convert the "
           "checkpoint",
           describe(*weight_->view));
    }
    fail(subject, "is {} with scales [{}], needs one of: {}; the quantization config says {}",
         describe(*weight_->view), fmt::join(present, ", "), fmt::join(known, ", "),
         quantization_.summary());
  }

  std::string wanted_matrix() const {
    return fmt::format("[{}, {}] ({} x {})", shape_.rows, shape_.cols, shape_.rows_name,
                       shape_.cols_name);
  }

  void read_codes(const Scheme& scheme) {
    const TensorView& view = *weight_->view;
    const bool packed = scheme.weight_payload == Payload::bytes;
    const std::int64_t block = scheme.spread == ScaleSpread::groups_of_16   ? 16
                               : scheme.spread == ScaleSpread::groups_of_32 ? 32
                                                                            : 1;
    if (shape_.cols % block != 0) {
      fail(tensors_.subject(*weight_),
           "K = {} ({}) is not a multiple of {}, the block of {} along K; such a matrix needs "
           "another "
           "format",
           shape_.cols, shape_.cols_name, block, scheme.format);
    }
    const Shape wanted{shape_.rows, packed ? shape_.cols / 2 : shape_.cols};
    if (view.shape != wanted) {
      fail(tensors_.subject(*weight_), "has shape {}, needs {}{}; correct the config or the file",
           to_string(view.shape), packed ? to_string(wanted) + ", two codes a byte, for " : "",
           wanted_matrix());
    }
    if (packed) {
      layer_.weight = codes_of(view, Format::e2m1);
    } else if (scheme.weight_payload == Payload::e4m3) {
      layer_.weight = codes_of(view, Format::e4m3);
    } else {
      layer_.weight = codes_of(view, *float_format(view.dtype));
      layer_.format = plain_format(view.dtype);
    }
  }

  ScaledMatrix codes_of(const TensorView& view, Format format) const {
    ScaledMatrix matrix;
    matrix.name = view.name;
    matrix.rows = shape_.rows;
    matrix.cols = shape_.cols;
    matrix.codes = {.data = view.bytes.data(), .format = format, .row_stride = shape_.cols};
    return matrix;
  }

  void read_scales(const Scheme& scheme, const IndexedTensor& tensor) {
    layer_.parts.push_back({"scale", &tensor});
    const TensorView& view = *tensor.view;
    ScaleGrid grid;
    grid.data = view.bytes.data();
    switch (scheme.spread) {
      case ScaleSpread::groups_of_16:
        set_block(grid, tensor, {1, 16});
        break;
      case ScaleSpread::groups_of_32:
        set_block(grid, tensor, {1, 32});
        break;
      case ScaleSpread::config_block:
        set_config_block(grid, tensor);
        break;
      default:
        set_by_shape(grid, tensor);
    }
    const Payload payload = payload_of(view.dtype);
    if (payload == Payload::plain_float) {
      grid.format = *float_format(view.dtype);
      check_finite_scales(tensors_.subject(tensor), view);
    } else if (payload == Payload::e4m3) {
      grid.format = Format::ue4m3;
      check_ue4m3_scales(tensors_.subject(tensor), view.bytes);
    } else {
      grid.format = Format::e8m0;
      check_e8m0_scales(tensors_.subject(tensor), view.bytes);
      if (scheme.format == kFp8Block && grid.block_rows == 1 && grid.block_cols == 32) {
        layer_.format = kMxfp8;  // weight_block_size [1, 32]
      }
    }
    layer_.weight.scales = grid;
  }

  void set_block(ScaleGrid& grid, const IndexedTensor& tensor, WeightBlock block) const {
    const Shape wanted{ceil_div(shape_.rows, block.rows), ceil_div(shape_.cols, block.cols)};
    if (tensor.view->shape != wanted) {
      fail(tensors_.subject(tensor),
           "has shape {}, needs {}: one scale for each block of {} x {} of the {} matrix; correct "
           "the "
           "scales or the block size",
           to_string(tensor.view->shape), to_string(wanted), block.rows, block.cols,
           wanted_matrix());
    }
    grid.block_rows = block.rows;
    grid.block_cols = block.cols;
    grid.row_stride = wanted[1];
    grid.col_stride = 1;
  }

  void set_config_block(ScaleGrid& grid, const IndexedTensor& tensor) const {
    const auto& block = quantization_.block();
    if (!block) {
      fail(
          tensors_.subject(tensor),
          "holds block scales {}, but quantization_config of config.json has no weight_block_size; "
          "add it, for instance [128, 128]",
          to_string(tensor.view->shape));
    }
    set_block(grid, tensor, block->value);
  }

  void set_by_shape(ScaleGrid& grid, const IndexedTensor& tensor) {
    const Shape& shape = tensor.view->shape;
    if (shape.size() > 2) {
      fail(tensors_.subject(tensor),
           "has shape {}: a {}-D weight_scale is ModelOpt's FP8_PB_WO block form, which is not "
           "supported; needs one element, [{}, 1], or 2-D block scales: export as FP8 or with "
           "weight_scale_inv",
           to_string(shape), shape.size(), shape_.rows);
    }
    if (tensor.view->size() == 1) {
      grid.block_rows = shape_.rows;
      grid.block_cols = shape_.cols;
      return;
    }
    if (shape == Shape{shape_.rows, 1} || shape == Shape{shape_.rows}) {
      layer_.format = kFp8Channel;
      grid.block_rows = 1;
      grid.block_cols = shape_.cols;
      grid.row_stride = 1;
      return;
    }
    if (!quantization_.block() || shape.size() != 2) {
      fail(tensors_.subject(tensor),
           "has shape {}, needs one element or [{}, 1] for {}, or a block size in the quantization "
           "config",
           to_string(shape), shape_.rows, wanted_matrix());
    }
    layer_.format = kFp8Block;
    set_block(grid, tensor, quantization_.block()->value);
  }

  float read_scalar(const IndexedTensor& tensor) const {
    const TensorView& view = *tensor.view;
    if (payload_of(view.dtype) != Payload::plain_float || view.size() != 1) {
      fail(tensors_.subject(tensor), "is {}, needs one float (F32 [] or [1]); export it again",
           describe(view));
    }
    check_finite_scales(tensors_.subject(tensor), view);
    return float_at(view, 0);
  }

  void read_global(const Scheme& scheme, const IndexedTensor& tensor) {
    layer_.parts.push_back({"global_scale", &tensor});
    layer_.weight.global_rule = scheme.rule;
    layer_.weight.global_scale = read_scalar(tensor);
    if (scheme.rule == GlobalScaleRule::divide && layer_.weight.global_scale == 0.0f) {
      fail(tensors_.subject(tensor),
           "is 0, needs a number to divide by; the checkpoint is damaged, export it again");
    }
  }

  void read_input_scale() {
    for (const std::string_view suffix : kInputScaleSuffixes) {
      const IndexedTensor* tensor = find(suffix);
      if (tensor == nullptr) continue;
      layer_.parts.push_back({"input_scale", tensor});
      layer_.input_scale = read_scalar(*tensor);
      return;
    }
  }

  void read_bias() {
    const IndexedTensor* tensor = find(".bias");
    if (tensor == nullptr) return;
    layer_.parts.push_back({"bias", tensor});
    layer_.bias = plain_matrix(tensors_, *tensor, {shape_.rows}, 1, shape_.rows);
  }

  const TensorIndex& tensors_;
  const QuantizationConfig& quantization_;
  const std::string& module_;
  const LinearShape& shape_;
  const IndexedTensor* weight_ = nullptr;
  std::string_view weight_suffix_;
  std::vector<std::pair<std::string_view, const IndexedTensor*>> scales_;
  LinearLayer layer_;
};

}  // namespace

LinearLayer read_linear(const TensorIndex& tensors, const QuantizationConfig& quantization,
                        const std::string& module, const LinearShape& shape) {
  return LinearReader(tensors, quantization, module, shape).read();
}

std::string_view plain_format(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return kBf16;
    case DType::f16:
      return kF16;
    case DType::f32:
      return kF32;
    default:
      return {};
  }
}

ScaledMatrix plain_matrix(const TensorIndex& tensors, const IndexedTensor& tensor,
                          const Shape& shape, std::int64_t rows, std::int64_t cols) {
  const TensorView& view = *tensor.view;
  if (plain_format(view.dtype).empty()) {
    fail(tensors.subject(tensor), "is {}, needs BF16, F16 or F32; convert it", describe(view));
  }
  if (view.shape != shape) {
    fail(tensors.subject(tensor), "has shape {}, needs {}; correct the config or the file",
         to_string(view.shape), to_string(shape));
  }
  ScaledMatrix matrix;
  matrix.name = view.name;
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.codes = {
      .data = view.bytes.data(), .format = *float_format(view.dtype), .row_stride = cols};
  return matrix;
}

}  // namespace moeref
