#include "tests/support/backend_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string_view>
#include <tuple>
#include <utility>

#include "io/layer_inputs.hpp"
#include "layout/prepare.hpp"
#include "layout/sample_layer.hpp"
#include "layout/weight_form.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::testing {
namespace {

struct Size {
  std::int64_t hidden;
  std::int64_t intermediate;
};
constexpr Size kSizes[] = {{32, 32}, {64, 64}, {128, 64}, {64, 128}, {128, 128}, {256, 256}};

/// Hidden size of layers with latent projections; with a shared expert its quantizer's too.
constexpr std::int64_t kOuter = 96;
constexpr std::int64_t kOuterShared = 384;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

SampleShape shape_of(const LayerRequest& wanted, const Size& size) {
  SampleShape shape;
  shape.experts = wanted.experts;
  shape.hidden = size.hidden;
  shape.intermediate = size.intermediate * wanted.rank.tp_size;
  shape.gated = wanted.kind != Kind::relu2;
  shape.bias = wanted.bias;
  shape.weight_format = wanted.format;
  shape.seed = 5;
  return shape;
}

/// The layer of a shape; made once.
const MoeLayer& layer_of(const SampleShape& shape) {
  static std::map<std::tuple<std::string, bool, bool, std::int64_t, std::int64_t, std::int64_t>,
                  MoeLayer>
      made;
  const std::tuple key(shape.weight_format, shape.gated, shape.bias, shape.experts, shape.hidden,
                       shape.intermediate);
  const auto found = made.find(key);
  return found != made.end() ? found->second : made.emplace(key, sample_layer(shape)).first->second;
}

Activation activation_of(Kind kind) {
  Activation activation;
  if (kind == Kind::relu2) activation.form = ActivationForm::relu2;
  if (kind == Kind::limited) activation.limit = 0.75f;
  if (kind == Kind::gpt_oss) {
    activation.alpha = 1.702f;
    activation.beta = 1.0f;
    activation.limit = 2.0f;
  }
  return activation;
}

void keep_storage(MoeLayer& layer, const MoeLayer& other) {
  layer.storage.insert(layer.storage.end(), other.storage.begin(), other.storage.end());
}

void add_shared(MoeLayer& layer) {
  SampleShape shape;
  shape.experts = 1;
  shape.hidden = layer.hidden;
  shape.intermediate = 128;
  shape.gated = layer.gated();
  shape.weight_format = "bf16";
  shape.seed = 77;
  const MoeLayer other = sample_layer(shape);
  layer.shared = other.experts.front();
  layer.shared_activation = layer.activation;
  keep_storage(layer, other);
}

void add_latent(MoeLayer& layer, std::int64_t outer) {
  SampleShape shape;
  shape.experts = 1;
  shape.hidden = outer;
  shape.intermediate = layer.hidden;
  shape.weight_format = "bf16";
  shape.seed = 78;
  const MoeLayer other = sample_layer(shape);
  layer.latent = layer.hidden;
  layer.hidden = outer;
  layer.latent_in = other.experts.front().up;
  layer.latent_out = other.experts.front().down;
  keep_storage(layer, other);
}

float largest(const std::vector<float>& values) {
  float amax = 0.0f;
  for (const float value : values) amax = std::max(amax, std::fabs(value));
  return amax;
}

/// Activation scales as a calibration finds them: so that nothing saturates, each expert another.
void calibrate(MoeLayer& layer, const HiddenStates& hidden, const Route& route) {
  if (!layer.experts.front().up_input_scale) return;
  ForwardOptions options;
  options.keep_stages = true;
  options.threads = 1;
  const ForwardResult result = forward(layer, hidden.matrix(), route, options);
  float a1 = 0.0f;
  float a2 = 0.0f;
  if (layer.latent == 0) {
    for (const std::uint16_t code : *hidden.codes) {
      a1 = std::max(a1, std::fabs(decode(Format::bf16, code)));
    }
  }
  for (const Stage& stage : result.stages) {
    if (stage.name == "fc1") a1 = largest(stage.values());
    if (stage.name == "act") a2 = largest(stage.values());
  }
  const bool fp4 = layer.experts.front().up.codes.format == Format::e2m1;
  const float most = fp4 ? 448.0f * 6.0f : 448.0f;
  const bool inverse = layer.experts.front().up.global_rule == GlobalScaleRule::divide;
  const auto stored = [&](float amax, std::size_t expert) {
    const float scale = amax / most * (1.0f - 0.01f * static_cast<float>(expert));
    return inverse ? 1.0f / scale : scale;
  };
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    Expert& expert = layer.experts[e];
    if (expert.gate_input_scale) expert.gate_input_scale = stored(a1, e);
    expert.up_input_scale = stored(a1, e);
    expert.down_input_scale = stored(a2, e);
  }
}

HiddenStates random_hidden(std::int64_t tokens, std::int64_t cols) {
  const LayerInputs inputs = random_layer_inputs(tokens, cols, 11, 0);
  HiddenStates hidden{tokens, cols, std::make_shared<std::vector<std::uint16_t>>()};
  for (std::int64_t i = 0; i < tokens * cols; ++i) {
    hidden.codes->push_back(load<std::uint16_t>(inputs.hidden.codes.data + 2 * i));
  }
  return hidden;
}

/// Distinct experts for every token; expert 1 gets none unless all are needed.
Route random_route(const LayerRequest& wanted) {
  std::mt19937_64 random(3);
  Route route{wanted.tokens, wanted.top_k, {}, {}};
  for (std::int64_t token = 0; token < wanted.tokens; ++token) {
    std::vector<std::int32_t> experts;
    for (std::int32_t e = 0; e < wanted.experts; ++e) {
      if (e != 1 || wanted.top_k >= wanted.experts) experts.push_back(e);
    }
    std::shuffle(experts.begin(), experts.end(), random);
    for (std::int64_t slot = 0; slot < wanted.top_k; ++slot) {
      route.ids.push_back(experts[to_size(slot)]);
      route.weights.push_back(std::uniform_real_distribution<float>(0.05f, 1.1f)(random));
    }
  }
  const std::size_t slots = route.ids.size();
  if (slots > 4) {
    route.weights[1] = -route.weights[1];
    route.weights[4] = 0.0f;
    if (wanted.absent_slots) route.ids[3] = -1;
  }
  return route;
}

BackendCase case_of_size(const Backend& backend, const LayerRequest& wanted, const Size& size) {
  BackendCase made;
  made.backend = &backend;
  MoeLayer& layer = made.logical;
  layer = layer_of(shape_of(wanted, size));
  layer.activation = wanted.activation.value_or(activation_of(wanted.kind));
  if (wanted.latent) add_latent(layer, wanted.shared ? kOuterShared : kOuter);
  if (wanted.shared) add_shared(layer);
  made.hidden = random_hidden(wanted.tokens, layer.hidden);
  made.route = random_route(wanted);
  if (wanted.calibrated) {
    calibrate(layer, made.hidden, made.route);
  } else {
    for (Expert& expert : layer.experts) {
      expert.gate_input_scale = expert.up_input_scale = expert.down_input_scale = std::nullopt;
    }
  }

  const PreparedLayer prepared =
      plan_layer(backend, parse_options(backend, wanted.options), layer, wanted.rank);
  std::vector<Tensor> tensors;
  for (const PreparedTensor& tensor : prepared.tensors) tensors.push_back(make(tensor, 1));
  made.kernel = prepared_kernel_layer(prepared, tensors, shard(layer, wanted.rank), 1);
  NumericsRequest& request = made.request;
  request.shape = prepared.source->shape;
  request.options = prepared.options;
  request.kernel = parse_kernel_options(backend, wanted.kernel);
  request.tokens = wanted.tokens;
  request.top_k = wanted.top_k;
  request.routed_scaling = wanted.routed_scaling;
  request.activation = made.kernel.layer.activation;
  request.static_scales = !prepared.source->scalars.w13_input_scale.empty();
  request.weighs_input = wanted.weighs_input;
  request.level = wanted.level;
  made.options.keep_stages = true;
  made.options.threads = 1;
  made.options.routed_scaling = wanted.routed_scaling;

  // Quantizers refuse sizes too.
  const HiddenStates one = made.hidden.picked({0});
  made.run(one, picked(made.route, {0}));
  return made;
}

}  // namespace

const char* name(Kind kind) {
  switch (kind) {
    case Kind::silu:
      return "silu";
    case Kind::limited:
      return "limited";
    case Kind::gpt_oss:
      return "gpt_oss";
    case Kind::relu2:
      break;
  }
  return "relu2";
}

ScaledMatrix HiddenStates::matrix() const {
  ScaledMatrix matrix;
  matrix.name = "hidden_states";
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.codes = {reinterpret_cast<const std::byte*>(codes->data()),
                  Format::bf16,
                  NibbleOrder::low_first,
                  0,
                  cols,
                  1};
  return matrix;
}

HiddenStates HiddenStates::picked(const std::vector<std::int64_t>& some) const {
  HiddenStates part{std::ssize(some), cols, std::make_shared<std::vector<std::uint16_t>>()};
  for (const std::int64_t row : some) {
    const auto from = codes->begin() + static_cast<std::ptrdiff_t>(row * cols);
    part.codes->insert(part.codes->end(), from, from + static_cast<std::ptrdiff_t>(cols));
  }
  return part;
}

Route picked(const Route& route, const std::vector<std::int64_t>& tokens) {
  Route part{std::ssize(tokens), route.top_k, {}, {}};
  for (const std::int64_t token : tokens) {
    for (std::int64_t k = 0; k < route.top_k; ++k) {
      part.ids.push_back(route.ids[to_size(token * route.top_k + k)]);
      part.weights.push_back(route.weights[to_size(token * route.top_k + k)]);
    }
  }
  return part;
}

ForwardResult BackendCase::run() const { return run(hidden, route); }

ForwardResult BackendCase::run(const HiddenStates& some, const Route& their_route) const {
  return forward(kernel, some.matrix(), their_route, numerics(), request.level, options);
}

BackendCase make_case(const Backend& backend, const LayerRequest& wanted) {
  const WeightForm& form = find_weight_form("test", wanted.format);
  const bool grouped = form.block_rows == 1 && form.block_cols != kWholeAxis;
  const std::int64_t block = grouped ? form.block_cols : 1;
  std::string refusal;
  for (const Size& size : kSizes) {
    if (size.hidden % block != 0 || size.intermediate % block != 0) continue;
    try {
      return case_of_size(backend, wanted, size);
    } catch (const Error& refused) {
      refusal = refused.what();
    }
  }
  throw Error(refusal);
}

LayerRequest usual_layer(const Backend& backend, NumericsLevel level) {
  static std::map<std::pair<std::string_view, NumericsLevel>, LayerRequest> known;
  const auto found = known.find({backend.name, level});
  if (found != known.end()) return found->second;
  LayerRequest wanted;
  wanted.format = backend.formats.front();
  wanted.level = level;
  std::string refusal;
  for (const Kind kind : kAllKinds) {
    wanted.kind = kind;
    try {
      make_case(backend, wanted);
      return known.emplace(std::pair(backend.name, level), wanted).first->second;
    } catch (const Error& refused) {
      refusal = refused.what();
    }
  }
  throw Error(refusal);
}

std::vector<BackendLevel> all_backend_levels() {
  std::vector<BackendLevel> levels;
  for (const Backend* backend : all_backends()) {
    levels.push_back({backend, NumericsLevel::backend});
    if (backend->replay.evidence != ReplayEvidence::none) {
      levels.push_back({backend, NumericsLevel::replay});
    }
  }
  return levels;
}

std::string name(const BackendLevel& level) {
  return fmt::format("{}_{}", level.backend->name, name(level.level));
}

std::string describe(const LayerRequest& wanted) {
  std::string text = fmt::format("{} {}", wanted.format, name(wanted.kind));
  if (wanted.bias) text += " bias";
  if (wanted.shared) text += " shared";
  if (wanted.latent) text += " latent";
  text += fmt::format(" top-{} of {}, {} tokens", wanted.top_k, wanted.experts, wanted.tokens);
  if (wanted.rank.tp_size > 1) {
    text += fmt::format(" tp{}/{}", wanted.rank.tp_rank, wanted.rank.tp_size);
  }
  if (wanted.rank.ep_size > 1) {
    text += fmt::format(" ep{}/{}", wanted.rank.ep_rank, wanted.rank.ep_size);
  }
  for (const std::string& option : wanted.options) text += " " + option;
  for (const std::string& option : wanted.kernel) text += " " + option;
  if (wanted.routed_scaling != 1.0f) text += fmt::format(" scaling {}", wanted.routed_scaling);
  if (wanted.weighs_input) text += " weighs input";
  return text;
}

}  // namespace moeref::testing
