#include <algorithm>
#include <bit>
#include <optional>

#include "layout/backends/numerics_parts.hpp"
#include "quant/error.hpp"

// SGLang's Triton fused MoE as numerics. What chooses the matrix unit, the promotion, the quantizer
// and the combine looks at the launch parameters alone, as the kernels do.

namespace moeref::backends::triton {
namespace {

constexpr std::int64_t kGroup = 128;  ///< columns of a scale of the block form
constexpr std::int64_t kWgmmaRows = 64;

/// One launch of fused_moe_kernel.
struct Tile {
  std::int64_t rows = 0;     ///< BLOCK_SIZE_M
  std::int64_t columns = 0;  ///< BLOCK_SIZE_N
  std::int64_t k = 0;        ///< BLOCK_SIZE_K
  std::int64_t warps = 0;
  bool swap_ab = false;
};

/// SGLang's configuration where none is tuned.
/// Source: sgl-project/sglang fused_moe_triton_config.py get_default_config
Tile default_tile(const NumericsRequest& request, Scales scales) {
  const bool few = request.tokens <= request.shape.total_experts;
  switch (scales) {
    case Scales::block:
      return {64, kGroup, kGroup, 4};
    case Scales::tensor:
    case Scales::channel:
      return few ? Tile{64, 128, 128, 4} : Tile{128, 256, 128, 8};
    case Scales::none:
      break;
  }
  return few ? Tile{16, 32, 64, 4} : Tile{64, 64, 32, 4};
}

bool is_power_of_two(std::int64_t value) {
  return value > 0 && std::has_single_bit(static_cast<std::uint64_t>(value));
}

Tile tile_of(const NumericsRequest& request, std::string_view backend, Scales scales) {
  Tile tile = default_tile(request, scales);
  const auto given = [&](std::string_view option, std::int64_t& size, std::int64_t least) {
    if (const std::int64_t value = request.kernel.integer(option); value != 0) size = value;
    if (is_power_of_two(size) && size >= least) return;
    fail(backend, "{}={} must be a power of two from {} on", option, size, least);
  };
  given("BLOCK_SIZE_M", tile.rows, 16);
  given("BLOCK_SIZE_N", tile.columns, 16);
  given("BLOCK_SIZE_K", tile.k, 16);
  given("num_warps", tile.warps, 1);
  if (scales == Scales::block && kGroup % tile.k != 0) {
    fail(backend, "BLOCK_SIZE_K={} does not divide the {} columns of a scale", tile.k, kGroup);
  }
  const std::string& swap = request.kernel["swap_ab"];
  const bool by_rule = scales != Scales::none && tile.rows < kWgmmaRows && tile.columns >= 64;
  tile.swap_ab = swap == "auto" ? by_rule : swap == "true";
  return tile;
}

/// The unit that tl.dot becomes on Hopper.
FusedDot unit_of(const Tile& tile, Scales scales) {
  if (scales == Scales::none) return hopper_wgmma(Format::bf16);
  const std::int64_t rows = tile.swap_ab ? tile.columns : tile.rows;
  const std::int64_t columns = tile.swap_ab ? tile.rows : tile.columns;
  if (rows % kWgmmaRows == 0 && columns % 8 == 0 && tile.warps % 4 == 0 && tile.k >= 32) {
    return hopper_wgmma(Format::e4m3);
  }
  // FP8 without wgmma: both sides to f16, in the order of 8-bit operands.
  FusedDot unit = std::get<FusedDot>(
      find_matrix_instruction("sm_90", "mma.m16n8k16", Format::f16, Format::f16, Format::f32).unit);
  unit.operand = Format::f16;
  unit.order = TermOrder::kw4;
  return unit;
}

GemmNumerics gemm_of(const Tile& tile, Scales scales) {
  GemmNumerics gemm;
  gemm.output = Format::bf16;
  gemm.mainloop.unit = unit_of(tile, scales);
  if (scales == Scales::block) {
    gemm.mainloop.chain = tile.k;
    gemm.mainloop.promotion = tile.columns <= kGroup ? Promotion::fma_product
                              : tile.swap_ab         ? Promotion::fma_column
                                                     : Promotion::fma_row;
  } else if (scales != Scales::none) {
    gemm.factor = SumFactor::row_times_column;
  }
  return gemm;
}

ActivationQuantizer quantizer_of(const NumericsRequest& request, Scales scales,
                                 std::string_view scale) {
  const std::string& path = request.kernel["path"];
  const std::string math = path == "sgl90"    ? "math=fast"
                           : path == "sgl100" ? "math=precise"
                                              : "math=triton";
  switch (scales) {
    case Scales::none:
      return {};
    case Scales::tensor:
      if (request.static_scales) return by("sglang_fp8_static", {math}, scale);
      return by("sglang_fp8_tensor", {path == "triton" ? "math=fast" : math});
    case Scales::channel:
      return by("sglang_fp8_token", {path == "triton" ? "math=fast" : math,
                                     "kernel=" + request.kernel["token_kernel"]});
    case Scales::block:
      break;
  }
  if (path == "triton") return by("sglang_triton_fp8_group", {"form=mulinv"});
  const std::string& form = request.kernel["group_quant"];
  const bool divides = form == "auto" ? path == "sgl90" : form == "div";
  return by("sglang_fp8_group", {divides ? "version=v0" : "version=v1", math});
}

/// The kernel of the activation. Nothing: not measured.
std::optional<ActivationKernel> activation_kernel(const NumericsRequest& request) {
  switch (request.activation.form) {
    case ActivationForm::relu2:
      return ActivationKernel::plain;
    case ActivationForm::silu_clamp_after:
      return ActivationKernel::compiled;
    case ActivationForm::swiglu:
      break;
    default:
      return std::nullopt;
  }
  if (!request.parametric()) {
    const std::string& path = request.kernel["path"];
    return path == "sgl90"    ? ActivationKernel::sgl_fast
           : path == "sgl100" ? ActivationKernel::sgl_precise
                              : ActivationKernel::triton;
  }
  const auto all_one = [](float one, const std::vector<float>& each) {
    return one == 1.0f &&
           std::all_of(each.begin(), each.end(), [](float value) { return value == 1.0f; });
  };
  // gptoss adds 1 to up; a limit alone is clamped before silu in another kernel.
  const bool adds_one = request.activation.betas.empty() ? request.activation.beta == 1.0f
                                                         : all_one(1.0f, request.activation.betas);
  if (adds_one) return ActivationKernel::compiled;
  return std::nullopt;
}

ActivationNumerics activation_of(const NumericsRequest& request, std::string_view backend) {
  ActivationNumerics activation;
  activation.output = Format::bf16;
  activation.is_parametric = request.parametric();
  const std::optional<ActivationKernel> kernel = activation_kernel(request);
  if (!kernel) {
    refuse_replay(request, backend,
                  "the kernel of this activation (another than silu, relu2, GPT-OSS's, or a limit "
                  "after silu) was not measured");
  }
  activation.kernel = kernel.value_or(ActivationKernel::plain);
  activation.rounds_silu = activation.kernel == ActivationKernel::triton;
  return activation;
}

CombineNumerics combine_of(const NumericsRequest& request, std::string_view backend) {
  constexpr std::int64_t kFewTokens = 32;
  constexpr std::int64_t kSequentialSlots = 8;
  const std::string& wanted = request.kernel["combine"];
  std::string form = wanted;
  if (wanted == "auto") {
    const bool unscaled = request.routed_scaling == 1.0f;
    form = request.top_k <= 2 && unscaled ? "pair_add"
           : request.tokens <= kFewTokens ? "compiled_sum"
                                          : "sum_reduce";
  }
  if (form == "pair_add" && (request.top_k > 2 || request.routed_scaling != 1.0f)) {
    fail(backend,
         "combine=pair_add adds up to 2 slots unscaled; {} slots with a factor of {} need "
         "another",
         request.top_k, request.routed_scaling);
  }
  CombineNumerics combine;
  combine.form = CombineForm::sum;
  if (form == "sum_reduce") {
    combine.starts_at_zero = true;
    combine.flushes = request.kernel.is("path", "sgl90");
  }
  if (form == "eager_sum") combine.scaling = ScalingPoint::after_sum;
  if (form == "compiled_sum" && request.top_k >= kSequentialSlots) {
    const int bits =
        static_cast<int>(std::bit_width(static_cast<std::uint64_t>(request.top_k - 1)));
    const std::string& order = request.kernel["combine_order"];
    combine.form = CombineForm::folded_sum;
    combine.fold_from = order == "auto" ? bits - 1 : static_cast<int>(order.front() - '0');
    if (combine.fold_from > bits) {
      fail(backend, "combine_order={} is above {}, the bits of {} slots", order, bits,
           request.top_k);
    }
  }
  return combine;
}

}  // namespace

std::vector<OptionInfo> kernel_options() {
  return {
      {"path",
       {"sgl90", "sgl100", "triton"},
       "the pieces around the GEMMs: sgl-kernel with fast math (its SM90 library), without "
       "(SM100), or Triton's"},
      {"BLOCK_SIZE_M", {"N", "0"}, "of the tuned configuration; 0: SGLang's default"},
      {"BLOCK_SIZE_N", {"N", "0"}, "likewise"},
      {"BLOCK_SIZE_K", {"N", "0"}, "likewise"},
      {"num_warps", {"N", "0"}, "likewise"},
      {"swap_ab", {"auto", "true", "false"}, "auto: FP8, BLOCK_SIZE_M < 64, BLOCK_SIZE_N >= 64"},
      {"group_quant",
       {"auto", "div", "mul"},
       "whether sgl-kernel divides by the scale of a group (auto: sgl90) or multiplies (sgl100)"},
      {"token_kernel",
       {"small_batch", "warp"},
       "of the per-token quantizer; warp: tokens >= 16 * the number of SMs"},
      {"combine",
       {"auto", "compiled_sum", "sum_reduce", "eager_sum", "pair_add"},
       "auto: pair_add for up to 2 slots unscaled, compiled_sum up to 32 tokens, else sum_reduce"},
      {"combine_order",
       {"auto", "0", "1", "2", "3", "4", "5"},
       "compiled_sum of 8 slots and more: the fold order that the autotuner took (auto: 2 for 8 "
       "slots, 3 for 9 to 16)"},
  };
}

Numerics numerics(const NumericsRequest& request, std::string_view backend, Scales scales) {
  const Tile tile = tile_of(request, backend, scales);
  Numerics numerics = bf16_stages();
  numerics.input = quantizer_of(request, scales, "w13_input_scale");
  numerics.gemm1 = gemm_of(tile, scales);
  numerics.activation = activation_of(request, backend);
  numerics.intermediate = quantizer_of(request, scales, "w2_input_scale");
  numerics.gemm2 = gemm_of(tile, scales);
  numerics.router_weight = request.weighs_input ? WeightPoint::gemm1 : WeightPoint::gemm2;
  numerics.combine = combine_of(request, backend);
  return numerics;
}

}  // namespace moeref::backends::triton
