#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/routing.hpp"
#include "quant/dtype.hpp"
#include "quant/moe_layer.hpp"

// Routing as GPU kernels and frameworks compute it. A kernel is plain data: which function scores,
// where values are rounded and to what, how ties break, in what order sums run. One executor
// carries all of them out.

namespace moeref {

/// The type of a value: one of its own, or that of the logits.
enum class ValueType : std::uint8_t { f32, bf16, of_logits };

/// How arithmetic on f32 is done. Every level has the kernel's rounding points.
enum class RoutingArithmetic : std::uint8_t {
  rounded,    ///< level `backend`: every operation and function is rounded correctly
  precise,    ///< replay of an nvcc build without fast math: expf and log1pf of its library, 1 +
              ///< expf(-x) fused, IEEE division
  fast_math,  ///< replay of -use_fast_math: ex2.approx, div.approx, rcp.approx, flush to zero
};

/// s(x), each operation rounded to f32. m = the largest logit of the token, S = the sum of e.
enum class ScoreForm : std::uint8_t {
  logit,               ///< x
  softmax_divided,     ///< e = exp(x - m); e / S
  softmax_reciprocal,  ///< e = exp(x - m); e * (1 / S)
  sigmoid,             ///< 1 / (1 + exp(-x))
  sigmoid_intrinsic,   ///< the same with __expf
  sigmoid_tanh,        ///< tanh(x / 2) / 2 + 1/2
  sqrt_softplus,       ///< sqrt(log1p(exp x))
  sqrt_softplus_20,    ///< x > 20: sqrt(x), else as sqrt_softplus
  sqrt_softplus_log,   ///< x > 20: sqrt(x), else sqrt(log(1 + exp x))
  sqrt_softplus_abs,   ///< sqrt(max(x, 0) + log1p(exp(-|x|)))
  once_softmax,        ///< one rounding of the exact softmax, sigmoid, sqrt(softplus)
  once_sigmoid,
  once_sqrt_softplus,
};

/// Where the selection bias enters: c = s + b, or x = logit + b before the score.
enum class BiasUse : std::uint8_t { none, score, logit };

/// The score of a group of experts, from their choice values.
enum class GroupScore : std::uint8_t {
  none,      ///< the kernel knows no groups
  top2_sum,  ///< the two largest, added in the choice value's type
  largest,
};

/// How the groups are found that stay; without NaN both keep the same ones.
enum class GroupOrder : std::uint8_t {
  keep_best,      ///< the best one after the other
  exclude_worst,  ///< the worst one after the other leaves, of equal ones the last
};

/// Which of equal choice values comes first.
enum class TieRule : std::uint8_t {
  lower_index,
  /// The warp (index / 32), then the lane (index % 32), whose five bits read backwards are lowest:
  /// a tree of shuffles which takes the other side only if that is larger.
  reversed_lanes,
  unspecified,  ///< the source leaves it open; the executor takes the lower index
};

/// How the slots of a token are listed.
enum class SlotOrder : std::uint8_t {
  falling,      ///< by falling choice value, then by the tie rule
  rising_id,    ///< by rising expert
  unspecified,  ///< the source leaves it open; the executor lists them as `falling`
};

/// What a weight is made of.
enum class RouteWeightForm : std::uint8_t {
  score,
  choice_minus_bias,  ///< c - b: what b has rounded away of the score is lost
  sigmoid_tanh,       ///< of the logit
  softmax_divided,    ///< e = exp(x - m) over the chosen; e / S
  once_softmax,       ///< over the chosen, times the scaling; one rounding
  once_sigmoid,       ///< of the logit, times the scaling; one rounding
};

/// Whether weights are divided by their sum.
enum class ShareUse : std::uint8_t { never, if_asked, always };

/// w / D, D made of the sum S of the weights.
enum class ShareForm : std::uint8_t {
  divided,       ///< w / D
  reciprocal,    ///< w * (1 / D)
  scaled_first,  ///< (w * scaling) / D
  wide,          ///< in f64, w * scaling / D, then rounded once to the output type
  once,          ///< w * scaling / (S + the routing's own epsilon), one rounding
};
enum class DivisorForm : std::uint8_t {
  sum,           ///< S
  plus_epsilon,  ///< S + epsilon
  at_least,      ///< max(S, epsilon)
  one_if_zero,   ///< S > 0 ? S : 1
};

/// Where the weights are multiplied by routed_scaling_factor.
enum class ScalingUse : std::uint8_t {
  none,         ///< nowhere: it must be 1
  always,       ///< where the share form or the weight form says; else by an f32 product at the end
  with_shares,  ///< by an f32 product after the division; not if nothing is divided
};

/// The order in which f32 numbers are added. Lanes deal elements out (element i goes to lane
/// (i / width) % lanes) and add theirs by rising i from +0; then lane j adds lane j ^ mask, mask =
/// lanes / 2, ..., 2, 1.
enum class SumOrder : std::uint8_t {
  unspecified,  ///< the source leaves it open; the executor rounds the exact sum once
  serial,       ///< by rising i, from +0
  lanes_32,     ///< width 1
  vectors,      ///< width: logits in 16 bytes; lanes: one for each vector, at most 32
  block_256,    ///< 256 lanes of width 1; each 32 add as a tree of neighbours, warps serially
};

/// What a kernel makes of a NaN logit.
enum class NanLogits : std::uint8_t {
  undefined,     ///< depends on comparisons that no source settles
  chosen_first,  ///< sorts above infinity and makes the weights NaN
};

/// A size that a kernel takes. Sizes: experts, top_k, groups, kept_groups, width (experts of a
/// group), kept_experts (of the kept groups).
enum class RoutingSize : std::uint8_t { experts, top_k, groups, kept_groups, width, kept_experts };
struct RoutingRule {
  enum class Need : std::uint8_t {
    at_most,
    at_least,
    multiple,
    below_kept_experts,
    power_of_two,
    no_power_of_two,
    outside,  ///< not in [value, to]
  };
  RoutingSize size = RoutingSize::experts;
  Need need = Need::at_most;
  std::int64_t value = 0;
  std::int64_t to = 0;
  std::string_view reason = {};
  /// The rule holds if `when` lies in [when_from, when_to].
  RoutingSize when = RoutingSize::experts;
  std::int64_t when_from = 0;
  std::int64_t when_to = std::numeric_limits<std::int64_t>::max();
};

/// "experts <= 512", "top_k >= 8 if experts >= 129".
std::string to_string(const RoutingRule& rule);

/// A routing method that a kernel carries out.
struct RoutingKernel {
  std::string_view name;
  std::string_view family;
  std::string_view summary;
  std::string_view source;  ///< repo@commit path function
  /// How the rows below are known: "read" (from the source), "measured" (on hardware).
  std::string_view evidence = "read";
  std::string_view open = {};  ///< what no source settles
  std::vector<RoutingMethod> methods;
  bool selects = true;  ///< false: the ids are given, only weights are computed

  std::vector<Format> logit_types;  ///< that the kernel takes
  Format logits = Format::f32;      ///< the one it runs with
  NanLogits nan_logits = NanLogits::undefined;

  ScoreForm score = ScoreForm::logit;
  SumOrder score_sum = SumOrder::unspecified;  ///< of a softmax over all experts
  ValueType score_type = ValueType::f32;

  BiasUse bias = BiasUse::none;
  ValueType bias_type = ValueType::f32;    ///< to which the bias is rounded before it is added
  ValueType choice_type = ValueType::f32;  ///< of c = s + b, and of a sum of two of them

  GroupScore group_score = GroupScore::none;
  GroupOrder group_order = GroupOrder::keep_best;
  MaskFill mask_fill = MaskFill::minus_infinity;  ///< the choice value outside the kept groups

  TieRule ties = TieRule::lower_index;
  bool minus_zero_first = false;  ///< false: -0 equals +0; true: -0 is below +0
  /// 32 lanes first take their own largest by comparison (-0 equals +0, the first of equals wins),
  /// then the best lane is found. For one slot only.
  bool lanes_first = false;
  SlotOrder slots = SlotOrder::falling;
  /// The choice value that experts get which are out: one at or below it must not be chosen.
  std::optional<float> floor;

  RouteWeightForm weight = RouteWeightForm::score;
  ShareUse share_use = ShareUse::never;
  ShareForm share = ShareForm::divided;
  SumOrder share_sum = SumOrder::unspecified;  ///< of the shares, or of the softmax of the chosen
  DivisorForm divisor = DivisorForm::sum;
  double epsilon = 0.0;
  ScalingUse scaling = ScalingUse::none;
  ValueType output_type = ValueType::f32;

  RoutingArithmetic arithmetic = RoutingArithmetic::rounded;
  std::vector<RoutingArithmetic> replays;  ///< levels beside `rounded` whose formulas are known
  std::string_view replay_evidence = {};
  std::vector<RoutingRule> rules;
};

/// Every kernel, at level `rounded` for f32 logits (its only type if it takes no f32).
std::span<const RoutingKernel> all_routing_kernels();
/// Error: an unknown name.
const RoutingKernel& find_routing_kernel(std::string_view name);
/// The kernel for logits of another type, or replayed. Error: a type or level that it does not
/// have.
RoutingKernel with_logits(RoutingKernel kernel, Format logits);
RoutingKernel with_arithmetic(RoutingKernel kernel, RoutingArithmetic arithmetic);
/// `route_logits` itself as a kernel: same ids, same weights.
RoutingKernel reference_routing_kernel(const Routing& routing);

/// Routes logits [tokens, experts], widened to f32 from `kernel.logits`, as the kernel does.
/// `bias` [experts] or empty; what the kernel's `bias_type` cannot hold is rounded to it. The
/// epsilon is the kernel's own; `routing.scaling` enters as its f32. The result does not depend on
/// `threads`.
/// Error: a method, size, type or option that the kernel does not have; a NaN logit or bias; a
/// bias of +infinity; logits that are not numbers of the kernel's type; a choice among experts that
/// are out; weights that are NaN.
Route route_logits_as(const RoutingKernel& kernel, const Routing& routing,
                      std::span<const float> logits, std::int64_t experts,
                      std::span<const float> bias, int threads = 0);

/// As above for given ids [tokens, top_k] (-1: weight 0).
Route weigh_given_experts_as(const RoutingKernel& kernel, const Routing& routing,
                             std::span<const float> logits, std::int64_t experts,
                             std::span<const std::int32_t> ids, int threads = 0);

/// Whether one token's `ids` [top_k] may come out of the kernel: any way in which ties (of experts
/// and of groups) may break if the kernel leaves that open, any order of slots likewise. `logits`
/// [experts]. Nothing if they may, else why not. Error: as route_logits_as.
std::optional<std::string> selection_fault(const RoutingKernel& kernel, const Routing& routing,
                                           std::span<const float> logits,
                                           std::span<const float> bias,
                                           std::span<const std::int32_t> ids);

/// Precomputed routing as FlashInfer TRTLLM-Gen takes it in one word a slot: (id << 16) | the
/// weight rounded to bf16. The id -1 gives 0xFFFF in the upper half.
/// Source: flashinfer@fb28d7242b35 include/flashinfer/trtllm/fused_moe/RoutingKernel.h
/// PackedScoreIdx.
std::vector<std::uint32_t> pack_route(const Route& route);
/// The ids and bf16 weights of packed words; `top_k` of them are a token.
Route unpack_route(std::span<const std::uint32_t> words, std::int64_t top_k);

}  // namespace moeref
