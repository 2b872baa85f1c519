#include "layout/backends/marlin_parts.hpp"

#include <fmt/format.h>

#include "layout/recode/float_cast.hpp"
#include "layout/tiles/marlin.hpp"
#include "quant/error.hpp"

namespace moeref::backends::marlin {

OptionInfo params_option() {
  return {"params", {"bf16", "f16"}, "the 16-bit type of the model's activations"};
}

DType params(const Options& options) {
  return options.is("params", "f16") ? DType::f16 : DType::bf16;
}

void need_bf16(std::string_view backend, const Options& options) {
  if (params(options) == DType::bf16) return;
  fail(backend,
       "params=f16 has no kernel: E8M0 scales are decoded for BF16 activations only, and FP16 "
       "loses scales below 2^-24 and above 2^15; use params=bf16");
}

TensorRecipe codes(std::string name, Slot slot, Steps framework, int bits,
                   bool eight_bit_activations) {
  return tensor(std::move(name), slot, std::move(framework),
                {Tile{tiles::marlin_repack(bits, eight_bit_activations)}});
}

std::vector<TensorRecipe> biases(const LayerShape& shape, DType params, const Steps& w13_pad,
                                 const Steps& w2_pad) {
  if (!shape.bias) return {};
  const Steps kernel{tiles::marlin_permute_single(), Tile{tiles::marlin_bias_row()}};
  const auto cast = [params](Slot slot) { return Steps{recode::cast_floats(slot, params)}; };
  return {tensor("w13_bias", Slot::w13_bias, cast(Slot::w13_bias) + w13_pad, kernel),
          tensor("w2_bias", Slot::w2_bias, cast(Slot::w2_bias) + w2_pad, kernel)};
}

KernelReading reading(const LayerShape& shape, std::int64_t intermediate, Format codes) {
  KernelReading reading;
  reading.order = shape.gated ? GateOrder::gate_up : GateOrder::none;
  reading.intermediate = intermediate;
  reading.hidden = shape.hidden;
  reading.codes = codes;
  return reading;
}

void note_thread_tiles(Recipe& recipe, const LayerShape& shape, std::int64_t intermediate) {
  const auto note = [&recipe](std::string_view gemm, std::int64_t n, std::int64_t k) {
    if ((k % 64 == 0 && n % 128 == 0) || (k % 128 == 0 && n % 64 == 0)) return;
    recipe.notes.push_back(fmt::format(
        "{}: no thread block of the kernel divides N = {}, K = {}; its launch fails", gemm, n, k));
  };
  note("w13", intermediate * shape.halves(), shape.hidden);
  note("w2", shape.hidden, intermediate);
}

}  // namespace moeref::backends::marlin
