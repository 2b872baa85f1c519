#include "layout/backends/sm90_parts.hpp"

#include <array>
#include <cmath>

#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/recode/float_cast.hpp"
#include "layout/recode/humming.hpp"
#include "layout/recode/marlin_decoders.hpp"
#include "layout/tiles/sm90.hpp"
#include "quant/error.hpp"

namespace moeref::backends::sm90 {
namespace {

constexpr std::int64_t kBlock = 32;
constexpr int kLargestRange = 11;
constexpr float kResidual = 64.0f;  ///< the kernel's factor over the residual

/// The kernel's own order of codes and scales.
struct KernelOrder {
  Steps codes;
  Steps scales;
};

KernelOrder kernel_order(const Options& options, bool humming) {
  const Steps folded{Tile{tiles::sm90_folded_scales(kBlock, 8)}};
  const Steps legacy{Tile{tiles::sm90_legacy_scales(kBlock)}};
  if (humming) return {{Tile{tiles::sm90_weights_int4()}, tiles::sm90_bits_fp4_fp8()}, folded};
  if (options.is("layout", "v2")) {
    return {{Tile{tiles::sm90_weights_v2()}, tiles::sm90_bits_fp4()}, folded};
  }
  if (options.is("layout", "v1")) return {{Tile{tiles::sm90_weights_v1()}}, legacy};
  return {{}, legacy};
}

/// The offset is added to the exponent of a code (bias 1), which then is read as E4M3 (bias 7).
std::vector<float> decode_offsets(std::span<const std::byte> scales) {
  std::vector<float> numbers;
  for (const std::byte offset : scales) {
    numbers.push_back(std::ldexp(1.0f, std::to_integer<int>(offset) - 6));
  }
  return numbers;
}

recode::HummingRange humming_range(std::string_view backend, const LayerShape& shape,
                                   const Options& options, const cutlass::Padding& padding) {
  const std::int64_t range = options.integer("max_range");
  if (range > kLargestRange) {
    fail(backend, "option max_range={} is above {}, what an E4M3 exponent can hold", range,
         kLargestRange);
  }
  if (!options.is("layout", "v2")) {
    fail(backend, "variant=humming exists with layout=v2 only (FlashInfer 0.6.16 and later)");
  }
  return {.max_range = static_cast<int>(range),
          .padded = padding.intermediate != shape.intermediate || padding.hidden != shape.hidden};
}

ScalarRecipe residual(std::string name, Slot scale, recode::HummingRange range) {
  return {.name = std::move(name),
          .formula =
              "2^(lo[e] - 128), lo the lowest E8M0 byte that is kept; the kernel's factor "
              "is 64 times it",
          .values_of_layer = [scale, range](const LayerTensors& layer) {
            return recode::humming_residuals(layer, scale, range);
          }};
}

/// The preparation of the padded tensors; a pad keeps code 0 and gets the lowest offset.
Recipe humming_recipe(const cutlass::Padding& padding, recode::HummingRange range,
                      const KernelOrder& order) {
  const cutlass::Padding offsets = cutlass::pad_to(padding.intermediate, padding.hidden,
                                                   cutlass::Halves::swapped, recode::kHummingPad);
  const auto codes = [range](Slot scale) { return Steps{recode::humming_codes(scale, range)}; };
  const auto scales = [range](Slot scale) { return Steps{recode::humming_offsets(scale, range)}; };
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, codes(Slot::w13_scale) + padding.w13, order.codes),
      tensor("w13_scale", Slot::w13_scale, scales(Slot::w13_scale) + offsets.w13, order.scales),
      tensor("w2", Slot::w2, codes(Slot::w2_scale) + padding.w2, order.codes),
      tensor("w2_scale", Slot::w2_scale, scales(Slot::w2_scale) + offsets.w2, order.scales),
  };
  recipe.scalars = {residual("w13_residual", Slot::w13_scale, range),
                    residual("w2_residual", Slot::w2_scale, range)};
  recipe.kernel.gate_factor = recipe.kernel.up_factor = factor_times(kResidual, "w13_residual");
  recipe.kernel.down_factor = factor_times(kResidual, "w2_residual");
  recipe.notes = {"codes more than max_range binades below the expert's largest scale are rounded",
                  "activations are FP8; the residual is folded into their scale"};
  return recipe;
}

Recipe plain_recipe(const cutlass::Padding& padding, DType scale_dtype, const KernelOrder& order) {
  const bool bytes_already = scale_dtype == DType::u8 || scale_dtype == DType::f8_e8m0;
  const auto bytes = [bytes_already](Slot slot) {
    return bytes_already ? Steps{} : Steps{recode::to_e8m0(slot)};
  };
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, padding.w13, order.codes),
      tensor("w13_scale", Slot::w13_scale, bytes(Slot::w13_scale) + padding.w13, order.scales),
      tensor("w2", Slot::w2, padding.w2, order.codes),
      tensor("w2_scale", Slot::w2_scale, bytes(Slot::w2_scale) + padding.w2, order.scales),
  };
  recipe.notes = {"activations are bf16; scale byte 0 means 0 to this kernel, not 2^-127"};
  return recipe;
}

}  // namespace

std::vector<OptionInfo> options() {
  return {{"layout",
           {"v2", "v1", "raw"},
           "FlashInfer from 0.6.16 (v2), 0.6.10 to 0.6.15 (v1), before (raw)"},
          {"variant", {"w4a16", "humming"}, "humming: FP8 activations, scales as small offsets"},
          {"max_range", {"N", "11"}, "humming: binades of scales that are kept, at most 11"}};
}

Recipe recipe(std::string_view backend, const LayerShape& shape, const Options& options,
              std::int64_t intermediate, std::int64_t hidden) {
  const bool humming = options.is("variant", "humming");
  const cutlass::Padding padding = cutlass::pad_to(intermediate, hidden, cutlass::Halves::swapped);
  const KernelOrder order = kernel_order(options, humming);
  Recipe recipe =
      humming ? humming_recipe(padding, humming_range(backend, shape, options, padding), order)
              : plain_recipe(padding, shape.scale_dtype, order);
  cutlass::add_biases(recipe, shape, padding);
  if (shape.gated) {
    for (ScalarRecipe& array : swiglu_arrays()) recipe.scalars.push_back(std::move(array));
  }
  KernelReading kernel = cutlass::reading(shape, padding, Format::e2m1);
  kernel.gate_factor = recipe.kernel.gate_factor;
  kernel.up_factor = recipe.kernel.up_factor;
  kernel.down_factor = recipe.kernel.down_factor;
  cutlass::read_scales(kernel, 1, kBlock,
                       humming ? decode_offsets : recode::decode_marlin_e8m0(1.0f));
  recipe.kernel = std::move(kernel);
  return recipe;
}

Numerics numerics(const NumericsRequest& request, std::string_view backend,
                  std::int64_t intermediate, std::int64_t hidden) {
  if (request.options.is("variant", "humming")) {
    fail(backend, "the rounding points of variant=humming are not known; take variant=w4a16");
  }
  const std::int64_t tile = request.kernel.integer("tile_k");
  for (const std::int64_t k : {hidden, intermediate}) {
    if (k % tile == 0) continue;
    fail(backend, "tile_k={} does not divide K = {} of its GEMMs; take a tile of {}", tile, k,
         kTile);
  }
  Numerics numerics = cutlass::numerics(request, backend, Format::bf16);
  for (GemmNumerics* gemm : {&numerics.gemm1, &numerics.gemm2}) {
    gemm->clears_minus_zero = true;
    gemm->mainloop.unit.operand = Format::bf16;
    gemm->mainloop.chain = kBlock;
    gemm->mainloop.promotion = Promotion::column_groups;
    gemm->mainloop.flushes = true;
  }
  return numerics;
}

}  // namespace moeref::backends::sm90
