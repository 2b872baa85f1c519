#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/expert_rows.hpp"
#include "engine/moe.hpp"
#include "engine/rows.hpp"
#include "engine/stage_operand.hpp"

namespace moeref {

/// Rows that one GEMM takes at a time: its operands then stay a few megabytes whatever the number
/// of tokens.
inline constexpr std::int64_t kRowBatch = 64;

/// One layer on its way through the stages; each takes the stage before and can be run by itself.
/// Stages are kept in the result as options.keep_stages says. Everything given must outlive it.
class LayerRun {
 public:
  LayerRun(const KernelLayer& kernel, const Route& route, const Numerics& numerics,
           NumericsLevel level, const ForwardOptions& options, ForwardResult& result);

  /// Rows of a matrix in the type that the kernels take, with zero columns up to the padded width.
  Rows padded(const ScaledMatrix& tokens) const;
  /// The rows of tokens, padded, as GEMM1 takes them.
  StageOperand input(const ScaledMatrix& tokens);
  /// GEMM1 and activation of every slot: [slots, intermediate].
  Rows first_half(const StageOperand& x);
  /// The rows of slots as GEMM2 takes them.
  StageOperand between(Rows act);
  /// GEMM2 of every slot: [slots, width].
  Rows second_half(const StageOperand& x);
  /// The MLP of the shared expert, with the rounding points of the routed ones.
  Rows shared_expert(const ScaledMatrix& hidden);
  /// The slots of each token as one row. `residual` as CombineInputs.
  Rows combined(const CombineNumerics& numerics, const Rows& gemm2, const Rows* residual,
                Format output) const;

  /// A stage with one row a token: kept, and the given one in its place if there is one.
  Rows kept(Rows rows);
  GemmStatistics* statistics() { return &result_.statistics; }

 private:
  std::int64_t slots() const { return static_cast<std::int64_t>(route_.ids.size()); }
  std::vector<float> scales_for(const ActivationQuantizer& quantizer) const;
  Numerics shared_numerics() const;
  StageOperand quantized_or_plain(const ActivationQuantizer& quantizer, const ScaledMatrix& x);
  /// The given stage, with one row a slot in the order of slots; nothing if none is given.
  std::optional<Tensor> given(std::string_view name, const Tensor& computed) const;
  std::optional<Tensor> given_slots(std::string_view name, const Tensor& computed) const;
  Rows given_rows(Rows computed) const;  ///< of tokens
  Rows replaced(Rows computed) const;    ///< of slots
  StageOperand replaced(StageOperand operand, std::string_view codes, std::string_view scales,
                        bool slots) const;
  void keep(std::string name, Tensor tensor);
  void keep_slots(const std::string& name, const Rows& rows);
  void keep_slots(const std::string& name, Tensor tensor);
  template <typename Body>
  void for_each_batch(std::int64_t done, Body body);

  const KernelLayer& kernel_;
  const MoeLayer& layer_;
  const Route& route_;
  const Numerics& numerics_;
  NumericsLevel level_;
  const ForwardOptions& options_;
  ForwardResult& result_;
  std::vector<std::vector<std::int64_t>> groups_;  ///< slots of each local expert
  std::vector<std::int64_t> expert_order_;         ///< all of them
};

}  // namespace moeref
