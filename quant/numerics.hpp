#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "quant/dtype.hpp"
#include "quant/mainloop.hpp"

// Where the kernels of a backend round and how they add: plain data, carried out in engine/.

namespace moeref {

/// How far a result follows the kernel.
enum class NumericsLevel : std::uint8_t {
  reference,  ///< one rounding to f32 after each stage, one to the output type at the end
  backend,    ///< the backend's rounding points and quantizers, exact sums, exact functions
  replay,     ///< also its sums and its approximate instructions: the kernel's bits
};
std::string_view name(NumericsLevel level);

/// What a finished sum over K is multiplied by. Block scales along K are the main loop's.
enum class SumFactor : std::uint8_t {
  scales,  ///< the scales that the operands have, in no order of their own
  expert,  ///< one number per expert that the host prepared; it holds all whole-tensor scales
  row_times_column  ///< row scale * column scale, rounded to f32, then times the sum
};

/// Where a bias enters a GEMM.
enum class GemmBias : std::uint8_t {
  none,
  added,  ///< after the factor, before the router weight
  fused,  ///< fma(factor, sum, bias), +0 where there is none
};

/// One GEMM of a layer.
struct GemmNumerics {
  SumFactor factor = SumFactor::scales;
  GemmBias bias = GemmBias::added;
  Format output = Format::f32;  ///< the one rounding at its end; f32, bf16 or f16
  /// The router weight multiplies the rounded result, which is rounded again.
  bool rounds_before_weight = false;
  // replay
  Mainloop mainloop;
  bool flushes = false;            ///< the factor, bias and weight operations are .ftz
  bool clears_minus_zero = false;  ///< + 0 * 0 at the end: -0 becomes +0
};

/// The formula of an activation in a kernel, for replay.
enum class ActivationKernel : std::uint8_t {
  flashinfer_cutlass,  ///< Swiglu, SwigluBias, SwigluStep, Relu2 of the fused MoE, fast math
  sgl_fast,            ///< silu(g) u, sgl-kernel with -use_fast_math
  sgl_precise,         ///< without
  triton,              ///< silu rounded to the output type, then times up
  compiled,            ///< torch.compile: silu_clamp_after, gptoss
  plain,               ///< relu2 in f32
};

/// Where NaN goes in the clamps of an activation.
enum class ClampNan : std::uint8_t {
  propagates,
  dropped,  ///< min.ftz, max.ftz: the limit takes its place
};

/// The activation between the GEMMs.
struct ActivationNumerics {
  bool adds_bias = false;    ///< the bias of GEMM1 enters here, in f32
  bool rounds_silu = false;  ///< silu(g) is rounded to `output`, then times up again
  ClampNan clamp_nan = ClampNan::propagates;
  Format output = Format::f32;  ///< f32 = goes on unrounded
  bool is_parametric = false;   ///< SwigluBias even where alpha, beta, limit are those of Swiglu
  ActivationKernel kernel = ActivationKernel::plain;  ///< replay
};

/// Where the router weight of a slot enters.
enum class WeightPoint : std::uint8_t {
  combine,  ///< on the slot's output when the slots are added
  input,    ///< on the sum of GEMM1, before its bias
  gemm1,    ///< at the end of GEMM1's epilogue, after the bias
  gemm2,    ///< at the end of GEMM2's
};

/// How the outputs of a token's slots become one row.
enum class CombineForm : std::uint8_t {
  exact,         ///< every weight, bias, scaling and addition in one rounding
  weighted_fma,  ///< acc = fma(weight, y + bias2, acc) in slot order from +0
  sum,           ///< ((y_0 + y_1) + ...) in slot order; y are weighed already
  folded_sum,    ///< the same as a tree over the bits of the slot number
  running,       ///< acc = round(acc + round(weight y)) in the output type, in slot order from +0
  atomic_add     ///< acc = round(acc + y) in the output type, in any order; two slots commute
};

/// Where the routed scaling factor enters.
enum class ScalingPoint : std::uint8_t {
  in_sum,       ///< on the sum, before its one rounding; not of forms that round every addition
  after_sum,    ///< on the rounded sum, which is rounded again
  with_shared,  ///< round(shared + scaling * routed), or on the rounded sum without a shared expert
};

struct CombineNumerics {
  CombineForm form = CombineForm::exact;
  bool adds_bias = false;       ///< weighted_fma: the bias of GEMM2 per slot, in f32
  bool starts_at_zero = false;  ///< sum: +0 + y_0, so that all -0 give +0
  int fold_from = 0;  ///< folded_sum: bits fold_from - 1 .. 0, then the highest .. fold_from
  bool flushes = false;
  ScalingPoint scaling = ScalingPoint::in_sum;
  /// The shared expert is inside the one rounding of CombineForm::exact; else round(routed +
  /// shared) of two rows in the output type.
  bool joins_shared = false;
};

/// The order of rows in the stages between the GEMMs.
enum class RowOrder : std::uint8_t {
  slots,     ///< token * top_k + slot
  by_expert  ///< local experts ascending; inside one token ascending, then slot
};

/// A quantizer between two stages.
struct ActivationQuantizer {
  std::string_view quantizer;  ///< of all_quantizers(); empty = none
  std::vector<std::string> options = {};
  /// The prepared scalar that it takes: one number, or one per expert; empty = none.
  std::string_view scale = {};
  bool inverts_scale = false;  ///< it takes the reciprocal of that
  /// Its input is not a stage of its own: what it makes is the stage.
  bool fused = false;

  explicit operator bool() const { return !quantizer.empty(); }
};

/// A whole layer.
struct Numerics {
  Format activations = Format::f32;  ///< type of hidden states that the kernels take; f32 = any
  ActivationQuantizer input;
  GemmNumerics gemm1;
  ActivationQuantizer gemm1_output;  ///< what GEMM1 leaves is stored as codes
  ActivationNumerics activation;
  ActivationQuantizer intermediate;
  GemmNumerics gemm2;
  WeightPoint router_weight = WeightPoint::combine;
  Format weights = Format::f32;  ///< router weights are rounded to it
  CombineNumerics combine;
  RowOrder rows = RowOrder::slots;
};

/// How a backend's replay is known.
enum class ReplayEvidence : std::uint8_t {
  measured,  ///< whole layers of the kernel on hardware, bit for bit
  derived,   ///< composed of measured pieces as the source composes them; no layer was measured
  none       ///< cannot be replayed
};
std::string_view name(ReplayEvidence evidence);

struct ReplayStatus {
  ReplayEvidence evidence = ReplayEvidence::none;
  std::string_view note;  ///< what was measured, or why there is no replay
  /// How the rounding points are known where no replay was measured.
  std::string_view rounding = "read from the source";
};

}  // namespace moeref
