#include "engine/moe.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/activation.hpp"
#include "engine/check_layer.hpp"
#include "engine/exact/linear_form.hpp"
#include "engine/exact/rounding.hpp"
#include "engine/operand.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/parallel.hpp"

namespace moeref {
namespace {

// Rows that one GEMM takes at a time: its operands then stay a few megabytes whatever the number of
// tokens.
constexpr std::int64_t kRowBatch = 64;

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

/// The results of one expert for a batch of rows, each [rows, width].
struct ExpertRows {
  std::vector<float> gate;
  std::vector<float> up;
  std::vector<float> act;
  std::vector<float> down;
};

std::vector<float> activate_all(const ActivationParameters& parameters,
                                const std::vector<float>& gate, const std::vector<float>& up,
                                int threads) {
  constexpr std::int64_t kChunk = 512;
  struct NoScratch {};
  std::vector<float> act(up.size());
  const auto count = static_cast<std::int64_t>(up.size());
  parallel_for<NoScratch>(
      (count + kChunk - 1) / kChunk, threads, [&](std::int64_t chunk, NoScratch&) {
        for (std::int64_t i = chunk * kChunk; i < std::min(count, (chunk + 1) * kChunk); ++i) {
          act[to_size(i)] =
              activate(parameters, gate.empty() ? 0.0f : gate[to_size(i)], up[to_size(i)]);
        }
      });
  return act;
}

ExpertRows run_expert(const Expert& expert, const ActivationParameters& activation,
                      const GemmInput& x, std::span<const float> input_factors, int threads,
                      GemmStatistics* statistics) {
  const std::int64_t width = expert.up.rows;
  ExpertRows result;
  GemmEpilogue epilogue;
  epilogue.row_scales = input_factors;
  const auto first_gemm = [&](const ScaledMatrix& weight, const ScaledMatrix& bias) {
    std::vector<float> out(to_size(x.count() * width));
    epilogue.bias = bias;
    gemm(x, weight, epilogue, out.data(), width, threads, statistics);
    return out;
  };
  if (expert.gate) result.gate = first_gemm(expert.gate, expert.gate_bias);
  result.up = first_gemm(expert.up, expert.up_bias);
  result.act = activate_all(activation, result.gate, result.up, threads);
  const ScaledMatrix act = f32_matrix("activation", result.act.data(), x.count(), width);
  result.down = project(act, expert.down, expert.down_bias, threads, statistics);
  return result;
}

/// Slots (token * top_k + slot) of each local expert, in order.
std::vector<std::vector<std::int64_t>> group_by_expert(const MoeLayer& layer, const Route& route) {
  std::vector<std::vector<std::int64_t>> groups(layer.experts.size());
  for (std::size_t slot = 0; slot < route.ids.size(); ++slot) {
    const std::int64_t expert = route.ids[slot] - layer.first_expert;
    if (route.ids[slot] < 0 || expert < 0 || expert >= layer.local_experts()) continue;
    groups[to_size(expert)].push_back(static_cast<std::int64_t>(slot));
  }
  return groups;
}

/// A stage that is filled row by row; takes memory only if kept.
class StageRows {
 public:
  StageRows(std::string name, Shape rows, std::int64_t width, bool keep)
      : stage_{std::move(name), std::move(rows), {}}, width_(width), keep_(keep) {
    stage_.shape.push_back(width);
    if (keep_) stage_.values.assign(to_size(element_count(stage_.shape)), 0.0f);
  }
  /// `values` is [rows, n]; it goes to the columns [first_col, first_col + n) of these rows.
  void put(std::span<const std::int64_t> rows, const std::vector<float>& values,
           std::int64_t first_col = 0) {
    if (!keep_ || values.empty()) return;
    const std::size_t count = values.size() / rows.size();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::copy_n(values.data() + i * count, count,
                  stage_.values.data() + rows[i] * width_ + first_col);
    }
  }
  float* row(std::int64_t index) { return stage_.values.data() + index * width_; }
  const float* row(std::int64_t index) const { return stage_.values.data() + index * width_; }
  void move_to(std::vector<Stage>& stages) {
    if (keep_) stages.push_back(std::move(stage_));
  }

 private:
  Stage stage_;
  std::int64_t width_;
  bool keep_;
};

/// Stages of the MLP of some rows: gate and up side by side, act, and the second GEMM, which the
/// combine needs in any case.
struct MlpStages {
  MlpStages(const std::string& prefix, const Shape& rows, const Expert& expert, bool keep)
      : gate_width(expert.gate.rows),
        gemm1(prefix + "gemm1", rows, expert.gate.rows + expert.up.rows, keep),
        act(prefix + "act", rows, expert.up.rows, keep),
        gemm2(prefix + "gemm2", rows, expert.down.rows, true) {}

  void put(std::span<const std::int64_t> rows, const ExpertRows& values) {
    gemm1.put(rows, values.gate);
    gemm1.put(rows, values.up, gate_width);
    act.put(rows, values.act);
    gemm2.put(rows, values.down);
  }
  void move_to(std::vector<Stage>& stages) {
    gemm1.move_to(stages);
    act.move_to(stages);
    gemm2.move_to(stages);
  }

  std::int64_t gate_width;
  StageRows gemm1;
  StageRows act;
  StageRows gemm2;
};

MlpStages run_routed_experts(const MoeLayer& layer, const ScaledMatrix& x, const Route& route,
                             const ForwardOptions& options, GemmStatistics* statistics) {
  MlpStages stages("", {route.tokens, route.top_k}, layer.experts.front(), options.keep_stages);
  const auto groups = group_by_expert(layer, route);
  const bool weigh_input = options.weight_point == RouterWeightPoint::input;
  for (std::size_t expert = 0; expert < groups.size(); ++expert) {
    const std::span<const std::int64_t> slots = groups[expert];
    const auto parameters = parameters_for(layer.activation, static_cast<std::int64_t>(expert));
    for (std::size_t first = 0; first < slots.size(); first += to_size(kRowBatch)) {
      const auto batch = slots.subspan(first, std::min(slots.size() - first, to_size(kRowBatch)));
      std::vector<std::int64_t> tokens;
      std::vector<float> factors;
      for (const std::int64_t slot : batch) {
        tokens.push_back(slot / route.top_k);
        if (weigh_input) factors.push_back(route.weights[to_size(slot)]);
      }
      stages.put(batch, run_expert(layer.experts[expert], parameters, GemmInput(x, tokens), factors,
                                   options.threads, statistics));
    }
    if (options.progress) {
      options.progress(static_cast<std::int64_t>(expert) + 1, layer.local_experts());
    }
  }
  return stages;
}

MlpStages run_shared_expert(const MoeLayer& layer, const ScaledMatrix& hidden,
                            const ForwardOptions& options, GemmStatistics* statistics) {
  const Expert& shared = *layer.shared;
  MlpStages stages("shared_", {hidden.rows}, shared, options.keep_stages);
  for (std::int64_t row = 0; row < hidden.rows; row += kRowBatch) {
    const auto batch = index_range(row, std::min(hidden.rows, row + kRowBatch));
    stages.put(batch, run_expert(shared, parameters_for(layer.shared_activation, 0),
                                 GemmInput(hidden, batch), {}, options.threads, statistics));
  }
  return stages;
}

/// out[t] = RN(sum over the slots of weight * y, in one rounding, times the routed scaling, plus
/// the residual).
std::vector<float> combine(const MoeLayer& layer, const Route& route, const StageRows& gemm2,
                           const float* residual, Format output, const ForwardOptions& options) {
  const std::int64_t width = layer.expert_width();
  std::vector<float> out(to_size(route.tokens * width));
  parallel_for<exact::LinearForm>(
      route.tokens, options.threads, [&](std::int64_t token, exact::LinearForm& form) {
        for (std::int64_t col = 0; col < width; ++col) {
          form.clear();
          double ieee = 0.0;
          for (std::int64_t slot = token * route.top_k; slot < (token + 1) * route.top_k; ++slot) {
            const std::int64_t expert = route.ids[to_size(slot)] - layer.first_expert;
            if (route.ids[to_size(slot)] < 0 || expert < 0 || expert >= layer.local_experts())
              continue;
            const double y = gemm2.row(slot)[col];
            const double weight = options.weight_point == RouterWeightPoint::input
                                      ? 1.0
                                      : static_cast<double>(route.weights[to_size(slot)]);
            form.add_product(weight, y);
            ieee += weight * y;
          }
          form.multiply_by(options.routed_scaling);
          const double rest = residual != nullptr ? residual[token * width + col] : 0.0;
          form.add(rest);
          ieee = ieee * options.routed_scaling + rest;
          out[to_size(token * width + col)] = std::isfinite(ieee) ? form.round(output)
                                              : std::isnan(ieee)  ? exact::canonical_nan()
                                                                  : static_cast<float>(ieee);
        }
      });
  return out;
}

/// fc2 on the combined latent rows plus the shared expert, one rounding to the output type.
std::vector<float> project_out(const MoeLayer& layer, const std::vector<float>& latent,
                               const float* residual, const ForwardOptions& options,
                               GemmStatistics* statistics) {
  const auto tokens = static_cast<std::int64_t>(latent.size()) / layer.latent;
  const ScaledMatrix x = f32_matrix("combine", latent.data(), tokens, layer.latent);
  std::vector<float> out(to_size(tokens * layer.hidden));
  GemmEpilogue epilogue;
  epilogue.output = options.output;
  epilogue.residual_stride = layer.hidden;
  for (std::int64_t row = 0; row < tokens; row += kRowBatch) {
    epilogue.residual = residual != nullptr ? residual + row * layer.hidden : nullptr;
    gemm(GemmInput(x, index_range(row, std::min(tokens, row + kRowBatch))), layer.latent_out,
         epilogue, out.data() + row * layer.hidden, layer.hidden, options.threads, statistics);
  }
  return out;
}

void check_forward(const MoeLayer& layer, const ScaledMatrix& hidden, const Route& route,
                   const ForwardOptions& options) {
  check_layer(layer);
  if (hidden.cols != layer.hidden) {
    fail(hidden.name, "has {} columns, the layer's hidden size is {}", hidden.cols, layer.hidden);
  }
  if (route.tokens != hidden.rows) {
    fail(hidden.name, "has {} tokens, the routing has {}", hidden.rows, route.tokens);
  }
  if (options.output != Format::f32 && options.output != Format::bf16 &&
      options.output != Format::f16) {
    fail("output", "must be f32, bf16 or f16");
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
                   std::span<const std::int64_t> token_ids, int threads,
                   std::vector<float>* logits) {
  const simd::DefaultFloatEnvironment environment;
  const std::vector<float> scores = router_logits(layer, hidden, threads);
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
    return weigh_given_experts(layer.routing, scores, layer.expert_count(), ids, threads);
  }
  std::vector<float> bias;
  if (layer.selection_bias) {
    for (std::int64_t expert = 0; expert < layer.selection_bias.cols; ++expert) {
      bias.push_back(static_cast<float>(element_at(layer.selection_bias, 0, expert)));
    }
  }
  return route_logits(layer.routing, scores, layer.expert_count(), bias, threads);
}

ForwardResult forward(const MoeLayer& layer, const ScaledMatrix& hidden, const Route& route,
                      const ForwardOptions& options) {
  const simd::DefaultFloatEnvironment environment;
  check_forward(layer, hidden, route, options);
  ForwardResult result;
  const bool latent = layer.latent != 0;

  StageRows projected("fc1", {hidden.rows}, layer.latent, latent);
  if (latent) {
    projected.put(index_range(0, hidden.rows),
                  project(hidden, layer.latent_in, {}, options.threads, &result.statistics));
  }
  const ScaledMatrix x =
      latent ? f32_matrix("fc1", projected.row(0), hidden.rows, layer.latent) : hidden;

  MlpStages routed = run_routed_experts(layer, x, route, options, &result.statistics);
  std::optional<MlpStages> shared;
  if (layer.shared) shared = run_shared_expert(layer, hidden, options, &result.statistics);
  const float* residual = shared ? shared->gemm2.row(0) : nullptr;

  StageRows combined("combine", {hidden.rows}, layer.latent, latent);
  if (latent) {
    const auto rows = combine(layer, route, routed.gemm2, nullptr, Format::f32, options);
    result.output = project_out(layer, rows, residual, options, &result.statistics);
    combined.put(index_range(0, hidden.rows), rows);
  } else {
    result.output = combine(layer, route, routed.gemm2, residual, options.output, options);
  }
  if (options.keep_stages) {
    projected.move_to(result.stages);
    routed.move_to(result.stages);
    if (shared) shared->move_to(result.stages);
    combined.move_to(result.stages);
  }
  return result;
}

}  // namespace moeref
