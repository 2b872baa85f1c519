#include "layout/dense_layer.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "layout/kernel_view.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/row_decoder.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Dense slots put together to a layer, as the kernel interprets them.
class DenseReader {
 public:
  DenseReader(const PreparedLayer& prepared, const DenseSlots& slots, const ScalarValues& scalars,
              GateOrder order)
      : prepared_(prepared), slots_(slots), scalars_(scalars), order_(order) {}

  MoeLayer read(std::int64_t intermediate, std::int64_t hidden) {
    const LayerShape& shape = prepared_.source->shape;
    layer_.model_type = shape.model;
    layer_.hidden = hidden;
    layer_.intermediate = intermediate;
    layer_.weight_format = shape.weight_format;
    layer_.gate_order = order_;
    layer_.first_expert = shape.first_expert;
    layer_.total_experts = shape.total_experts;
    layer_.activation.form = shape.gated ? ActivationForm::swiglu : ActivationForm::relu2;
    layer_.experts.resize(to_size(shape.experts));
    add(Slot::w13, Slot::w13_scale, kernel().w13_scale, shape.gated);
    add(Slot::w2, Slot::w2_scale, kernel().w2_scale, false);
    add_bias(Slot::w13_bias, shape.gated);
    add_bias(Slot::w2_bias, false);
    for (const auto& slot : slots_) {
      if (slot) layer_.storage.push_back(slot->bytes);
    }
    return std::move(layer_);
  }

 private:
  const KernelReading& kernel() const { return prepared_.recipe.kernel; }
  const DenseSlot* find(Slot slot) const {
    const auto& dense = slots_[to_size(static_cast<std::int64_t>(slot))];
    return dense ? &*dense : nullptr;
  }

  /// Where the first row of gate (half 0) or up (half 1) lies and how far apart its rows are, in
  /// rows of a dense slot with `rows` rows.
  std::pair<std::int64_t, std::int64_t> place_of(int half, std::int64_t rows) const {
    if (order_ == GateOrder::interleaved) return {half, 2};
    const int position = order_ == GateOrder::up_gate ? 1 - half : half;
    return {position * (rows / 2), 1};
  }

  template <typename Put>
  void for_each_matrix(const DenseSlot& dense, bool halves, bool first_gemm, ExpertPart gate,
                       ExpertPart up, ExpertPart down, Put put) {
    for (std::int64_t e = 0; e < layer_.local_experts(); ++e) {
      Expert& expert = layer_.experts[to_size(e)];
      const std::int64_t begin = e * dense.rows;
      if (!halves) {
        const ExpertPart part = first_gemm ? up : down;
        put(expert.*part, part, e, begin, 1, dense.rows);
        continue;
      }
      for (const int half : {0, 1}) {
        const ExpertPart part = half == 0 ? gate : up;
        const auto [first, step] = place_of(half, dense.rows);
        put(expert.*part, part, e, begin + first, step, dense.rows / 2);
      }
    }
  }

  void add(Slot slot, Slot scale_slot, const ScaleDecoder& decoder, bool halves) {
    const DenseSlot* codes = find(slot);
    if (codes == nullptr) {
      fail(prepared_.backend->name, "prepares no {}; its recipe needs one", name(slot));
    }
    if (codes->element_bits != info(kernel().codes).bits) {
      fail(codes->name, "has codes of {} bits, the kernel reads {}", codes->element_bits,
           name(kernel().codes));
    }
    const auto put = [&](ScaledMatrix& matrix, ExpertPart part, std::int64_t expert,
                         std::int64_t first_row, std::int64_t step, std::int64_t rows) {
      matrix.name = codes->name;
      matrix.rows = rows;
      matrix.cols = codes->cols;
      matrix.codes = {.data = codes->bytes->data(),
                      .format = kernel().codes,
                      .origin = first_row * codes->cols,
                      .row_stride = step * codes->cols};
      const KernelFactor factor = kernel_factor(kernel(), scalars_, part, expert);
      matrix.global_scale = factor.factor / factor.input_scale;
      if (matrix.global_scale != 1.0f) matrix.global_rule = GlobalScaleRule::multiply;
    };
    for_each_matrix(*codes, halves, slot == Slot::w13, &Expert::gate, &Expert::up, &Expert::down,
                    put);
    if (const DenseSlot* scales = find(scale_slot)) {
      add_scales(*scales, decoder, halves, slot == Slot::w13);
    }
  }

  void add_scales(const DenseSlot& dense, const ScaleDecoder& decoder, bool halves,
                  bool first_gemm) {
    if (!decoder) {
      fail(dense.name, "is prepared, but the kernel's reading of {} does not say how it is decoded",
           prepared_.backend->name);
    }
    const std::int64_t count = dense.rows * dense.cols;
    std::vector<float> decoded(to_size(layer_.local_experts() * count));
    for (std::int64_t e = 0; e < layer_.local_experts(); ++e) {
      const std::span<const std::byte> bytes(*dense.bytes);
      const std::vector<float> values =
          decoder(bytes.subspan(to_size(e * dense.expert_bytes()), to_size(dense.expert_bytes())));
      if (static_cast<std::int64_t>(values.size()) != count) {
        fail(dense.name, "decodes to {} scales, needed are [{}, {}]", values.size(), dense.rows,
             dense.cols);
      }
      std::copy(values.begin(), values.end(), decoded.begin() + e * count);
    }
    const auto [data, format] = keep_scales(std::move(decoded));
    const std::int64_t row_bytes = dense.cols * info(format).bits / 8;
    const auto put = [&, first = data, stored = format](ScaledMatrix& matrix, ExpertPart,
                                                        std::int64_t, std::int64_t first_row,
                                                        std::int64_t step, std::int64_t) {
      matrix.scales = ScaleGrid{.data = first + first_row * row_bytes,
                                .format = stored,
                                .block_rows = dense.block_rows,
                                .block_cols = dense.block_cols,
                                .row_stride = step * dense.cols,
                                .col_stride = 1};
    };
    for_each_matrix(dense, halves, first_gemm, &Expert::gate, &Expert::up, &Expert::down, put);
  }

  /// Owns scales from now on: as bf16 if that holds all of them, for which the engine is faster.
  std::pair<const std::byte*, Format> keep_scales(std::vector<float> scales) {
    const auto is_bf16 = [](float scale) {
      return (std::bit_cast<std::uint32_t>(scale) & 0xFFFFu) == 0;
    };
    if (!std::all_of(scales.begin(), scales.end(), is_bf16)) {
      const auto kept = std::make_shared<const std::vector<float>>(std::move(scales));
      layer_.storage.push_back(kept);
      return {reinterpret_cast<const std::byte*>(kept->data()), Format::f32};
    }
    const auto kept = std::make_shared<std::vector<std::uint16_t>>();
    for (const float scale : scales) {
      kept->push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(scale) >> 16));
    }
    layer_.storage.push_back(kept);
    return {reinterpret_cast<const std::byte*>(kept->data()), Format::bf16};
  }

  /// Biases as f32 numbers; where the kernel adds them before its factor, times that factor.
  void add_bias(Slot slot, bool halves) {
    const DenseSlot* dense = find(slot);
    if (dense == nullptr) return;
    const Format format = bias_format(*dense);
    const auto values =
        std::make_shared<std::vector<float>>(to_size(layer_.local_experts() * dense->rows));
    for (std::size_t i = 0; i < values->size(); ++i) {
      (*values)[i] = decode(format, read_code(dense->bytes->data(), format, NibbleOrder::low_first,
                                              static_cast<std::int64_t>(i)));
    }
    layer_.storage.push_back(values);
    const auto put = [&](ScaledMatrix& matrix, ExpertPart part, std::int64_t expert,
                         std::int64_t first_row, std::int64_t step, std::int64_t rows) {
      matrix.name = dense->name;
      matrix.rows = 1;
      matrix.cols = rows;
      matrix.codes = {.data = reinterpret_cast<const std::byte*>(values->data()),
                      .format = Format::f32,
                      .origin = first_row,
                      .row_stride = rows,
                      .col_stride = step};
      if (!kernel().bias_before_factor) return;
      const float factor = kernel_factor(kernel(), scalars_, weight_of(part), expert).factor;
      for (std::int64_t row = 0; row < rows; ++row) {
        (*values)[to_size(first_row + row * step)] *= factor;
      }
    };
    for_each_matrix(*dense, halves, slot == Slot::w13_bias, &Expert::gate_bias, &Expert::up_bias,
                    &Expert::down_bias, put);
  }

  static Format bias_format(const DenseSlot& dense) {
    for (const auto& [dtype, format] :
         {std::pair{DType::f32, Format::f32}, std::pair{DType::bf16, Format::bf16},
          std::pair{DType::f16, Format::f16}}) {
      if (dense.dtype == dtype && dense.element_bits == info(format).bits) return format;
    }
    fail(dense.name, "is a bias of {} with {} bits per element; needed is bf16, f16 or f32",
         name(dense.dtype), dense.element_bits);
  }

  static ExpertPart weight_of(ExpertPart bias) {
    return bias == &Expert::gate_bias ? &Expert::gate
           : bias == &Expert::up_bias ? &Expert::up
                                      : &Expert::down;
  }

  const PreparedLayer& prepared_;
  const DenseSlots& slots_;
  const ScalarValues& scalars_;
  GateOrder order_;
  MoeLayer layer_;
};

}  // namespace

MoeLayer read_dense_layer(const PreparedLayer& prepared, const DenseSlots& slots,
                          const ScalarValues& scalars, GateOrder order, std::int64_t intermediate,
                          std::int64_t hidden) {
  return DenseReader(prepared, slots, scalars, order).read(intermediate, hidden);
}

}  // namespace moeref
