#include "tests/judge/slow_layer.hpp"

#include "tests/judge/activation_judge.hpp"
#include "tests/judge/exact_dot.hpp"

namespace moeref::judge {
namespace {

double bias_value(const ScaledMatrix& bias, std::int64_t n) {
  if (!bias) return 0.0;
  const std::int64_t index = bias.codes.origin + n * bias.codes.col_stride;
  const int width = bias.codes.format == Format::f32 ? 4 : 2;
  std::uint32_t code = 0;
  std::memcpy(&code, bias.codes.data + index * width, static_cast<std::size_t>(width));
  return decode_by_formula(bias.codes.format, code);
}

ScaledMatrix plain(const std::vector<float>& values, std::int64_t cols) {
  ScaledMatrix matrix;
  matrix.name = "stage";
  matrix.rows = static_cast<std::int64_t>(values.size()) / cols;
  matrix.cols = cols;
  matrix.codes.data = reinterpret_cast<const std::byte*>(values.data());
  matrix.codes.format = Format::f32;
  matrix.codes.row_stride = cols;
  return matrix;
}

std::vector<float> row_times(const ScaledMatrix& x, std::int64_t row, const ScaledMatrix& w,
                             const ScaledMatrix& bias, double factor) {
  std::vector<float> out;
  for (std::int64_t n = 0; n < w.rows; ++n) {
    ExactSum sum;
    sum.add_dot(x, row, w, n);
    sum.multiply(factor);
    sum.add(bias_value(bias, n));
    out.push_back(sum.round(Format::f32));
  }
  return out;
}

struct Mlp {
  std::vector<float> gemm1, act, gemm2;
};

Mlp run_mlp(const Expert& expert, const ActivationParameters& parameters, const ScaledMatrix& x,
            std::int64_t row, double factor) {
  Mlp mlp;
  std::vector<float> gate;
  if (expert.gate) gate = row_times(x, row, expert.gate, expert.gate_bias, factor);
  const std::vector<float> up = row_times(x, row, expert.up, expert.up_bias, factor);
  ActivationJudge activation(parameters);
  for (std::size_t i = 0; i < up.size(); ++i) {
    mlp.act.push_back(activation(gate.empty() ? 0.0f : gate[i], up[i]));
  }
  mlp.gemm1 = gate;
  mlp.gemm1.insert(mlp.gemm1.end(), up.begin(), up.end());
  mlp.gemm2 = row_times(plain(mlp.act, expert.down.cols), 0, expert.down, expert.down_bias, 1.0);
  return mlp;
}

void append(std::vector<float>& to, const std::vector<float>& values) {
  to.insert(to.end(), values.begin(), values.end());
}

}  // namespace

std::vector<float> slow_logits(const MoeLayer& layer, const ScaledMatrix& hidden) {
  std::vector<float> logits;
  for (std::int64_t token = 0; token < hidden.rows; ++token) {
    append(logits, row_times(hidden, token, layer.router, layer.router_bias, 1.0));
  }
  return logits;
}

std::map<std::string, std::vector<float>> slow_forward(const MoeLayer& layer,
                                                       const ScaledMatrix& hidden,
                                                       const Route& route,
                                                       const ForwardOptions& options) {
  std::map<std::string, std::vector<float>> stages;
  const bool on_input = options.weight_point == WeightPoint::input;
  for (std::int64_t token = 0; token < hidden.rows && layer.latent != 0; ++token) {
    append(stages["fc1"], row_times(hidden, token, layer.latent_in, {}, 1.0));
  }
  const ScaledMatrix x = layer.latent != 0 ? plain(stages["fc1"], layer.latent) : hidden;
  const Expert& any = layer.experts.front();
  const auto width = static_cast<std::size_t>(any.down.rows);
  for (std::int64_t token = 0; token < hidden.rows; ++token) {
    std::vector<ExactSum> sums(width);
    for (std::int64_t slot = token * route.top_k; slot < (token + 1) * route.top_k; ++slot) {
      const auto at = static_cast<std::size_t>(slot);
      const std::int64_t expert = route.ids[at] - layer.first_expert;
      const bool local = route.ids[at] >= 0 && expert >= 0 && expert < layer.local_experts();
      Mlp mlp;
      mlp.gemm1.assign(static_cast<std::size_t>(any.gate.rows + any.up.rows), 0.0f);
      mlp.act.assign(static_cast<std::size_t>(any.up.rows), 0.0f);
      mlp.gemm2.assign(width, 0.0f);
      if (local) {
        mlp = run_mlp(layer.experts[static_cast<std::size_t>(expert)],
                      parameters_for(layer.activation, expert), x, token,
                      on_input ? route.weights[at] : 1.0);
      }
      append(stages["gemm1"], mlp.gemm1);
      append(stages["act"], mlp.act);
      append(stages["gemm2"], mlp.gemm2);
      for (std::size_t col = 0; local && col < width; ++col) {
        sums[col].add_product(on_input ? 1.0 : route.weights[at], mlp.gemm2[col]);
      }
    }
    for (ExactSum& sum : sums) sum.multiply(options.routed_scaling);
    Mlp shared;
    if (layer.shared) {
      shared =
          run_mlp(*layer.shared, parameters_for(layer.shared_activation, 0), hidden, token, 1.0);
      append(stages["shared_gemm1"], shared.gemm1);
      append(stages["shared_act"], shared.act);
      append(stages["shared_gemm2"], shared.gemm2);
    }
    if (layer.latent == 0) {
      for (std::size_t col = 0; col < width; ++col) {
        if (layer.shared) sums[col].add(shared.gemm2[col]);
        stages["final"].push_back(sums[col].round(options.output));
      }
      continue;
    }
    std::vector<float> combined;
    for (const ExactSum& sum : sums) combined.push_back(sum.round(Format::f32));
    append(stages["combine"], combined);
    for (std::int64_t n = 0; n < layer.hidden; ++n) {
      ExactSum sum;
      sum.add_dot(plain(combined, layer.latent), 0, layer.latent_out, n);
      if (layer.shared) sum.add(shared.gemm2[static_cast<std::size_t>(n)]);
      stages["final"].push_back(sum.round(options.output));
    }
  }
  return stages;
}

}  // namespace moeref::judge
