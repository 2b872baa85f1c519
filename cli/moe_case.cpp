#include "cli/moe_case.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "cli/conform/sha256.hpp"
#include "cli/progress.hpp"
#include "engine/bounds/block.hpp"
#include "engine/rows.hpp"
#include "io/json_file.hpp"
#include "layout/kernel_view.hpp"
#include "layout/prepare.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/parallel.hpp"

namespace moeref::cli {

namespace {

/// The layer as the backend's kernel reads what the backend prepares of it.
struct PreparedRun {
  KernelLayer kernel;
  NumericsRequest request;
};

/// The routing kernel that is asked for, for replay with its own arithmetic where that is known.
std::optional<RoutingKernel> routing_kernel(const CaseOptions& options) {
  if (options.routing.empty()) return std::nullopt;
  const RoutingKernel& kernel = find_routing_kernel(options.routing);
  if (options.level != NumericsLevel::replay || kernel.replays.empty()) return kernel;
  return with_arithmetic(kernel, kernel.replays.front());
}

/// Of one token and slot, unscaled.
NumericsRequest request_of(const PreparedLayer& prepared, const Activation& activation,
                           const CaseOptions& options) {
  NumericsRequest request;
  request.shape = prepared.source->shape;
  request.options = prepared.options;
  request.kernel = parse_kernel_options(find_backend(options.backend), options.kernel_options);
  request.tokens = 1;
  request.top_k = 1;
  request.activation = activation;
  request.static_scales = !prepared.source->scalars.w13_input_scale.empty();
  request.level = options.level;
  return request;
}

PreparedRun prepare_run(const MoeLayer& layer, const LayerInputs& inputs, std::int64_t top_k,
                        const CaseOptions& options, float routed_scaling, int threads) {
  const Backend& backend = find_backend(options.backend);
  const PreparedLayer prepared =
      plan_layer(backend, parse_options(backend, options.backend_options), layer, options.shard);
  std::vector<Tensor> made;
  for (const PreparedTensor& tensor : prepared.tensors) made.push_back(make(tensor, threads));
  PreparedRun run;
  run.kernel = prepared_kernel_layer(prepared, made, shard(layer, options.shard), threads);
  run.request = request_of(prepared, run.kernel.layer.activation, options);
  run.request.tokens = inputs.hidden.rows;
  run.request.top_k = top_k;
  run.request.routed_scaling = routed_scaling;
  return run;
}

}  // namespace

NumericsLevel parse_level(const std::string& name) {
  for (const NumericsLevel level :
       {NumericsLevel::reference, NumericsLevel::backend, NumericsLevel::replay}) {
    if (moeref::name(level) == name) return level;
  }
  fail("--numerics", "'{}' is not known; reference, backend or replay", one_line(name));
}

void check_numerics(const CaseOptions& options) {
  const Backend& backend = find_backend(options.backend);
  parse_options(backend, options.backend_options);
  if (!options.routing.empty()) find_routing_kernel(options.routing);
  if (options.level == NumericsLevel::reference) {
    if (!options.kernel_options.empty()) {
      fail("--kernel", "'{}' goes with --numerics backend or replay",
           one_line(options.kernel_options.front()));
    }
    return;
  }
  parse_kernel_options(backend, options.kernel_options);
  if (options.output != Format::bf16) {
    fail("--output", "{} goes with --numerics reference; the kernels of backends write bf16",
         moeref::name(options.output));
  }
  if (options.level == NumericsLevel::replay && backend.replay.evidence == ReplayEvidence::none) {
    fail(backend.name, "cannot be replayed: {}; take --numerics backend", backend.replay.note);
  }
}

void check_format(const Backend& backend, const MoeLayer& layer) {
  if (std::find(backend.formats.begin(), backend.formats.end(), layer.weight_format) !=
      backend.formats.end()) {
    return;
  }
  fail(backend.name, "takes {} weights, layer {} has {}", fmt::join(backend.formats, ", "),
       layer.layer, layer.weight_format);
}

void check_layer_numerics(const PreparedLayer& prepared, const MoeLayer& layer,
                          const CaseOptions& options) {
  NumericsRequest request = request_of(prepared, layer.activation, options);
  request.top_k = layer.routing.top_k;
  if (options.scales_in_combine) request.routed_scaling = layer.routing.scaling;
  numerics_for(find_backend(options.backend), request);
}

ComputedCase compute_case(const MoeLayer& given, const LayerInputs& inputs,
                          const CaseOptions& options, const GlobalOptions& global,
                          const std::string& label) {
  MoeLayer layer = given;
  const float scaling =
      options.scales_in_combine ? std::exchange(layer.routing.scaling, 1.0f) : 1.0f;
  ComputedCase computed;
  const std::optional<RoutingKernel> routing = routing_kernel(options);
  if (inputs.topk_ids.empty()) {
    computed.route = route_tokens(layer, inputs.hidden, inputs.input_ids, global.threads,
                                  &computed.logits, routing ? &*routing : nullptr);
  } else {
    if (!options.routing.empty()) {
      fail("--routing", "{} is given a routing; leave one of them out", inputs.origin);
    }
    computed.route = {inputs.hidden.rows, inputs.top_k, inputs.topk_ids, inputs.topk_weights};
    check_route(computed.route, layer.expert_count(), inputs.origin + ": topk_ids");
  }
  ForwardOptions forward_options;
  forward_options.output = options.output;
  forward_options.keep_stages = options.stages;
  forward_options.threads = global.threads;
  forward_options.routed_scaling = scaling;
  forward_options.given = options.given;
  std::optional<PreparedRun> prepared;
  Numerics numerics = reference_numerics(forward_options);
  if (options.level != NumericsLevel::reference) {
    prepared = prepare_run(layer, inputs, computed.route.top_k, options, scaling, global.threads);
    numerics = numerics_for(find_backend(options.backend), prepared->request);
  }
  Progress progress(label, global.quiet);
  forward_options.progress = [&progress](std::int64_t done, std::int64_t total) {
    progress.show(done, total, fmt::format("expert GEMM {}/{}", done, total));
  };
  const KernelLayer kernel =
      prepared ? std::move(prepared->kernel) : unprepared_layer(shard(layer, options.shard));
  computed.rows = numerics.rows;
  computed.result =
      forward(kernel, inputs.hidden, computed.route, numerics, options.level, forward_options);
  return computed;
}

std::vector<Tensor> output_tensors(const MoeLayer& layer, const ComputedCase& computed,
                                   const CaseOptions& options) {
  std::vector<Tensor> tensors;
  const Route& route = computed.route;
  if (!computed.logits.empty()) {
    tensors.push_back(make_tensor<float>("out.router_logits", DType::f32,
                                         {route.tokens, layer.expert_count()}, computed.logits));
    tensors.push_back(make_tensor<std::int32_t>("out.topk_ids", DType::i32,
                                                {route.tokens, route.top_k}, route.ids));
    tensors.push_back(make_tensor<float>("out.topk_weights", DType::f32,
                                         {route.tokens, route.top_k}, route.weights));
  }
  for (const Stage& stage : computed.result.stages) {
    Tensor tensor = stage.tensor;
    tensor.name = "out." + stage.name;
    tensors.push_back(std::move(tensor));
  }
  const Shape shape{route.tokens, layer.hidden};
  Tensor final = stored_tensor("out.final", options.output, shape, computed.result.output);
  for (const AlternativeOutput& other : computed.result.alternatives) {
    Tensor tensor =
        stored_tensor("alternative.final." + other.order, options.output, shape, other.output);
    if (tensor.bytes != final.bytes) tensors.push_back(std::move(tensor));
  }
  tensors.push_back(std::move(final));
  return tensors;
}

void check_boundable(const LayerInputs& inputs) {
  if (inputs.hidden.scales) {
    fail(inputs.hidden.name,
         "has scales; bounds are derived for plain BF16, F16 or F32 hidden "
         "states: leave --bounds out");
  }
}

std::vector<Tensor> bound_tensors(const MoeLayer& layer, const LayerInputs& inputs,
                                  const ComputedCase& computed, const CaseOptions& options,
                                  const GlobalOptions& global) {
  check_boundable(inputs);
  std::vector<float> hidden(static_cast<std::size_t>(inputs.hidden.rows * inputs.hidden.cols));
  dequantize(inputs.hidden, DequantizeOrder::once, Format::f32, hidden);
  const bounds::OutputIntervals intervals =
      bounds::output_intervals(shard(layer, options.shard), hidden, computed.route, options.output,
                               thread_count(global.threads));
  const Shape shape{intervals.tokens, intervals.hidden};
  return {stored_tensor("low.final", options.output, shape, intervals.low),
          stored_tensor("high.final", options.output, shape, intervals.high)};
}

std::string metadata_text(const nlohmann::json& params) {
  return params.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

nlohmann::json case_params(const std::filesystem::path& checkpoint, const MoeLayer& layer,
                           const LayerInputs& inputs, const CaseOptions& options,
                           std::int64_t top_k, RowOrder rows) {
  nlohmann::json params;
  params["checkpoint"] = std::filesystem::weakly_canonical(checkpoint).filename().string();
  params["model_type"] = layer.model_type;
  params["layer"] = layer.layer;
  params["backend"] = options.backend;
  params["numerics"] = name(options.level);
  if (options.level != NumericsLevel::reference) {
    const Backend& backend = find_backend(options.backend);
    params["options"] = parse_options(backend, options.backend_options).values();
    params["kernel"] = parse_kernel_options(backend, options.kernel_options).values();
    params["replay_evidence"] = name(backend.replay.evidence);
  }
  if (options.scales_in_combine) params["scales_in_combine"] = true;
  if (!options.routing.empty()) params["routing"] = options.routing;
  if (rows == RowOrder::by_expert) params["rows"] = "by_expert";
  params["weight_format"] = layer.weight_format;
  params["tokens"] = inputs.hidden.rows;
  params["hidden"] = layer.hidden;
  params["intermediate"] = layer.intermediate;
  params["experts"] = layer.expert_count();
  params["top_k"] = top_k;
  params["output"] = name(options.output);
  params["tp"] = fmt::format("{}/{}", options.shard.tp_rank, options.shard.tp_size);
  params["ep"] = fmt::format("{}/{}", options.shard.ep_rank, options.shard.ep_size);
  params["stages"] = options.stages;
  return params;
}

std::string sha256(std::span<const std::byte> bytes) {
  conform::Sha256 digest;
  digest.update(bytes);
  return digest.hex_digest();
}

}  // namespace moeref::cli
