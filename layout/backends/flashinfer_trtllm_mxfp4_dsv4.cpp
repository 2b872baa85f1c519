#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/backends/trtllm_parts.hpp"
#include "layout/recode/float_cast.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_trtllm_mxfp4_dsv4";
constexpr std::int64_t kBlock = 32;

/// Rows that the alternation of the kernel's order brings back to where they were: what the
/// preparation does when it leaves the alternation out.
Step without_reorder(std::int64_t half) {
  PermuteRuns rows{"without_reorder", {}};
  for (std::int64_t part = 0; part < 2; ++part) {
    for (std::int64_t r = 0; r < half; ++r) rows.source.push_back(static_cast<int>(2 * r + part));
  }
  return rows;
}

ScalarRecipe ones(std::string name) {
  return {std::move(name), "1", true, [](const ExpertScalars&, const LayerShape& shape) {
            return std::vector<float>(static_cast<std::size_t>(shape.experts), 1.0f);
          }};
}

ScalarRecipe limit() {
  ScalarRecipe array = trtllm::activation_array("swiglu_limit", &ExpertScalars::limit);
  array.values = [values = array.values](const ExpertScalars& scalars, const LayerShape& shape) {
    std::vector<float> limits = values(scalars, shape);
    if (limits.empty()) {
      fail(kName, "{} has no swiglu_limit, this path asserts one; choose another backend",
           shape.model);
    }
    return limits;
  };
  return array;
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, kName);
  if (!shape.gated) fail(kName, "takes gated experts only; {} is not", shape.model);
  // Only the padded loader pads; without it the shuffle of scales needs whole tiles of rows.
  const bool padded = options.is("loader", "padded");
  trtllm::Padding padding = trtllm::pad_halves(shape, padded ? 4 * kBlock : 1, 1);
  if (options.is("reorder", "off_upstream"))
    padding.w13.push_back(without_reorder(padding.intermediate));
  Recipe recipe;
  recipe.tensors = trtllm::block_scaled_tensors(padding);
  for (TensorRecipe& tensor : recipe.tensors) {
    if (tensor.from == Slot::w13_scale || tensor.from == Slot::w2_scale) {
      tensor.steps.insert(tensor.steps.begin(), recode::to_e8m0(tensor.from));
    }
  }
  recipe.scalars = {ones("output1_scale"), ones("output1_scale_gate"), ones("output2_scale"),
                    limit()};
  recipe.kernel = trtllm::reading(shape, padding, Format::e2m1, Format::e8m0, 1, kBlock);
  recipe.kernel.gate_factor = factor("output1_scale_gate");
  recipe.kernel.up_factor = factor("output1_scale");
  recipe.kernel.down_factor = factor("output2_scale");
  recipe.notes = {"alpha and beta are not passed: SiLU",
                  "the swiglu limit clamps before the activation"};
  if (options.is("reorder", "off_upstream")) {
    recipe.notes.emplace_back(
        "reorder=off_upstream: the kernel then pairs rows that do not belong together");
  }
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  Numerics numerics = trtllm::numerics(request, "flashinfer_trtllm_mxfp4_dsv4");
  numerics.activation.output = Format::bf16;  // also what the quantizer reads
  if (request.kernel.is("activations", "mxfp8")) {
    numerics.input = numerics.intermediate = by("flashinfer_mxfp8");
  }
  numerics.combine.scaling = ScalingPoint::with_shared;
  return numerics;
}

}  // namespace

/// Source: sglang@01a6f276f9ec mxfp4_flashinfer_trtllm_moe.py.
const Backend flashinfer_trtllm_mxfp4_dsv4{
    .name = kName,
    .family = "FlashInfer TRTLLM-Gen",
    .summary = "MXFP4 weights with a swiglu limit (DeepSeek-V4), SM100",
    .formats = {"mxfp4"},
    .options = {trtllm::loader_option(),
                {"reorder",
                 {"on", "off_upstream"},
                 "off_upstream: an environment switch leaves out the alternation"}},
    .rules = {{"hidden", 128, "", "the scale tiles have 128 rows and 4 columns of 32"},
              {"intermediate", 64, "loader=unpadded",
               "the scale shuffle needs whole tiles of 128 rows of w13; choose loader=padded"}},
    .loader = trtllm::loader,
    .recipe = recipe,
    .kernel_options = {trtllm::router_weights_option("f32"),
                       {"activations",
                        {"mxfp8", "bf16"},
                        "of the hidden states and between the GEMMs"}},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "closed kernels for Blackwell, not measured",
               "inferred from arguments and open helper kernels"},
};

}  // namespace moeref::backends
