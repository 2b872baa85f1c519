#include "engine/moe.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "engine/activation.hpp"
#include "engine/check_layer.hpp"
#include "engine/combine.hpp"
#include "engine/kernel_rounding.hpp"
#include "engine/layer_run.hpp"
#include "engine/operand.hpp"
#include "engine/rows.hpp"
#include "engine/stage_operand.hpp"
#include "quant/cast.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "simd/float_environment.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

std::vector<std::int64_t> index_range(std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> indices(to_size(end - begin));
  std::iota(indices.begin(), indices.end(), begin);
  return indices;
}

/// y = RN32(x w^T + bias) for all rows of `x`.
std::vector<float> project(const ScaledMatrix& x, const ScaledMatrix& weight,
                           const ScaledMatrix& bias, int threads, GemmStatistics* statistics) {
  std::vector<float> out(to_size(x.rows * weight.rows));
  GemmEpilogue epilogue;
  epilogue.bias = bias;
  for (std::int64_t row = 0; row < x.rows; row += kRowBatch) {
    const GemmInput batch(x, index_range(row, std::min(x.rows, row + kRowBatch)));
    gemm(batch, weight, epilogue, out.data() + row * weight.rows, weight.rows, threads, statistics);
  }
  return out;
}

/// RN_output(x w^T + residual) for all rows: the latent projections.
Rows project_rows(const std::string& name, const ScaledMatrix& x, const ScaledMatrix& weight,
                  const Rows* residual, Format output, int threads, GemmStatistics* statistics) {
  Rows rows(name, output, x.rows, weight.rows);
  GemmEpilogue epilogue;
  epilogue.output = output;
  epilogue.residual_stride = weight.rows;
  std::vector<float> addend;
  std::vector<float> out(to_size(kRowBatch * weight.rows));
  for (std::int64_t row = 0; row < x.rows; row += kRowBatch) {
    const auto batch = index_range(row, std::min(x.rows, row + kRowBatch));
    if (residual != nullptr) {
      addend.resize(batch.size() * to_size(weight.rows));
      for (std::size_t i = 0; i < batch.size(); ++i) {
        residual->get(batch[i], 0,
                      std::span(addend).subspan(i * to_size(weight.rows), to_size(weight.rows)));
      }
      epilogue.residual = addend.data();
    }
    gemm(GemmInput(x, batch), weight, epilogue, out.data(), weight.rows, threads, statistics);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      rows.put(batch[i], 0, std::span(out).subspan(i * to_size(weight.rows), to_size(weight.rows)));
    }
  }
  return rows;
}

/// The first `cols` columns.
Rows trimmed(Rows rows, std::int64_t cols) {
  if (rows.cols() == cols) return rows;
  Rows out(rows.name(), rows.format(), rows.rows(), cols);
  std::vector<float> values(to_size(cols));
  for (std::int64_t row = 0; row < rows.rows(); ++row) {
    rows.get(row, 0, values);
    out.put(row, 0, values);
  }
  return out;
}

std::vector<float> values_of(const Rows& rows) {
  std::vector<float> values(to_size(rows.rows() * rows.cols()));
  for (std::int64_t row = 0; row < rows.rows(); ++row) {
    rows.get(row, 0, std::span(values).subspan(to_size(row * rows.cols()), to_size(rows.cols())));
  }
  return values;
}

void check_forward(const KernelLayer& kernel, const ScaledMatrix& hidden, const Route& route,
                   const Numerics& numerics, const ForwardOptions& options) {
  const MoeLayer& layer = kernel.layer;
  check_layer(layer, kernel.width);
  const std::int64_t wanted = layer.latent != 0 ? layer.hidden : kernel.width;
  if (hidden.cols != wanted) {
    fail(hidden.name, "has {} columns, the layer's hidden size is {}", hidden.cols, wanted);
  }
  if (route.tokens != hidden.rows) {
    fail(hidden.name, "has {} tokens, the routing has {}", hidden.rows, route.tokens);
  }
  if (options.output != Format::f32 && options.output != Format::bf16 &&
      options.output != Format::f16) {
    fail("output", "must be f32, bf16 or f16");
  }
  if (numerics.activations != Format::f32 &&
      (hidden.codes.format != numerics.activations || hidden.scales)) {
    fail(hidden.name, "is {}{}; the backend's kernels take {} hidden states",
         name(hidden.codes.format), hidden.scales ? " with scales" : "",
         name(numerics.activations));
  }
  check_route(route, layer.expert_count(), "routing");
}

}  // namespace

std::vector<float> router_logits(const MoeLayer& layer, const ScaledMatrix& hidden, int threads) {
  const simd::DefaultFloatEnvironment environment;
  check_layer(layer);
  if (!layer.router) fail("router", "the layer has none; give the routing instead");
  return project(hidden, layer.router, layer.router_bias, threads, nullptr);
}

Route route_tokens(const MoeLayer& layer, const ScaledMatrix& hidden,
                   std::span<const std::int64_t> token_ids, int threads, std::vector<float>* logits,
                   const RoutingKernel* kernel) {
  const simd::DefaultFloatEnvironment environment;
  std::vector<float> scores = router_logits(layer, hidden, threads);
  if (kernel != nullptr) {
    for (float& score : scores) score = kernel_rounded(kernel->logits, score);
  }
  if (logits != nullptr) *logits = scores;
  if (!layer.expert_table.bytes.empty()) {
    const std::int64_t vocabulary = layer.expert_table.shape.at(0);
    const std::int64_t slots = layer.expert_table.shape.at(1);
    if (static_cast<std::int64_t>(token_ids.size()) != hidden.rows) {
      fail(layer.expert_table.name,
           "layer {} routes by token id and needs one per token: {} tokens, {} ids given (I64 "
           "input_ids)",
           layer.layer, hidden.rows, token_ids.size());
    }
    std::vector<std::int32_t> ids;
    for (const std::int64_t token : token_ids) {
      if (token < 0 || token >= vocabulary) {
        fail("input_ids", "token id {} is outside the vocabulary [0, {})", token, vocabulary);
      }
      for (std::int64_t slot = 0; slot < slots; ++slot) {
        const auto expert = layer.expert_table.at<std::int64_t>(token * slots + slot);
        if (expert < -1 || expert >= layer.expert_count()) {
          fail(layer.expert_table.name, "sends token id {} to expert {}; the layer has {} experts",
               token, expert, layer.expert_count());
        }
        ids.push_back(static_cast<std::int32_t>(expert));
      }
    }
    if (kernel != nullptr) {
      return weigh_given_experts_as(*kernel, layer.routing, scores, layer.expert_count(), ids,
                                    threads);
    }
    return weigh_given_experts(layer.routing, scores, layer.expert_count(), ids, threads);
  }
  std::vector<float> bias;
  if (layer.selection_bias) {
    for (std::int64_t expert = 0; expert < layer.selection_bias.cols; ++expert) {
      bias.push_back(static_cast<float>(element_at(layer.selection_bias, 0, expert)));
    }
  }
  if (kernel != nullptr) {
    return route_logits_as(*kernel, layer.routing, scores, layer.expert_count(), bias, threads);
  }
  return route_logits(layer.routing, scores, layer.expert_count(), bias, threads);
}

std::vector<float> Stage::values() const {
  std::vector<float> values(to_size(element_count(tensor.shape)));
  const std::byte* from = tensor.bytes.data();
  for (float& value : values) {
    switch (tensor.dtype) {
      case DType::bf16:
        value = std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(from)} << 16);
        break;
      case DType::f16:
        value = widen_f16(load<std::uint16_t>(from));
        break;
      default:
        value = load<float>(from);
    }
    from += info(tensor.dtype).bits / 8;
  }
  return values;
}

Numerics reference_numerics(const ForwardOptions& options) {
  Numerics numerics;
  numerics.router_weight = options.weight_point;
  numerics.combine.joins_shared = true;
  return numerics;
}

ForwardResult forward(const KernelLayer& kernel, const ScaledMatrix& hidden, const Route& route,
                      const Numerics& numerics, NumericsLevel level,
                      const ForwardOptions& options) {
  const simd::DefaultFloatEnvironment environment;
  check_forward(kernel, hidden, route, numerics, options);
  ForwardResult result;
  LayerRun run(kernel, route, numerics, level, options, result);
  const MoeLayer& layer = kernel.layer;
  const bool latent = layer.latent != 0;
  const Format narrow = numerics.activations;  // between kernels; f32 = not rounded

  Rows x;
  if (latent) {
    x = run.kept(project_rows("fc1", hidden, layer.latent_in, nullptr, narrow, options.threads,
                              run.statistics()));
  }
  const ScaledMatrix tokens = latent ? x.matrix() : hidden;
  const bool pads = tokens.cols != layer.expert_width();
  const Rows padded = pads ? run.padded(tokens) : Rows();
  const StageOperand a1 = run.input(pads ? padded.matrix() : tokens);
  const StageOperand a2 = run.between(run.first_half(a1));
  const Rows gemm2 = run.second_half(a2);

  std::optional<Rows> shared;
  if (layer.shared) shared = run.shared_expert(hidden);
  const Rows* residual = shared ? &*shared : nullptr;
  const bool joins = numerics.combine.joins_shared;
  const Format combined = latent ? narrow : options.output;
  // From the slots to the output, in the order of additions that `combine` names.
  const auto finish = [&](const CombineNumerics& combine, bool keeps) {
    Rows routed =
        trimmed(run.combined(combine, gemm2, joins && !latent ? residual : nullptr, combined),
                kernel.width);
    if (keeps && (latent || (residual != nullptr && !joins))) routed = run.kept(std::move(routed));
    if (latent) {
      routed = project_rows("fc2", routed.matrix(), layer.latent_out, joins ? residual : nullptr,
                            options.output, options.threads, run.statistics());
    }
    if (joins) return routed;
    return join_shared(combine, options.routed_scaling, std::move(routed), residual);
  };
  result.output = values_of(finish(numerics.combine, true));
  if (level == NumericsLevel::replay && numerics.combine.form == CombineForm::folded_sum) {
    const int bits = static_cast<int>(std::bit_width(static_cast<std::size_t>(route.top_k - 1)));
    for (int order = 0; order <= bits; ++order) {
      if (order == numerics.combine.fold_from) continue;
      CombineNumerics other = numerics.combine;
      other.fold_from = order;
      result.alternatives.push_back(
          {fmt::format("combine_order={}", order), values_of(finish(other, false))});
    }
  }
  return result;
}

ForwardResult forward(const MoeLayer& layer, const ScaledMatrix& hidden, const Route& route,
                      const ForwardOptions& options) {
  return forward(unprepared_layer(layer), hidden, route, reference_numerics(options),
                 NumericsLevel::reference, options);
}

}  // namespace moeref
