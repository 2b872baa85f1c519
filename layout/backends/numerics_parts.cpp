#include "layout/backends/numerics_parts.hpp"

#include <utility>

#include "quant/error.hpp"

namespace moeref::backends {

Numerics bf16_stages() {
  Numerics numerics;
  numerics.activations = Format::bf16;
  numerics.gemm1.output = Format::bf16;
  numerics.activation.output = Format::bf16;
  numerics.gemm2.output = Format::bf16;
  numerics.combine.form = CombineForm::weighted_fma;
  return numerics;
}

FusedDot hopper_wgmma(Format operand) {
  const std::string_view instruction = operand == Format::e4m3 ? "wgmma.k32" : "wgmma.k16";
  return std::get<FusedDot>(
      find_matrix_instruction("sm_90", instruction, operand, operand, Format::f32).unit);
}

void refuse_replay(const NumericsRequest& request, std::string_view backend,
                   std::string_view reason) {
  if (request.level != NumericsLevel::replay) return;
  fail(backend, "cannot be replayed: {}; take --numerics backend", reason);
}

ActivationQuantizer by(std::string_view quantizer, std::vector<std::string> options,
                       std::string_view scale) {
  ActivationQuantizer use;
  use.quantizer = quantizer;
  use.options = std::move(options);
  use.scale = scale;
  return use;
}

namespace cutlass {

OptionInfo finalize_option() {
  return {"finalize",
          {"unfused", "fused"},
          "use_fused_finalize: bf16 atomics in GEMM2's epilogue instead of a kernel of its own"};
}

Numerics numerics(const NumericsRequest& request, std::string_view backend, Format operand) {
  const ActivationForm form = request.activation.form;
  if (form != ActivationForm::swiglu && form != ActivationForm::silu_clamp_after &&
      form != ActivationForm::relu2) {
    refuse_replay(request, backend,
                  "the kernel of this activation (another than Swiglu, SwigluBias, SwigluStep or "
                  "Relu2) was not measured");
  }
  Numerics numerics = bf16_stages();
  numerics.rows = RowOrder::by_expert;
  for (GemmNumerics* gemm : {&numerics.gemm1, &numerics.gemm2}) {
    gemm->factor = SumFactor::expert;
    gemm->bias = GemmBias::none;
    gemm->flushes = true;
    gemm->mainloop.unit = hopper_wgmma(operand);
  }
  numerics.activation.adds_bias = true;
  numerics.activation.clamp_nan = ClampNan::dropped;
  numerics.activation.is_parametric = request.parametric();
  numerics.activation.kernel = ActivationKernel::flashinfer_cutlass;
  numerics.combine.adds_bias = true;
  numerics.combine.flushes = true;
  numerics.combine.scaling = ScalingPoint::after_sum;
  if (!request.kernel.has("finalize") || request.kernel.is("finalize", "unfused")) return numerics;
  if (request.level == NumericsLevel::replay && request.top_k > 2) {
    fail(backend,
         "finalize=fused adds {} slots in the order of their arrival, which is not reproducible "
         "beyond two; take finalize=unfused or --numerics backend",
         request.top_k);
  }
  numerics.gemm2.bias = GemmBias::fused;
  numerics.router_weight = WeightPoint::gemm2;
  numerics.combine = {.form = CombineForm::atomic_add, .scaling = ScalingPoint::after_sum};
  return numerics;
}

}  // namespace cutlass

namespace trtllm {

OptionInfo router_weights_option(std::string_view first) {
  const bool packed = first == "bf16";
  return {"router_weights",
          {first, packed ? "f32" : "bf16"},
          "bf16: packed with the expert's number, or made of bf16 logits; f32: passed apart"};
}

Numerics numerics(const NumericsRequest& request, std::string_view backend) {
  refuse_replay(request, backend,
                "the GEMMs of TRTLLM-Gen are closed, for Blackwell, and not measured");
  Numerics numerics = bf16_stages();
  numerics.gemm1.output = Format::f32;
  numerics.activation.output = Format::f32;
  numerics.activation.is_parametric = request.parametric();
  if (request.kernel.has("router_weights") && request.kernel.is("router_weights", "bf16")) {
    numerics.weights = Format::bf16;
  }
  return numerics;
}

}  // namespace trtllm

namespace marlin {

Numerics numerics(const NumericsRequest& request, std::string_view backend) {
  refuse_replay(request, backend,
                "its kernels split K over warps and blocks by the size of the device; nobody has "
                "measured their order");
  if (request.options.is("params", "f16")) {
    fail(backend,
         "params=f16 takes f16 hidden states; --numerics backend knows the stages of bf16 ones, "
         "take params=bf16 or --numerics reference");
  }
  Numerics numerics = bf16_stages();
  numerics.activation.is_parametric = request.parametric();
  numerics.activation.rounds_silu = request.parametric();
  numerics.router_weight = WeightPoint::gemm2;
  numerics.weights = Format::bf16;
  numerics.gemm2.rounds_before_weight = true;
  numerics.combine.form = CombineForm::sum;
  numerics.combine.scaling = ScalingPoint::with_shared;
  return numerics;
}

}  // namespace marlin

namespace deepgemm {

std::vector<OptionInfo> kernel_options() {
  return {{"layout",
           {"masked", "contiguous"},
           "masked: Triton's activation, silu rounded to bf16; contiguous: sgl-kernel's, one "
           "rounding"},
          {"combine",
           {"post_reorder", "deepep"},
           "post_reorder: running sum in bf16; deepep: f32 sum of the library"}};
}

Numerics numerics(const NumericsRequest& request, std::string_view backend, bool ue8m0) {
  refuse_replay(request, backend,
                "its activation, quantizer and reorder kernels were not measured as a layer");
  constexpr std::int64_t kGroup = 128;
  for (const auto& [size, value] : {std::pair{"hidden", request.shape.hidden},
                                    std::pair{"intermediate", request.shape.intermediate}}) {
    if (value % kGroup == 0) continue;
    fail(backend, "{} is {}; its kernels quantize activations in whole groups of {}", size, value,
         kGroup);
  }
  Numerics numerics = bf16_stages();
  const bool masked = request.kernel.is("layout", "masked");
  const std::vector<std::string> powers =
      ue8m0 ? std::vector<std::string>{"scale=ue8m0"} : std::vector<std::string>{};
  numerics.input = by("sglang_fp8_group", powers);
  numerics.intermediate = masked && !ue8m0 ? by("sglang_triton_fp8_group", {"form=div"})
                                           : by("sglang_fp8_group", powers);
  if (request.parametric()) {
    // The run-time compiled kernel clamps and quantizes from f32.
    numerics.activation.is_parametric = true;
    numerics.activation.output = Format::f32;
  } else {
    numerics.activation.rounds_silu = masked;
  }
  if (request.kernel.is("combine", "post_reorder")) {
    numerics.weights = Format::bf16;
    numerics.combine.form = CombineForm::running;
  }
  numerics.combine.scaling = ScalingPoint::after_sum;
  return numerics;
}

}  // namespace deepgemm

namespace aiter {

OptionInfo weight_option() {
  return {"doweight_stage1",
          {"false", "true"},
          "true: the router weight multiplies before the activation function"};
}

Numerics numerics(const NumericsRequest& request, std::string_view backend,
                  const ActivationQuantizer& quantizer) {
  refuse_replay(request, backend,
                "AMD's kernels were not measured, and no bit-accurate model of CDNA4 is known");
  Numerics numerics = bf16_stages();
  numerics.gemm1.output = Format::f32;
  numerics.gemm2.output = Format::f32;
  numerics.activation.is_parametric = request.parametric();
  numerics.input = quantizer;
  numerics.intermediate = quantizer;
  if (request.kernel.is("doweight_stage1", "true")) {
    numerics.router_weight = WeightPoint::input;
    numerics.combine.form = CombineForm::sum;
  }
  return numerics;
}

}  // namespace aiter

}  // namespace moeref::backends
