#include "engine/moe.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>

#include "engine/operand.hpp"
#include "io/checkpoint.hpp"
#include "io/layer_inputs.hpp"
#include "io/synth/geometry.hpp"
#include "io/synth/plan.hpp"
#include "io/synth/write.hpp"
#include "layout/shard.hpp"
#include "quant/error.hpp"
#include "tests/io/temp_folder.hpp"
#include "tests/judge/exact_dot.hpp"
#include "tests/judge/routing_judge.hpp"
#include "tests/judge/slow_layer.hpp"
#include "tests/support/error_of.hpp"
#include "tests/support/random_matrix.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using testing::OwnedMatrix;
using testing::random_matrix;
using testing::Scheme;
using testing::Spread;

const fs::path kModels = fs::path(MOEREF_DATA_DIR) / "golden" / "models";

void expect_same_bits(const std::vector<float>& actual, const std::vector<float>& expected,
                      const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::memcmp(&actual[i], &expected[i], sizeof(float)), 0)
        << what << " index " << i << ": " << actual[i] << " instead of " << expected[i];
  }
}

/// Every stage and the output, bit for bit.
void expect_layer_exact(const MoeLayer& layer, const ScaledMatrix& hidden, const Route& route,
                        ForwardOptions options, const std::string& what) {
  options.keep_stages = true;
  const ForwardResult result = forward(layer, hidden, route, options);
  const auto expected = judge::slow_forward(layer, hidden, route, options);
  ASSERT_EQ(result.stages.size() + 1, expected.size()) << what;
  for (const Stage& stage : result.stages) {
    ASSERT_TRUE(expected.count(stage.name)) << stage.name;
    expect_same_bits(stage.values(), expected.at(stage.name), what + " " + stage.name);
  }
  expect_same_bits(result.output, expected.at("final"), what + " final");
}

void expect_routing_exact(const MoeLayer& layer, const LayerInputs& inputs, const Route& route,
                          const std::vector<float>& logits, const std::string& what) {
  expect_same_bits(logits, judge::slow_logits(layer, inputs.hidden), what + " logits");
  const auto experts = static_cast<std::size_t>(layer.expert_count());
  std::vector<float> bias;
  for (std::int64_t e = 0; e < layer.selection_bias.cols; ++e) {
    bias.push_back(
        load<float>(layer.selection_bias.codes.data + 4 * (layer.selection_bias.codes.origin + e)));
  }
  for (std::int64_t token = 0; token < route.tokens; ++token) {
    const std::span<const float> row(logits.data() + static_cast<std::size_t>(token) * experts,
                                     experts);
    const auto first = static_cast<std::ptrdiff_t>(token * route.top_k);
    const std::vector<std::int32_t> ids(route.ids.begin() + first,
                                        route.ids.begin() + first + route.top_k);
    const std::vector<float> weights(route.weights.begin() + first,
                                     route.weights.begin() + first + route.top_k);
    if (!layer.expert_table.bytes.empty()) {
      for (std::int64_t slot = 0; slot < route.top_k; ++slot) {
        EXPECT_EQ(ids[static_cast<std::size_t>(slot)],
                  layer.expert_table.at<std::int64_t>(
                      inputs.input_ids[static_cast<std::size_t>(token)] * route.top_k + slot));
      }
      expect_same_bits(weights, judge::weigh_token(layer.routing, row, ids), what + " weights");
      continue;
    }
    const judge::TokenRoute expected = judge::route_token(layer.routing, row, bias);
    EXPECT_EQ(ids, expected.ids) << what << " token " << token;
    expect_same_bits(weights, expected.weights, what + " weights");
  }
}

LayerInputs inputs_for(const MoeLayer& layer, std::int64_t tokens, std::uint64_t seed) {
  const std::int64_t vocabulary =
      layer.expert_table.bytes.empty() ? 0 : layer.expert_table.shape.at(0);
  return random_layer_inputs(tokens, layer.hidden, seed, vocabulary);
}

std::vector<fs::path> bundled_checkpoints() {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(kModels)) {
    if (entry.is_directory()) folders.push_back(entry.path());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

class BundledCheckpoint : public ::testing::TestWithParam<fs::path> {};

TEST_P(BundledCheckpoint, EqualsTheJudgeInEveryStageAndBit) {
  const Checkpoint checkpoint = Checkpoint::open(GetParam());
  for (const std::int64_t index : checkpoint.moe_layers()) {
    const MoeLayer layer = checkpoint.load_layer(index);
    const LayerInputs inputs = inputs_for(layer, 5, 100);
    std::vector<float> logits;
    const Route route = route_tokens(layer, inputs.hidden, inputs.input_ids, 1, &logits);
    const std::string what = layer.model_type + " layer " + std::to_string(index);
    expect_routing_exact(layer, inputs, route, logits, what);
    expect_layer_exact(layer, inputs.hidden, route, {}, what);
  }
}

TEST_P(BundledCheckpoint, EqualsTheJudgeOnEveryRank) {
  const Checkpoint checkpoint = Checkpoint::open(GetParam());
  const MoeLayer layer = checkpoint.load_layer(checkpoint.moe_layers().front());
  const LayerInputs inputs = inputs_for(layer, 2, 7);
  const Route route = route_tokens(layer, inputs.hidden, inputs.input_ids, 1);
  ForwardOptions options;
  options.output = Format::f32;
  for (const Shard& rank : {Shard{0, 2, 0, 1}, Shard{1, 2, 0, 1}, Shard{0, 1, 0, 4},
                            Shard{0, 1, 3, 4}, Shard{1, 2, 1, 2}}) {
    expect_layer_exact(shard(layer, rank), inputs.hidden, route, options, "rank");
  }
}

std::string checkpoint_name(const ::testing::TestParamInfo<fs::path>& folder) {
  return folder.param.filename().string();
}

INSTANTIATE_TEST_SUITE_P(Models, BundledCheckpoint, ::testing::ValuesIn(bundled_checkpoints()),
                         checkpoint_name);

class SyntheticModel : public ::testing::TestWithParam<std::string> {};

TEST_P(SyntheticModel, EqualsTheJudgeInEveryStageAndBit) {
  const testing::TempFolder folder;
  SynthOptions options;
  options.model = GetParam();
  write_checkpoint(plan_checkpoint(options), folder / "model", {});
  const Checkpoint checkpoint = Checkpoint::open(folder / "model");
  const MoeLayer layer = checkpoint.load_layer(checkpoint.moe_layers().front());
  const LayerInputs inputs = inputs_for(layer, 2, 3);
  std::vector<float> logits;
  const Route route = route_tokens(layer, inputs.hidden, inputs.input_ids, 1, &logits);
  expect_routing_exact(layer, inputs, route, logits, GetParam());
  expect_layer_exact(layer, inputs.hidden, route, {}, GetParam());
}

std::vector<std::string> synthetic_names() {
  std::vector<std::string> names;
  for (const SynthModel& model : synth_models()) names.emplace_back(model.name);
  return names;
}

std::string synthetic_name(const ::testing::TestParamInfo<std::string>& model) {
  std::string name = model.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Models, SyntheticModel, ::testing::ValuesIn(synthetic_names()),
                         synthetic_name);

MoeLayer gpt_oss() {
  return Checkpoint::open(kModels / "gpt_oss_mxfp4_h128_i192_e8").load_layer(0);
}

TEST(Forward, TakesEveryActivationTypeOnItsInput) {
  const MoeLayer layer = gpt_oss();
  std::mt19937_64 random(3);
  for (const Scheme scheme : testing::kAllSchemes) {
    const OwnedMatrix hidden = random_matrix(scheme, Spread::tame, 2, layer.hidden, random);
    const Route route{2, 2, {1, 5, 5, 0}, {0.75f, 0.1f, 1.5f, -0.3f}};
    expect_layer_exact(layer, hidden.matrix, route, {}, testing::name(scheme));
  }
}

TEST(Forward, RoundsStraightToEveryOutputType) {
  const MoeLayer layer = gpt_oss();
  const LayerInputs inputs = inputs_for(layer, 3, 5);
  const Route route = route_tokens(layer, inputs.hidden, {}, 1);
  for (const Format output : {Format::f32, Format::bf16, Format::f16}) {
    ForwardOptions options;
    options.output = output;
    options.routed_scaling = 2.5f;
    expect_layer_exact(layer, inputs.hidden, route, options, "output");
  }
}

TEST(Forward, PutsTheRouterWeightOnTheInputIfAsked) {
  const MoeLayer layer = gpt_oss();
  const LayerInputs inputs = inputs_for(layer, 2, 6);
  ForwardOptions options;
  options.weight_point = WeightPoint::input;
  expect_layer_exact(layer, inputs.hidden, {2, 1, {3, 4}, {0.3f, 0.9f}}, options, "input");
}

TEST(Forward, TakesParametersPerExpert) {
  MoeLayer layer = gpt_oss();
  for (int e = 0; e < 8; ++e) {
    layer.activation.alphas.push_back(0.5f + static_cast<float>(e) * 0.3f);
    layer.activation.betas.push_back(static_cast<float>(e) * 0.25f);
    layer.activation.limits.push_back(0.5f + static_cast<float>(e));
  }
  const LayerInputs inputs = inputs_for(layer, 2, 9);
  const Route route{2, 2, {0, 7, 3, 6}, {0.5f, 0.5f, 0.25f, 0.75f}};
  expect_layer_exact(layer, inputs.hidden, route, {}, "per expert");
  const MoeLayer upper = shard(layer, {0, 1, 1, 2});
  expect_layer_exact(upper, inputs.hidden, route, {}, "per expert, rank");
  // The rank's slots are the whole's: its parameters are those of its own experts.
  ForwardOptions options;
  options.keep_stages = true;
  const ForwardResult whole = forward(layer, inputs.hidden, route, options);
  const ForwardResult rank = forward(upper, inputs.hidden, route, options);
  const auto width = static_cast<std::size_t>(layer.hidden);
  for (std::size_t slot = 0; slot < route.ids.size(); ++slot) {
    for (std::size_t col = 0; col < width; ++col) {
      const float expected =
          route.ids[slot] >= 4 ? whole.stages[2].values()[slot * width + col] : 0.0f;
      EXPECT_EQ(rank.stages[2].values()[slot * width + col], expected);
    }
  }
}

TEST(Forward, TakesRanksOfALayerWithoutRouter) {
  MoeLayer layer = gpt_oss();
  layer.router = {};
  layer.router_bias = {};
  const LayerInputs inputs = inputs_for(layer, 1, 9);
  const Route route{1, 2, {1, 5}, {0.5f, 0.5f}};
  expect_layer_exact(shard(layer, {0, 1, 1, 2}), inputs.hidden, route, {}, "rank");
}

TEST(Forward, GivesZeroWhereNoSlotHasAnExpert) {
  const MoeLayer layer = gpt_oss();
  const LayerInputs inputs = inputs_for(layer, 2, 9);
  const Route route{2, 2, {-1, -1, -1, 2}, {0.5f, 0.5f, 0.5f, 0.5f}};
  const ForwardResult result = forward(layer, inputs.hidden, route, {});
  for (std::int64_t col = 0; col < layer.hidden; ++col) {
    EXPECT_EQ(std::signbit(result.output[static_cast<std::size_t>(col)]), false);
    EXPECT_EQ(result.output[static_cast<std::size_t>(col)], 0.0f);
  }
  expect_layer_exact(layer, inputs.hidden, route, {}, "empty slots");
}

TEST(Forward, DoesNotDependOnThreadsBatchOrTokenOrder) {
  for (const fs::path& folder : bundled_checkpoints()) {
    const Checkpoint checkpoint = Checkpoint::open(folder);
    const MoeLayer layer = checkpoint.load_layer(checkpoint.moe_layers().back());
    const std::int64_t tokens = 70;  // more than one batch of rows
    const LayerInputs inputs = inputs_for(layer, tokens, 12);
    const Route route = route_tokens(layer, inputs.hidden, inputs.input_ids, 1);
    ForwardOptions options;
    options.threads = 1;
    const std::vector<float> whole = forward(layer, inputs.hidden, route, options).output;
    for (const int threads : {2, 7}) {
      options.threads = threads;
      expect_same_bits(forward(layer, inputs.hidden, route, options).output, whole, "threads");
    }
    const auto width = static_cast<std::size_t>(layer.hidden);
    for (const std::int64_t token : {std::int64_t{0}, std::int64_t{41}, tokens - 1}) {
      const auto at = static_cast<std::ptrdiff_t>(token * route.top_k);
      const Route one{1,
                      route.top_k,
                      {route.ids.begin() + at, route.ids.begin() + at + route.top_k},
                      {route.weights.begin() + at, route.weights.begin() + at + route.top_k}};
      const std::vector<float> alone =
          forward(layer, row_slice(inputs.hidden, token, 1), one, options).output;
      const auto row =
          whole.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(token) * width);
      expect_same_bits(alone, {row, row + static_cast<std::ptrdiff_t>(width)}, "alone");
    }
  }
}

TEST(Forward, SumsOverRanksKeptExactEqualTheWhole) {
  const MoeLayer layer = gpt_oss();
  const LayerInputs inputs = inputs_for(layer, 2, 21);
  const Route route = route_tokens(layer, inputs.hidden, {}, 1);
  ForwardOptions options;
  options.keep_stages = true;
  options.output = Format::f32;
  const ForwardResult whole = forward(layer, inputs.hidden, route, options);
  // TP: act of the ranks side by side is the act of the whole, and the parts of down tile down.
  const ForwardResult left = forward(shard(layer, {0, 2, 0, 1}), inputs.hidden, route, options);
  const ForwardResult right = forward(shard(layer, {1, 2, 0, 1}), inputs.hidden, route, options);
  const auto half = static_cast<std::size_t>(layer.intermediate / 2);
  const std::vector<float>& act = whole.stages[1].values();
  ASSERT_EQ(whole.stages[1].name, "act");
  for (std::size_t row = 0; row < act.size() / (2 * half); ++row) {
    for (std::size_t i = 0; i < half; ++i) {
      EXPECT_EQ(act[row * 2 * half + i], left.stages[1].values()[row * half + i]);
      EXPECT_EQ(act[row * 2 * half + half + i], right.stages[1].values()[row * half + i]);
    }
  }
  const auto slot_rows = [](const ForwardResult& result) { return result.stages[1].values(); };
  for (std::size_t slot = 0; slot < route.ids.size(); ++slot) {
    const Expert& expert = layer.experts[static_cast<std::size_t>(route.ids[slot])];
    for (std::int64_t n = 0; n < layer.hidden; ++n) {
      judge::ExactSum sum;
      for (std::int64_t rank = 0; rank < 2; ++rank) {
        const MoeLayer part = shard(layer, {rank, 2, 0, 1});
        const Expert& mine = part.experts[static_cast<std::size_t>(route.ids[slot])];
        const std::vector<float> rows = slot_rows(rank == 0 ? left : right);
        const float* row = rows.data() + slot * half;
        sum.add_dot(f32_matrix("act", row, 1, layer.intermediate / 2), 0, mine.down, n);
        EXPECT_EQ(static_cast<bool>(mine.down_bias), rank == 0);
      }
      const std::uint16_t bias = load<std::uint16_t>(expert.down_bias.codes.data +
                                                     2 * (expert.down_bias.codes.origin + n));
      sum.add(judge::decode_by_formula(Format::bf16, bias));
      EXPECT_EQ(sum.round(Format::f32),
                whole.stages[2].values()[slot * static_cast<std::size_t>(layer.hidden) +
                                         static_cast<std::size_t>(n)]);
    }
  }
}

TEST(Forward, SumsOverExpertRanksKeptExactEqualTheWhole) {
  const Checkpoint checkpoint = Checkpoint::open(kModels / "deepseek_v3_fp8_h256_i128_e8");
  const MoeLayer layer = checkpoint.load_layer(1);
  const LayerInputs inputs = inputs_for(layer, 3, 22);
  const Route route = route_tokens(layer, inputs.hidden, {}, 1);
  ForwardOptions options;
  options.keep_stages = true;
  const ForwardResult whole = forward(layer, inputs.hidden, route, options);
  const auto width = static_cast<std::size_t>(layer.hidden);
  std::vector<judge::ExactSum> sums(whole.output.size());
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    const MoeLayer part = shard(layer, {0, 1, rank, 4});
    EXPECT_EQ(part.shared.has_value(), rank == 0);
    const ForwardResult result = forward(part, inputs.hidden, route, options);
    for (std::size_t slot = 0; slot < route.ids.size(); ++slot) {
      for (std::size_t col = 0; col < width; ++col) {
        const std::size_t token = slot / static_cast<std::size_t>(route.top_k);
        sums[token * width + col].add_product(route.weights[slot],
                                              result.stages[2].values()[slot * width + col]);
      }
    }
    for (std::size_t i = 0; rank == 0 && i < sums.size(); ++i) {
      sums[i].add(result.stages[5].values()[i]);
    }
  }
  for (std::size_t i = 0; i < sums.size(); ++i) {
    EXPECT_EQ(sums[i].round(Format::bf16), whole.output[i]);
  }
}

TEST(Forward, CarriesNanOfOneTokenToThatTokenOnly) {
  const MoeLayer layer = gpt_oss();
  std::mt19937_64 random(3);
  OwnedMatrix hidden = random_matrix(Scheme::bf16, Spread::tame, 3, layer.hidden, random);
  const Route route{3, 1, {1, 1, 1}, {0.5f, 0.5f, 0.5f}};
  const ForwardResult clean = forward(layer, hidden.matrix, route, {});
  const std::uint16_t nan = 0x7FA1;
  std::memcpy(hidden.codes.data() + 2 * (layer.hidden + 17), &nan, 2);
  const ForwardResult result = forward(layer, hidden.matrix, route, {});
  for (std::size_t col = 0; col < static_cast<std::size_t>(layer.hidden); ++col) {
    const auto width = static_cast<std::size_t>(layer.hidden);
    EXPECT_EQ(result.output[col], clean.output[col]);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(result.output[width + col]), 0x7FC00000u);
    EXPECT_EQ(result.output[2 * width + col], clean.output[2 * width + col]);
  }
}

TEST(Forward, RejectsInputsThatDoNotFit) {
  const MoeLayer layer = gpt_oss();
  const LayerInputs inputs = inputs_for(layer, 2, 1);
  const auto with = [&](const Route& route) {
    return error_of([&] { forward(layer, inputs.hidden, route, {}); });
  };
  EXPECT_NE(with({3, 1, {0, 1, 2}, {1, 1, 1}}).find("2 tokens, the routing has 3"),
            std::string::npos);
  EXPECT_NE(with({2, 1, {0, 8}, {1, 1}}).find("8"), std::string::npos);
  EXPECT_NE(with({2, 2, {0, 0, 1, 2}, {1, 1, 1, 1}}), "no error");
  EXPECT_EQ(with({2, 2, {-1, -1, 1, 2}, {1, 1, 1, 1}}), "no error");
  const std::vector<float> narrow(2 * 64);
  EXPECT_NE(
      error_of([&] {
        forward(layer, f32_matrix("hidden", narrow.data(), 2, 64), {2, 1, {0, 1}, {1, 1}}, {});
      }).find("has 64 columns, the layer's hidden size is 128"),
      std::string::npos);
}

TEST(Forward, RejectsLayersThatAreNotWhole) {
  const LayerInputs inputs = inputs_for(gpt_oss(), 1, 1);
  const auto with = [&](const std::function<void(MoeLayer&)>& change) {
    MoeLayer layer = gpt_oss();
    change(layer);
    return error_of([&] { forward(layer, inputs.hidden, {1, 1, {0}, {1}}, {}); });
  };
  const auto expect = [&](const std::function<void(MoeLayer&)>& change, const char* part) {
    EXPECT_NE(with(change).find(part), std::string::npos) << with(change);
  };
  EXPECT_EQ(with([](MoeLayer&) {}), "no error");
  expect([](MoeLayer& layer) { layer.experts.clear(); }, "there are none");
  expect([](MoeLayer& layer) { layer.experts[2].gate.rows = 4096; },
         "is [4096, 128]; the layer needs [192, 128]");
  expect([](MoeLayer& layer) { layer.experts[1].gate = {}; }, "experts.1.gate: is absent");
  expect([](MoeLayer& layer) { layer.experts[1].down = {}; }, "experts.1.down: is absent");
  expect([](MoeLayer& layer) { layer.experts[7].up_bias.cols = 3; }, "experts.7.up_bias");
  expect([](MoeLayer& layer) { layer.activation.alphas = {1.0f}; },
         "1 values of alpha for 8 experts");
  expect([](MoeLayer& layer) { layer.activation.limit = -7.0f; }, "limit must be at least 0");
  expect([](MoeLayer& layer) { layer.activation.beta = std::nanf(""); },
         "beta must be a finite number");
  expect([](MoeLayer& layer) { layer.latent = 64; }, "experts.0.gate");
  expect([](MoeLayer& layer) { layer.activation.form = ActivationForm::relu2; },
         "the activation has no gate");
  expect([](MoeLayer& layer) { layer.router.cols = 64; }, "router");
}

TEST(Shard, RejectsGroupsThatDoNotDivide) {
  const MoeLayer layer = gpt_oss();
  EXPECT_NE(error_of([&] {
              shard(layer, {0, 5, 0, 1});
            }).find("the intermediate size is 192, which 5 ranks do not divide"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              shard(layer, {0, 1, 0, 3});
            }).find("the number of experts is 8"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              shard(layer, {2, 2, 0, 1});
            }).find("rank 2/2 does not exist"),
            std::string::npos);
}

TEST(RouteTokens, NamesTheTokenWhoseLogitIsNan) {
  const MoeLayer layer = gpt_oss();
  std::mt19937_64 random(3);
  OwnedMatrix hidden = random_matrix(Scheme::bf16, Spread::tame, 3, layer.hidden, random);
  const std::uint16_t nan = 0x7FC0;
  std::memcpy(hidden.codes.data() + 2 * (2 * layer.hidden), &nan, 2);
  const std::string message = error_of([&] { route_tokens(layer, hidden.matrix, {}, 1); });
  EXPECT_NE(message.find("token 2"), std::string::npos) << message;
}

TEST(RouteTokens, WantsTokenIdsWhereTheLayerRoutesByThem) {
  const MoeLayer layer = Checkpoint::open(kModels / "deepseek_v4_mxfp4_h128_i64_e8").load_layer(0);
  const LayerInputs inputs = inputs_for(layer, 2, 1);
  EXPECT_NE(error_of([&] { route_tokens(layer, inputs.hidden, {}, 1); }).find("input_ids"),
            std::string::npos);
  const std::vector<std::int64_t> beyond{0, 32};
  EXPECT_NE(error_of([&] {
              route_tokens(layer, inputs.hidden, beyond, 1);
            }).find("token id 32 is outside the vocabulary [0, 32)"),
            std::string::npos);
}

}  // namespace
}  // namespace moeref
