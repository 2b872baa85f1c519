#include "cli/moe_case.hpp"

#include <fmt/format.h>

#include "cli/conform/sha256.hpp"
#include "cli/progress.hpp"
#include "engine/bounds/block.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/parallel.hpp"

namespace moeref::cli {

ComputedCase compute_case(const MoeLayer& layer, const LayerInputs& inputs,
                          const CaseOptions& options, const GlobalOptions& global,
                          const std::string& label) {
  ComputedCase computed;
  if (inputs.topk_ids.empty()) {
    computed.route =
        route_tokens(layer, inputs.hidden, inputs.input_ids, global.threads, &computed.logits);
  } else {
    computed.route = {inputs.hidden.rows, inputs.top_k, inputs.topk_ids, inputs.topk_weights};
    check_route(computed.route, layer.expert_count(), inputs.origin + ": topk_ids");
  }
  Progress progress(label, global.quiet);
  ForwardOptions forward_options;
  forward_options.output = options.output;
  forward_options.keep_stages = options.stages;
  forward_options.threads = global.threads;
  forward_options.progress = [&progress](std::int64_t done, std::int64_t total) {
    progress.show(done, total, fmt::format("expert {}/{}", done, total));
  };
  computed.result =
      forward(shard(layer, options.shard), inputs.hidden, computed.route, forward_options);
  return computed;
}

Tensor output_tensor(std::string name, Format format, Shape shape,
                     const std::vector<float>& values) {
  if (format == Format::f32) {
    return make_tensor<float>(std::move(name), DType::f32, std::move(shape), values);
  }
  std::vector<std::uint16_t> codes;
  codes.reserve(values.size());
  for (const float value : values) {
    codes.push_back(static_cast<std::uint16_t>(encode(format, value, EncodePolicy::eigen)));
  }
  return make_tensor<std::uint16_t>(
      std::move(name), format == Format::bf16 ? DType::bf16 : DType::f16, std::move(shape), codes);
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
  tensors.push_back(output_tensor("out.final", options.output, {route.tokens, layer.hidden},
                                  computed.result.output));
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
  return {output_tensor("low.final", options.output, shape, intervals.low),
          output_tensor("high.final", options.output, shape, intervals.high)};
}

std::string metadata_text(const nlohmann::json& params) {
  return params.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

nlohmann::json case_params(const std::filesystem::path& checkpoint, const MoeLayer& layer,
                           const LayerInputs& inputs, const CaseOptions& options,
                           std::int64_t top_k) {
  nlohmann::json params;
  params["checkpoint"] = std::filesystem::weakly_canonical(checkpoint).filename().string();
  params["model_type"] = layer.model_type;
  params["layer"] = layer.layer;
  params["backend"] = options.backend;
  params["numerics"] = "reference";
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
