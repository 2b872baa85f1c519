// aiter's torch forwards in conform: combinations that no stored case has, judged by plain loops;
// and damaged cases, which must fail.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "cli/conform/ops.hpp"
#include "cli/conform/runner.hpp"
#include "tests/cli/slow_forward.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref::conform {
namespace {

namespace fs = std::filesystem;
using moeref::testing::EditableFile;
using moeref::testing::Maker;
using moeref::testing::Operand;
using moeref::testing::SlowForward;
using moeref::testing::TempFolder;
using Json = nlohmann::json;
using Names = std::set<std::string>;

const fs::path kCases = fs::path(MOEREF_DATA_DIR) / "golden" / "layouts-amd";

const std::vector<std::string>& stored_cases() {
  static const std::vector<std::string> names{"2stage_a16w4_silu_lim2", "2stage_a16w4_situv2",
                                              "2stage_a16w4_swiglu",    "2stage_a16w4_swiglu_lim3",
                                              "stage1_a4w4_doweight",   "stage1_block128",
                                              "torch_moe_ep",           "torch_moe_gelu_nongated",
                                              "torch_moe_i8_smooth",    "torch_moe_silu"};
  return names;
}

EditableFile stored_case(const std::string& name) {
  return EditableFile(kCases / ("num_" + name + ".safetensors"));
}

CaseResult run(const EditableFile& file) {
  TempFolder folder;
  const fs::path path = folder / "case.safetensors";
  file.write(path);
  return run_case(read_golden_case(path));
}

Names failures(const CaseResult& result) {
  Names names;
  for (const Finding& finding : result.findings) {
    if (!finding.passed) names.insert(finding.output);
  }
  if (!result.error.empty()) names.insert("error");
  return names;
}

/// A new case of `op`; the outputs are compared with the bound of f32.
EditableFile new_case(const std::string& op, const Json& params) {
  EditableFile file;
  file.metadata = {{"op", op}, {"params", params.dump()}, {"compare", "{}"}};
  return file;
}

void put(EditableFile& file, const std::string& name, const Tensor& tensor) {
  if (tensor.bytes.empty()) return;
  file.tensors[name] = tensor;
  if (!name.starts_with("out.")) return;
  file.edit_json("compare", [&](Json& rules) {
    rules[name] = tensor.dtype == DType::bf16 ? Json("info") : Json{{"bound", "f32"}};
  });
}

void put_inputs(EditableFile& file, const SlowForward& slow) {
  put(file, "in.x", slow.x.code_tensor);
  put(file, "in.x_scale", slow.x.scale_tensor);
  put(file, "in.w1", slow.w1.code_tensor);
  put(file, "in.w1_scale", slow.w1.scale_tensor);
  put(file, "in.w2", slow.w2.code_tensor);
  put(file, "in.w2_scale", slow.w2.scale_tensor);
  put(file, "in.topk_ids", Maker::i32({slow.tokens, slow.top_k}, slow.ids));
  put(file, "in.topk_weight", Maker::f32({slow.tokens, slow.top_k}, slow.weights));
  if (!slow.bias1.empty())
    put(file, "in.w1_bias", Maker::f32({slow.experts, slow.rows}, slow.bias1));
  if (!slow.bias2.empty())
    put(file, "in.w2_bias", Maker::f32({slow.experts, slow.hidden}, slow.bias2));
}

/// The case with outputs of type Real. What stage 2 reads is the h that Real gave, in bf16, times
/// `h_factors` if there are any.
template <typename Real>
EditableFile case_of(const SlowForward& slow, const std::string& op, const Json& params,
                     const std::vector<float>& h_factors) {
  EditableFile file = new_case(op, params);
  put_inputs(file, slow);
  const auto tensor = [](const Shape& shape, const std::vector<Real>& values) {
    if constexpr (sizeof(Real) == 8) {
      return Maker::f64(shape, values);
    } else {
      return Maker::f32(shape, values);
    }
  };
  const std::vector<Real> h = slow.stage1<Real>();
  const Shape h_shape{slow.tokens, slow.top_k, slow.intermediate};
  const Shape y_shape{slow.tokens, slow.hidden};
  if (op == "aiter.torch_moe") {
    put(file, "out.y_f32", tensor(y_shape, slow.stage2(h)));
    return file;
  }
  put(file, "out.h_f32", tensor(h_shape, h));
  if (op == "aiter.torch_moe_stage1") return file;
  std::vector<float> rounded;
  std::vector<Real> scaled;
  for (const Real value : h) {
    rounded.push_back(decode(Format::bf16, Maker::bf16_code(static_cast<float>(value))));
    const Real factor = h_factors.empty() ? Real(1) : Real(h_factors[scaled.size()]);
    scaled.push_back(Real(rounded.back()) * factor);
  }
  put(file, "out.h_bf16", Maker::bf16(h_shape, rounded));
  put(file, "out.y_f32", tensor(y_shape, slow.stage2(scaled)));
  return file;
}

/// Both precisions must lie within the bounds.
void expect_passes(const SlowForward& slow, const std::string& op, const Json& params,
                   const std::function<void(EditableFile&)>& complete = {},
                   const std::vector<float>& h_factors = {}) {
  EditableFile narrow = case_of<float>(slow, op, params, h_factors);
  EditableFile wide = case_of<double>(slow, op, params, h_factors);
  for (EditableFile* file : {&narrow, &wide}) {
    if (complete) complete(*file);
    const CaseResult result = run(*file);
    EXPECT_EQ(result.verdict, Verdict::passed) << params << " " << describe(result);
    for (const Finding& finding : result.findings) EXPECT_LE(finding.worst_ratio, 1.0);
  }
}

/// A forward with bf16 operands, some slots without an expert.
SlowForward plain_forward(Maker& maker, bool gated, std::int64_t hidden,
                          std::int64_t intermediate) {
  SlowForward slow;
  slow.tokens = 4;
  slow.top_k = 2;
  slow.experts = 3;
  slow.hidden = hidden;
  slow.intermediate = intermediate;
  slow.rows = gated ? 2 * intermediate : intermediate;
  slow.x = maker.plain({slow.tokens, hidden});
  slow.w1 = maker.plain({slow.experts, slow.rows, hidden}, 0.3f);
  slow.w2 = maker.plain({slow.experts, hidden, intermediate}, 0.3f);
  slow.ids = {0, 2, 1, 0, -1, 2, 3, 1};
  for (int i = 0; i < 8; ++i) slow.weights.push_back(0.1f + maker.unit());
  return slow;
}

void add_biases(Maker& maker, SlowForward& slow) {
  slow.bias1 = maker.bf16_values(slow.experts * slow.rows);
  slow.bias2 = maker.bf16_values(slow.experts * slow.hidden);
}

TEST(AiterForward, TakesEveryActivationLimitAndWeightOrder) {
  Maker maker(1);
  const std::vector<std::optional<double>> limits{std::nullopt, 0.0, 0.7, 2.0, -0.5};
  for (const std::string name : {"no", "silu", "gelu", "swiglu", "situv2"}) {
    for (const auto& limit : limits) {
      SlowForward slow = plain_forward(maker, true, 24, 10);
      slow.activation.name = name;
      slow.activation.limit = limit;
      slow.weighs_first = limit.has_value() && *limit > 0.0;
      Json params{{"activation", name + (limit ? "_lim" : "")}, {"quant", "No"}};
      if (limit) params["swiglu_limit"] = *limit;
      if (slow.weighs_first) params["doweight"] = true;
      if (name == "situv2" && limit) {
        slow.activation.beta = 2.3;
        slow.activation.linear_beta = -0.7;
        params["situ_beta"] = 2.3;
        params["situ_linear_beta"] = -0.7;
      }
      if (limit != 0.0) add_biases(maker, slow);
      expect_passes(slow, "aiter.torch_moe_2stage", params);
      expect_passes(slow, "aiter.torch_moe_stage1", params);
    }
  }
}

TEST(AiterForward, TakesRowsWithoutAGate) {
  Maker maker(2);
  for (const std::string name : {"no", "silu", "gelu"}) {
    SlowForward slow = plain_forward(maker, false, 24, 10);
    slow.activation.name = name;
    add_biases(maker, slow);
    // The limit belongs to gated rows: here it does nothing.
    expect_passes(slow, "aiter.torch_moe_2stage", {{"activation", name}, {"swiglu_limit", 0.25}});
  }
}

/// w2 and stage 2 of the scaled forms, which stage 1 alone does not reach.
struct ScaledForm {
  std::string quant;
  std::int64_t hidden;
  std::int64_t intermediate;
  std::function<void(Maker&, Operand&, const Shape&)> weight;  ///< makes w1 and w2
  std::function<void(Maker&, Operand&, const Shape&)> input;   ///< makes x from [1, tokens, hidden]
};

void int8_with_rows(Maker& maker, Operand& weight, const Shape& shape) {
  weight = maker.integers(shape, -90, 90);
  maker.block_scales(weight, shape, 1, shape[2], 0.004f);
}
void fp8_with_one(Maker& maker, Operand& weight, const Shape& shape) {
  weight = maker.fp8(shape, true);
  maker.block_scales(weight, shape, shape[1], shape[2], 0.3f);
}
void fp8_in_blocks(Maker& maker, Operand& weight, const Shape& shape) {
  weight = maker.fp8(shape, false);
  maker.block_scales(weight, shape, 128, 128, 0.3f);
}
void fp4_in_groups(Maker& maker, Operand& weight, const Shape& shape) {
  weight = maker.fp4(shape);
  maker.group_scales(weight, shape[2]);
}
void fp8_in_groups(Maker& maker, Operand& weight, const Shape& shape) {
  weight = maker.fp8(shape, false);
  maker.group_scales(weight, shape[2]);
}
void int4_in_groups(Maker& maker, Operand& weight, const Shape& shape) {
  weight = maker.integers(shape, -8, 7);
  maker.transposed_scales(weight, shape, 0.05f);
}

void bf16_input(Maker& maker, Operand& x, const Shape& shape) {
  x = maker.plain({shape[1], shape[2]});
}
void int8_tokens(Maker& maker, Operand& x, const Shape& shape) {
  x = maker.integers({shape[1], shape[2]}, -100, 100);
  maker.block_scales(x, shape, 1, shape[2], 0.01f);
  x.scale_tensor.shape = {shape[1], 1};
}
void fp8_tensor(Maker& maker, Operand& x, const Shape& shape) {
  x = maker.fp8({shape[1], shape[2]}, true);
  maker.block_scales(x, shape, shape[1], shape[2], 0.5f);
  x.scale_tensor.shape = {1};
}
/// One scale for 64 elements, which the reference takes as well as one for 128.
void fp8_by_64(Maker& maker, Operand& x, const Shape& shape) {
  x = maker.fp8({shape[1], shape[2]}, false);
  maker.block_scales(x, shape, 1, 64, 0.5f);
  x.scale_tensor.shape = {shape[1], shape[2] / 64};
}
void fp4_padded(Maker& maker, Operand& x, const Shape& shape) {
  x = maker.fp4({shape[1], shape[2]});
  maker.group_scales(x, shape[2], 3);
}
void fp8_groups(Maker& maker, Operand& x, const Shape& shape) {
  x = maker.fp8({shape[1], shape[2]}, true);
  maker.group_scales(x, shape[2]);
}

const std::vector<ScaledForm>& scaled_forms() {
  static const std::vector<ScaledForm> forms{
      {"per_Token", 24, 10, int8_with_rows, int8_tokens},
      {"per_Tensor", 24, 10, fp8_with_one, fp8_tensor},
      {"per_1x128", 256, 128, fp8_in_blocks, fp8_by_64},
      {"QuantType.per_128x128", 128, 128, fp8_in_blocks, fp8_by_64},
      {"a16w4 mxfp4 1x32", 64, 32, fp4_in_groups, bf16_input},
      {"a4w4 mxfp4 1x32", 64, 96, fp4_in_groups, fp4_padded},
      {"a8w4 mxfp4 1x32", 96, 64, fp4_in_groups, fp8_groups},
      {"a16w8 mxfp8 per_1x32", 64, 32, fp8_in_groups, bf16_input},
      {"a8w8 mxfp8 per_1x32", 64, 32, fp8_in_groups, fp8_groups},
      {"a16wi4 1x32", 64, 96, int4_in_groups, bf16_input},
  };
  return forms;
}

SlowForward scaled_forward(Maker& maker, const ScaledForm& form) {
  SlowForward slow = plain_forward(maker, true, form.hidden, form.intermediate);
  form.input(maker, slow.x, {1, slow.tokens, slow.hidden});
  form.weight(maker, slow.w1, {slow.experts, slow.rows, slow.hidden});
  form.weight(maker, slow.w2, {slow.experts, slow.hidden, slow.intermediate});
  add_biases(maker, slow);
  return slow;
}

/// Scales for the stored h where the quantization needs them: their tensor, and one factor an
/// element.
Tensor intermediate_scales(Maker& maker, const SlowForward& slow, const std::string& quant,
                           std::vector<float>& factors) {
  if (quant.find("1x32") != std::string::npos) return {};
  Operand h;
  const Shape shape{slow.tokens, slow.top_k, slow.intermediate};
  const bool blocks = quant.find("128") != std::string::npos;
  maker.block_scales(h, shape, quant == "per_Tensor" ? slow.top_k : 1,
                     blocks ? 128 : slow.intermediate, 0.5f);
  factors = h.factors;
  return h.scale_tensor;
}

TEST(AiterForward, TakesEveryQuantization) {
  Maker maker(3);
  for (const ScaledForm& form : scaled_forms()) {
    for (const std::string name : {"silu", "swiglu"}) {
      SlowForward slow = scaled_forward(maker, form);
      slow.activation.name = name;
      const Json params{{"activation", name}, {"quant", form.quant}};
      expect_passes(slow, "aiter.torch_moe_stage1", params);
      std::vector<float> factors;
      const Tensor scales = intermediate_scales(maker, slow, form.quant, factors);
      expect_passes(
          slow, "aiter.torch_moe_2stage", params,
          [&](EditableFile& file) { put(file, "in.h_scale", scales); }, factors);
    }
  }
}

TEST(AiterForward, TakesTheSizesOfW2Alone) {
  Maker maker(4);
  const SlowForward slow = scaled_forward(maker, scaled_forms()[4]);
  expect_passes(
      slow, "aiter.torch_moe_stage1", {{"quant", "a16w4 mxfp4 1x32"}}, [](EditableFile& file) {
        std::vector<std::int64_t> sizes(file["in.w2"].shape);
        file.tensors.erase("in.w2");
        file.tensors["in.w2_shape"] =
            make_tensor<std::int64_t>("", DType::i64, {3}, std::span<const std::int64_t>(sizes));
      });
}

TEST(AiterForward, IgnoresScalesOfTheInputBesideInt4Weights) {
  Maker maker(5);
  const SlowForward slow = scaled_forward(maker, scaled_forms().back());
  expect_passes(
      slow, "aiter.torch_moe_stage1", {{"quant", "a16wi4 1x32"}}, [&](EditableFile& file) {
        put(file, "in.x_scale", Maker::bytes(DType::u8, {4, 2}, std::vector<std::uint8_t>(8, 130)));
      });
}

TEST(AiterForward, ScalesAndSmoothsTheSingleForward) {
  Maker maker(6);
  for (const bool gated : {true, false}) {
    for (const std::string name : {"no", "silu", "gelu"}) {
      SlowForward slow = plain_forward(maker, gated, 20, 14);
      slow.activation.name = name;
      slow.w1 = maker.integers({3, slow.rows, 20}, -120, 120);
      maker.block_scales(slow.w1, {3, slow.rows, 20}, 1, 20, 0.005f);
      slow.w2 = maker.integers({3, 20, 14}, -120, 120);
      maker.block_scales(slow.w2, {3, 20, 14}, 1, 14, 0.005f);
      slow.smooth1 = maker.scales(3 * 20, 1.0f);
      slow.smooth2 = maker.scales(3 * 14, 1.0f);
      expect_passes(slow, "aiter.torch_moe", {{"activation", name}, {"gated", gated}},
                    [&](EditableFile& file) {
                      file.tensors["in.fc1_scale"] = file["in.w1_scale"];
                      file.tensors["in.fc2_scale"] = file["in.w2_scale"];
                      put(file, "in.fc1_smooth_scale", Maker::f32({3, 1, 20}, slow.smooth1));
                      put(file, "in.fc2_smooth_scale", Maker::f32({3, 1, 14}, slow.smooth2));
                    });
      slow.smooth1.clear();  // the second may stand alone
      slow.w1.factors.clear();
      slow.w2.factors.clear();  // and fc2_scale without fc1_scale does nothing
      expect_passes(slow, "aiter.torch_moe", {{"activation", name}}, [&](EditableFile& file) {
        file.tensors["in.fc2_scale"] = file["in.w2_scale"];
        put(file, "in.fc2_smooth_scale", Maker::f32({3, 1, 14}, slow.smooth2));
      });
    }
  }
}

TEST(AiterForward, MapsGlobalExpertsToLocalOnes) {
  Maker maker(7);
  SlowForward slow = plain_forward(maker, true, 20, 14);
  // Global experts 1, 2 and 5 live here; -1 is the last, 5.
  slow.ids = {0, 2, 1, 0, -1, 2, 2, 1};
  const std::vector<std::int32_t> global{1, -1, 2, 1, 4, 5, 5, 2};
  expect_passes(slow, "aiter.torch_moe", {{"ep", true}}, [&](EditableFile& file) {
    put(file, "in.topk_ids", Maker::i32({4, 2}, global));
    put(file, "in.expert_mask", Maker::i32({6}, {0, 1, 1, 0, 0, 1}));
  });
  expect_passes(slow, "aiter.torch_moe", {{"ep", true}}, [&](EditableFile& file) {
    put(file, "in.topk_ids", Maker::i32({4, 2}, global));
    put(file, "in.expert_mask", Maker::bytes(DType::boolean, {6}, {0, 1, 1, 0, 0, 1}));
  });
}

TEST(AiterForward, RoundsTheStoredResultsToBf16) {
  EditableFile file = stored_case("torch_moe_silu");
  file.edit_json("compare", [](Json& rules) { rules.erase("out.y_bf16"); });
  EXPECT_EQ(run(file).verdict, Verdict::passed);
  file["out.y_bf16"].bytes[6] ^= std::byte{1};
  EXPECT_EQ(failures(run(file)), Names{"out.y_bf16"});
}

/// What moeref has for an output of a stored case.
bounds::BoundedOutput computed_output(const EditableFile& file, const std::string& output) {
  TempFolder folder;
  const fs::path path = folder / "case.safetensors";
  file.write(path);
  const GoldenCase golden = read_golden_case(path);
  const OpResult result = find_operation(golden.op)(golden);
  return std::get<bounds::BoundedOutput>(result.outputs.find(output)->second);
}

TEST(AiterForward, FindsAnElementBeyondItsBoundAndPassesOneWithin) {
  for (const std::string& name : stored_cases()) {
    EditableFile file = stored_case(name);
    for (const std::string output : {"h_f32", "y_f32"}) {
      const std::string tensor = "out." + output;
      if (!file.tensors.contains(tensor)) continue;
      const bounds::BoundedOutput computed = computed_output(file, output);
      const Tensor stored = file[tensor];
      for (const std::size_t index : {std::size_t{0}, computed.value.size() / 2}) {
        for (const double step : {-1.0001, -0.9999, 0.9999, 1.0001}) {
          std::vector<double> values = computed.value;
          values[index] += step * computed.bound[index];
          file.tensors[tensor] = Maker::f64(stored.shape, values);
          const Names expected = std::fabs(step) > 1.0 ? Names{tensor} : Names{};
          EXPECT_EQ(failures(run(file)), expected) << name << " " << output << " " << step;
        }
      }
      file.tensors[tensor] = stored;
    }
  }
}

TEST(AiterForward, HasBoundsThatTheOriginalsComeNear) {
  for (const std::string& name : stored_cases()) {
    for (const Finding& finding : run(stored_case(name)).findings) {
      EXPECT_LT(finding.worst_ratio, 1.0) << name;
      EXPECT_GT(finding.worst_ratio, 0x1p-11) << name << " " << finding.output;
    }
  }
}

struct Damage {
  std::string name;
  std::function<void(EditableFile&)> edit;
  Names expected;
};

void edit_params(EditableFile& file, const std::string& name, const Json& value) {
  file.edit_json("params", [&](Json& params) { params[name] = value; });
}

TEST(AiterForward, FailsForAnotherFormula) {
  const Names h{"out.h_f32"};
  const Names y{"out.y_f32"};
  const std::vector<Damage> damages{
      {"2stage_a16w4_silu_lim2", [](auto& file) { edit_params(file, "swiglu_limit", 2.5); }, h},
      {"2stage_a16w4_silu_lim2", [](auto& file) { edit_params(file, "swiglu_limit", nullptr); }, h},
      {"2stage_a16w4_silu_lim2", [](auto& file) { edit_params(file, "activation", "gelu"); }, h},
      {"2stage_a16w4_situv2", [](auto& file) { edit_params(file, "situ_beta", 4.001); }, h},
      {"2stage_a16w4_situv2", [](auto& file) { edit_params(file, "situ_linear_beta", 25.01); }, h},
      {"2stage_a16w4_swiglu", [](auto& file) { file.tensors.erase("in.w1_bias"); }, h},
      {"2stage_a16w4_swiglu", [](auto& file) { file.tensors.erase("in.w2_bias"); }, y},
      {"2stage_a16w4_swiglu",
       [](auto& file) { edit_params(file, "doweight", true); },
       {"out.h_f32", "out.y_f32"}},
      {"2stage_a16w4_swiglu", [](auto& file) { file["out.h_bf16"].bytes[0] ^= std::byte{1}; }, y},
      {"2stage_a16w4_swiglu_lim3", [](auto& file) { edit_params(file, "swiglu_limit", 3.001); }, h},
      {"2stage_a16w4_swiglu_lim3", [](auto& file) { file["in.w2_scale"].bytes[0] ^= std::byte{1}; },
       y},
      {"stage1_a4w4_doweight", [](auto& file) { edit_params(file, "doweight", false); }, h},
      {"stage1_a4w4_doweight", [](auto& file) { file["in.x_scale"].bytes[3] ^= std::byte{1}; }, h},
      {"stage1_block128", [](auto& file) { file.template set<float>("in.w1_scale", 1, 0.02f); }, h},
      {"stage1_block128", [](auto& file) { file["in.x"].bytes[300] ^= std::byte{1}; }, h},
      {"torch_moe_ep", [](auto& file) { file.template set<std::int32_t>("in.expert_mask", 0, 1); },
       y},
      {"torch_moe_gelu_nongated", [](auto& file) { edit_params(file, "activation", "silu"); }, y},
      {"torch_moe_i8_smooth",
       [](auto& file) {
         file.tensors.erase("in.fc1_scale");
         file.tensors.erase("in.fc2_scale");
       },
       y},
      {"torch_moe_i8_smooth",
       [](auto& file) {
         file.tensors.erase("in.fc1_smooth_scale");
         file.tensors.erase("in.fc2_smooth_scale");
       },
       y},
      {"torch_moe_silu",
       [](auto& file) {
         std::vector<std::byte>& w1 = file["in.w1"].bytes;
         std::rotate(w1.begin(), w1.begin() + 96 * 112 * 2, w1.begin() + 192 * 112 * 2);
       },
       y},
  };
  for (std::size_t i = 0; i < damages.size(); ++i) {
    EditableFile file = stored_case(damages[i].name);
    damages[i].edit(file);
    EXPECT_EQ(failures(run(file)), damages[i].expected) << damages[i].name << " " << i;
  }
}

/// Bad input ends in one line that names the tensor or parameter.
TEST(AiterForward, SaysWhatIsWrongWithACase) {
  const auto reshape = [](const std::string& tensor, const Shape& shape) {
    return [=](EditableFile& file) {
      Tensor& changed = file[tensor];
      const auto wanted =
          static_cast<std::size_t>(element_count(shape)) *
          (changed.bytes.size() / static_cast<std::size_t>(element_count(changed.shape)));
      changed.shape = shape;
      changed.bytes.resize(wanted);
    };
  };
  const auto remove = [](const std::string& tensor) {
    return [=](EditableFile& file) {
      file.tensors.erase(tensor);
      file.edit_json("compare", [&](Json& rules) { rules.erase(tensor); });
    };
  };
  const auto retype = [](const std::string& tensor, DType dtype) {
    return [=](EditableFile& file) { file[tensor].dtype = dtype; };
  };
  const auto param = [](const std::string& name, const Json& value) {
    return [=](EditableFile& file) { edit_params(file, name, value); };
  };
  struct Wrong {
    std::string name;
    std::function<void(EditableFile&)> edit;
    std::string needed;  ///< in the message
  };
  const std::vector<Wrong> all{
      {"2stage_a16w4_swiglu", remove("in.w1_scale"), "in.w1_scale: is missing"},
      {"2stage_a16w4_swiglu", remove("out.h_bf16"), "out.h_bf16: is missing"},
      {"2stage_a16w4_swiglu", reshape("out.h_bf16", {5, 2, 63}), "out.h_bf16"},
      {"2stage_a16w4_swiglu", reshape("out.h_bf16", {4, 2, 64}), "out.h_bf16"},
      {"2stage_a16w4_swiglu", reshape("out.h_bf16", {}), "out.h_bf16"},
      {"torch_moe_ep", retype("in.expert_mask", DType::f32), "in.expert_mask"},
      {"2stage_a16w4_swiglu", reshape("in.w1", {4, 128, 60}), "in.w1"},
      {"2stage_a16w4_swiglu", reshape("in.w1_scale", {4, 128, 3}), "in.w1_scale"},
      {"2stage_a16w4_swiglu", reshape("in.w2_scale", {4, 128, 3}), "in.w2_scale"},
      {"2stage_a16w4_swiglu", reshape("in.w1_bias", {4, 127}), "in.w1_bias"},
      {"2stage_a16w4_swiglu", reshape("in.w1_bias", {3, 128}), "in.w1_bias"},
      {"2stage_a16w4_swiglu", reshape("in.w2_bias", {4, 2}), "in.w2_bias"},
      {"2stage_a16w4_swiglu", retype("in.w1_bias", DType::u32), "in.w1_bias: is U32"},
      {"2stage_a16w4_swiglu", retype("in.topk_ids", DType::f32), "topk_ids"},
      {"2stage_a16w4_swiglu", reshape("in.topk_ids", {4, 2}), "in.topk_ids"},
      {"2stage_a16w4_swiglu", reshape("in.topk_weight", {5, 1}), "in.topk_weight"},
      {"2stage_a16w4_swiglu", reshape("in.x", {5, 64}), "in.x"},
      {"2stage_a16w4_swiglu", reshape("in.w2", {3, 128, 32}), "in.w2"},
      {"2stage_a16w4_swiglu", reshape("in.w2", {4, 128, 0}), "in.w2"},
      {"2stage_a16w4_swiglu", param("activation", "relu2"), "params.activation"},
      {"2stage_a16w4_swiglu", param("activation", 3), "params.activation"},
      {"2stage_a16w4_swiglu", param("quant", "per_256x128"), "params.quant"},
      {"2stage_a16w4_swiglu", param("quant", "per_Token"), "in.x_scale"},
      {"2stage_a16w4_swiglu", param("swiglu_limit", "2"), "params.swiglu_limit"},
      {"2stage_a16w4_swiglu", param("swiglu_limit", 1e39), "params.swiglu_limit"},
      {"2stage_a16w4_swiglu", param("doweight", 1), "params.doweight"},
      {"2stage_a16w4_situv2", param("situ_beta", 0), "params.situ_beta"},
      {"stage1_a4w4_doweight", remove("in.w2"), "in.w2"},
      {"stage1_a4w4_doweight", retype("in.x_scale", DType::boolean), "in.x_scale"},
      {"stage1_a4w4_doweight", reshape("in.x_scale", {4, 4}), "in.x_scale"},
      {"stage1_block128", reshape("in.w2_shape", {2}), "in.w2_shape"},
      {"stage1_block128",
       [](EditableFile& file) { file.set<std::int64_t>("in.w2_shape", 2, std::int64_t{1} << 60); },
       "in.w2_shape"},
      {"stage1_block128", [](EditableFile& file) { file.set<std::int64_t>("in.w2_shape", 1, 0); },
       "in.w2_shape"},
      {"stage1_block128", reshape("in.w1_scale", {2, 3}), "in.w1_scale"},
      {"stage1_block128", reshape("in.x_scale", {7}), "in.x_scale"},
      {"stage1_block128", param("activation", "swiglu_"), "params.activation"},
      {"torch_moe_ep", remove("in.expert_mask"), "in.expert_mask"},
      {"torch_moe_ep", reshape("in.expert_mask", {2}), "in.topk_ids"},
      {"torch_moe_gelu_nongated", param("gated", true), "params.gated"},
      {"torch_moe_gelu_nongated", param("activation", "swiglu"), "params.activation"},
      {"torch_moe_gelu_nongated", reshape("in.w1", {4, 95, 112}), "in.w1"},
      {"torch_moe_i8_smooth", remove("in.fc2_scale"), "in.fc2_scale"},
      {"torch_moe_i8_smooth", remove("in.fc2_smooth_scale"), "in.fc2_smooth_scale"},
      {"torch_moe_i8_smooth", reshape("in.fc1_scale", {4, 191, 1}), "in.fc1_scale"},
      {"torch_moe_i8_smooth", reshape("in.fc2_smooth_scale", {4, 1, 95}), "in.fc2_smooth_scale"},
      {"torch_moe_silu", retype("in.w1", DType::boolean), "in.w1"},
  };
  for (const Wrong& wrong : all) {
    EditableFile file = stored_case(wrong.name);
    wrong.edit(file);
    for (auto& [name, tensor] : file.tensors) {  // a retyped tensor keeps its bytes
      const auto elements =
          static_cast<std::int64_t>(tensor.bytes.size()) * 8 / info(tensor.dtype).bits;
      if (elements != element_count(tensor.shape)) tensor.shape = {elements};
    }
    const CaseResult result = run(file);
    EXPECT_EQ(result.verdict, Verdict::failed) << wrong.needed;
    EXPECT_NE(result.error.find(wrong.needed), std::string::npos)
        << wrong.needed << " not in: " << result.error;
    EXPECT_EQ(result.error.find("internal fault"), std::string::npos) << result.error;
    EXPECT_EQ(result.error.find('\n'), std::string::npos);
  }
}

TEST(AiterForward, MissesNoTensorInSilence) {
  for (const std::string& name : stored_cases()) {
    const EditableFile whole = stored_case(name);
    for (const auto& [tensor, content] : whole.tensors) {
      if (!tensor.starts_with("in.")) continue;
      if (tensor == "in.w2" && name.starts_with("stage1")) continue;
      EditableFile file = whole;
      file.tensors.erase(tensor);
      EXPECT_EQ(run(file).verdict, Verdict::failed) << name << " " << tensor;
    }
  }
}

}  // namespace
}  // namespace moeref::conform
