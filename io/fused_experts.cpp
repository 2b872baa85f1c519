#include <fmt/format.h>

#include "io/layer_reader.hpp"
#include "io/scale_checks.hpp"
#include "quant/error.hpp"

namespace moeref {

/// Views of single experts into tensors that hold all of them; nothing is copied.
class FusedReader {
 public:
  FusedReader(LayerReader& reader, const FusedForm& form, bool packed)
      : reader_(reader), form_(form), packed_(packed), layer_(reader.layer) {}

  /// A tensor of all experts (and its scales), each a matrix of `rows` x `cols`, stored as `form`
  /// says.
  struct Stack {
    const IndexedTensor* codes = nullptr;
    const IndexedTensor* scales = nullptr;
    Format format = Format::bf16;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
  };

  Stack open(const std::string& item, const std::string& name, std::int64_t rows, std::int64_t cols,
             std::string_view cols_name) {
    return packed_ ? open_packed(item, name, rows, cols, cols_name)
                   : open_plain(item, name, rows, cols);
  }

  /// Rows first, first + step, ... of one expert's matrix: `count` of them.
  ScaledMatrix rows_of(const Stack& stack, std::int64_t expert, std::int64_t first,
                       std::int64_t step, std::int64_t count) const {
    ScaledMatrix matrix;
    matrix.name = stack.codes->view->name;
    matrix.rows = count;
    matrix.cols = stack.cols;
    const std::int64_t row_stride = form_.transposed ? 1 : stack.cols;
    matrix.codes = {.data = stack.codes->view->bytes.data(),
                    .format = stack.format,
                    .origin = expert * stack.rows * stack.cols + first * row_stride,
                    .row_stride = step * row_stride,
                    .col_stride = form_.transposed ? stack.rows : 1};
    if (stack.scales != nullptr) {
      const std::int64_t row_scales = stack.cols / kBlock;
      matrix.scales = ScaleGrid{
          .data = stack.scales->view->bytes.data() + (expert * stack.rows + first) * row_scales,
          .format = Format::e8m0,
          .block_rows = 1,
          .block_cols = kBlock,
          .row_stride = step * row_scales,
          .col_stride = 1};
    }
    return matrix;
  }

  /// Elements first, first + step, ... of one expert's bias vector in a tensor [E, size].
  static ScaledMatrix bias_of(const ScaledMatrix& all, std::int64_t expert, std::int64_t first,
                              std::int64_t step, std::int64_t count) {
    ScaledMatrix bias = all;
    bias.rows = 1;
    bias.cols = count;
    bias.codes.origin = expert * all.codes.row_stride + first;
    bias.codes.col_stride = step;
    return bias;
  }

  void check_format(const std::string& module, const Stack& stack) {
    reader_.check_against_config(
        module, packed_ ? weight_formats::kMxfp4 : plain_format(stack.codes->view->dtype), true);
  }

 private:
  static constexpr std::int64_t kBlock = 32;

  Stack open_plain(const std::string& item, const std::string& name, std::int64_t rows,
                   std::int64_t cols) {
    const IndexedTensor& tensor = reader_.tensors_.at(name);
    const Shape wanted = form_.transposed ? Shape{layer_.expert_count(), cols, rows}
                                          : Shape{layer_.expert_count(), rows, cols};
    if (tensor.view->shape != wanted) {
      fail(reader_.tensors_.subject(tensor),
           "has shape {}, needs {}: model_type {} stores its experts as {}; correct the config or "
           "the "
           "file",
           to_string(tensor.view->shape), to_string(wanted), layer_.model_type, form_.name);
    }
    // plain_matrix checks the dtype; its grid is replaced by rows_of.
    const ScaledMatrix all = plain_matrix(reader_.tensors_, tensor, wanted, rows, cols);
    reader_.note_tensor(item, tensor);
    return {&tensor, nullptr, all.codes.format, rows, cols};
  }

  /// MXFP4 as in GPT-OSS: blocks U8 [E, rows, cols / 32, 16], scales U8 [E, rows, cols / 32].
  Stack open_packed(const std::string& item, const std::string& name, std::int64_t rows,
                    std::int64_t cols, std::string_view cols_name) {
    const IndexedTensor& codes = reader_.tensors_.at(name + "_blocks");
    const IndexedTensor& scales = reader_.tensors_.at(name + "_scales");
    if (cols % kBlock != 0) {
      fail(reader_.tensors_.subject(codes),
           "K = {} ({}) is not a multiple of {}, the block of mxfp4 along K; correct the config",
           cols, cols_name, kBlock);
    }
    const std::int64_t experts = layer_.expert_count();
    require_bytes(codes, {experts, rows, cols / kBlock, kBlock / 2}, false);
    require_bytes(scales, {experts, rows, cols / kBlock}, true);
    check_e8m0_scales(reader_.tensors_.subject(scales), scales.view->bytes);
    reader_.note_tensor(item, codes);
    reader_.note_tensor(item + ".scale", scales);
    return {&codes, &scales, Format::e2m1, rows, cols};
  }

  void require_bytes(const IndexedTensor& tensor, const Shape& shape, bool scales) const {
    const DType dtype = tensor.view->dtype;
    if ((dtype == DType::u8 || dtype == (scales ? DType::f8_e8m0 : DType::i8)) &&
        tensor.view->shape == shape) {
      return;
    }
    fail(reader_.tensors_.subject(tensor), "is {} {}, needs U8 {}; correct the config or the file",
         name(dtype), to_string(tensor.view->shape), to_string(shape));
  }

  LayerReader& reader_;
  const FusedForm& form_;
  bool packed_;
  MoeLayer& layer_;
};

void LayerReader::fused_experts(const std::string& prefix, const FusedForm& form, bool packed,
                                bool bias) {
  const std::int64_t intermediate = layer.intermediate;
  const std::int64_t width = layer.expert_width();
  const std::string gate_up_name = prefix + "experts.gate_up_proj";
  const std::string down_name = prefix + "experts.down_proj";
  // Packed tensors have rows first whatever the plain release of the same model does.
  const FusedForm stored{form.name, form.transposed && !packed, form.interleaved};
  FusedReader fused(*this, stored, packed);
  const FusedReader::Stack gate_up =
      fused.open("experts.gate_up", gate_up_name, 2 * intermediate, width, "hidden_size");
  const FusedReader::Stack down =
      fused.open("experts.down", down_name, width, intermediate, "intermediate size");
  fused.check_format(prefix + "experts.gate_up_proj", gate_up);
  fused.check_format(prefix + "experts.down_proj", down);
  ScaledMatrix gate_up_bias;
  ScaledMatrix down_bias;
  if (bias) {
    gate_up_bias = matrix("experts.gate_up.bias", gate_up_name + "_bias", layer.expert_count(),
                          2 * intermediate);
    down_bias = matrix("experts.down.bias", down_name + "_bias", layer.expert_count(), width);
  }
  layer.gate_order = stored.interleaved ? GateOrder::interleaved : GateOrder::gate_up;
  note("gate_order", stored.interleaved ? "interleaved" : "gate_up",
       "model_type " + layer.model_type);
  const std::int64_t step = stored.interleaved ? 2 : 1;
  const std::int64_t up_begin = stored.interleaved ? 1 : intermediate;
  for (std::int64_t e = 0; e < layer.expert_count(); ++e) {
    Expert& expert = layer.experts[static_cast<std::size_t>(e)];
    expert.gate = fused.rows_of(gate_up, e, 0, step, intermediate);
    expert.up = fused.rows_of(gate_up, e, up_begin, step, intermediate);
    expert.down = fused.rows_of(down, e, 0, 1, width);
    if (!bias) continue;
    expert.gate_bias = FusedReader::bias_of(gate_up_bias, e, 0, step, intermediate);
    expert.up_bias = FusedReader::bias_of(gate_up_bias, e, up_begin, step, intermediate);
    expert.down_bias = FusedReader::bias_of(down_bias, e, 0, 1, width);
  }
}

void LayerReader::stacked_experts(const std::string& prefix) {
  constexpr FusedForm kRows{"[E, I, D] and [E, D, I]", false, false};
  FusedReader fused(*this, kRows, false);
  const FusedReader::Stack up = fused.open("experts.up", prefix + "experts.up_proj",
                                           layer.intermediate, layer.expert_width(), "width");
  const FusedReader::Stack down =
      fused.open("experts.down", prefix + "experts.down_proj", layer.expert_width(),
                 layer.intermediate, "moe_intermediate_size");
  fused.check_format(prefix + "experts.up_proj", up);
  fused.check_format(prefix + "experts.down_proj", down);
  for (std::int64_t e = 0; e < layer.expert_count(); ++e) {
    Expert& expert = layer.experts[static_cast<std::size_t>(e)];
    expert.up = fused.rows_of(up, e, 0, 1, layer.intermediate);
    expert.down = fused.rows_of(down, e, 0, 1, layer.expert_width());
  }
}

}  // namespace moeref
