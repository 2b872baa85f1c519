#include "layout/backends/trtllm_parts.hpp"

#include <algorithm>

#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/tiles/nvidia.hpp"
#include "quant/error.hpp"

namespace moeref::backends::trtllm {
namespace {

/// sglang@02962d78 flashinfer_trtllm.py: min_alignment of _align_fp8, _align_mxfp8 and
/// _align_fp4_moe_weights.
std::int64_t helper_alignment(const LayerShape& shape) { return shape.gated ? 16 : 128; }

Padding padding_to(std::int64_t intermediate, std::int64_t hidden, const Step& rows) {
  return {.intermediate = intermediate,
          .hidden = hidden,
          .w13 = {SwapHalves{}, rows, PadCols{.to = hidden}},
          .w2 = {PadRows{.to = hidden}, PadCols{.to = intermediate}}};
}

}  // namespace

OptionInfo loader_option() {
  return {
      "loader", {"padded", "unpadded"}, "padded: SGLang, a rank's rows up to 128; unpadded: vLLM"};
}

Loader loader(const LayerShape&, const Options& options) {
  return options.is("loader", "padded") ? Loader{LoaderKind::padded, 128} : Loader{};
}

OptionInfo pad_option() {
  return {"pad",
          {"per_half", "whole_upstream"},
          "whole_upstream pads w13 at its end and so moves the boundary of the halves"};
}

OptionInfo align_option() {
  return {
      "align", {"N", "0"}, "multiple of the padded rows of a half; 0 = the kernel's or helper's"};
}

Padding pad_halves(const LayerShape& shape, std::int64_t multiple, std::int64_t hidden_multiple) {
  const std::int64_t intermediate = round_up(shape.stride, multiple);
  return padding_to(intermediate, round_up(shape.hidden, hidden_multiple),
                    PadHalves{.to = intermediate});
}

Padding pad_by_options(const LayerShape& shape, const Options& options, std::int64_t multiple,
                       std::int64_t hidden_multiple) {
  const bool whole = options.is("pad", "whole_upstream");
  const std::int64_t chosen = options.integer("align");
  const std::int64_t own = whole ? helper_alignment(shape) : multiple;
  const std::int64_t intermediate = round_up(shape.stride, chosen != 0 ? chosen : own);
  // The buffer that the helper sees has the loader's rows in each half.
  Padding padding = padding_to(intermediate, round_up(shape.hidden, hidden_multiple),
                               PadHalves{.to = whole ? shape.stride : intermediate});
  if (whole) {
    padding.w13.insert(padding.w13.begin() + 2, PadRows{.to = intermediate * shape.halves()});
  }
  return padding;
}

Steps w13_rows() { return {InterleaveHalves{1}, ShuffleRows{kEpilogueTile}}; }
Steps w2_rows() { return {ShuffleRows{kEpilogueTile}}; }

KernelReading reading(const LayerShape& shape, const Padding& padding, Format codes) {
  KernelReading kernel;
  kernel.order = up_first(shape);
  read_swiglu(kernel, shape);
  kernel.intermediate = padding.intermediate;
  kernel.hidden = padding.hidden;
  kernel.codes = codes;
  return kernel;
}

KernelReading reading(const LayerShape& shape, const Padding& padding, Format codes, Format scales,
                      std::int64_t block_rows, std::int64_t block_cols) {
  KernelReading kernel = reading(shape, padding, codes);
  kernel.block_rows = block_rows;
  kernel.block_cols = block_cols;
  kernel.w13_scale = decode_as(scales);
  kernel.w2_scale = decode_as(scales);
  return kernel;
}

std::vector<TensorRecipe> block_scaled_tensors(const Padding& padding) {
  const Steps swizzle{Tile{tiles::swizzle_128x4()}};
  return {
      tensor("w13", Slot::w13, padding.w13, w13_rows()),
      tensor("w13_scale", Slot::w13_scale, padding.w13, w13_rows() + swizzle),
      tensor("w2", Slot::w2, padding.w2, w2_rows()),
      tensor("w2_scale", Slot::w2_scale, padding.w2, w2_rows() + swizzle),
  };
}

ScalarRecipe activation_array(std::string name, std::vector<float> ExpertScalars::*values,
                              bool all) {
  const auto compute = [name, values, all](const ExpertScalars& scalars, const LayerShape& shape) {
    std::vector<float> local = shape.gated ? scalars.*values : std::vector<float>{};
    const auto none = [](float value) { return value == kNoLimit; };
    if (std::all_of(local.begin(), local.end(), none)) local.clear();
    if (!all || local.empty() || shape.experts == shape.total_experts) return local;
    if (std::any_of(local.begin(), local.end(), [&](float v) { return v != local.front(); })) {
      fail(name,
           "differs between the experts of this rank, so that an array of all {} experts is not "
           "known here; choose arrays=local",
           shape.total_experts);
    }
    return std::vector<float>(static_cast<std::size_t>(shape.total_experts), local.front());
  };
  std::string formula =
      name.substr(name.find('_') + 1) + "[e] of the activation" + (all ? ", all experts" : "");
  return {.name = std::move(name),
          .formula = std::move(formula),
          .values = compute,
          .of_all_experts = all};
}

std::vector<ScalarRecipe> activation_arrays(bool all) {
  return {activation_array("swiglu_alpha", &ExpertScalars::alpha, all),
          activation_array("swiglu_beta", &ExpertScalars::beta, all),
          activation_array("swiglu_limit", &ExpertScalars::limit, all)};
}

}  // namespace moeref::backends::trtllm
