#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "io/checkpoint.hpp"
#include "io/counter_random.hpp"
#include "io/safetensors.hpp"
#include "io/synth/ordered_chunks.hpp"
#include "io/synth/plan.hpp"
#include "io/synth/write.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "tests/io/temp_folder.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using testing::read_bytes;
using testing::TempFolder;
using testing::write_bytes;

SynthOptions tiny(std::string_view model, std::uint64_t seed = 0) {
  SynthOptions options;
  options.model = model;
  options.seed = seed;
  return options;
}

/// All files of a folder and their bytes.
std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = read_bytes(entry.path());
  }
  return files;
}

std::map<std::string, std::string> write(const SynthOptions& options, const fs::path& folder,
                                         SynthWriteOptions how = {}) {
  write_checkpoint(plan_checkpoint(options), folder, how);
  return files_of(folder);
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const SynthModel& model : synth_models()) names.emplace_back(model.name);
  return names;
}

// Known answers: Random123 tests/kat_vectors, lines "philox4x32 10".
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox4x32_10({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Known answers: FNV reference vectors, draft-eastlake-fnv, 64 bits, FNV-1a.
TEST(NameHash, GivesTheKnownAnswers) {
  EXPECT_EQ(name_hash(""), 0xcbf29ce484222325U);
  EXPECT_EQ(name_hash("a"), 0xaf63dc4c8601ec8cU);
  EXPECT_EQ(name_hash("foobar"), 0x85944171f73967e8U);
}

TEST(TensorRandom, DrawsAreHalfWordsOfPhilox) {
  const std::uint64_t seed = 0x1122334455667788;
  const std::string name = "model.layers.3.mlp.gate.weight";
  const std::uint64_t hash = name_hash(name);
  const TensorRandom random(seed, name);
  for (const std::uint64_t block :
       {std::uint64_t{0}, std::uint64_t{7}, (std::uint64_t{1} << 40) + 5}) {
    const PhiloxCounter words =
        philox4x32_10({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                       static_cast<std::uint32_t>(hash), static_cast<std::uint32_t>(hash >> 32)},
                      {0x55667788, 0x11223344});
    for (std::uint64_t i = 0; i < 8; ++i) {
      EXPECT_EQ(random.draw(8 * block + i),
                static_cast<std::uint16_t>(words[i / 2] >> (16 * (i % 2))));
    }
  }
}

TEST(TensorRandom, ASliceIsTheSameAsItsPartOfTheWhole) {
  const TensorRandom random(5, "slice");
  std::vector<std::uint16_t> whole(700);
  random.draws(0, whole);
  for (std::size_t first = 0; first < 300; first += 7) {
    std::vector<std::uint16_t> part(first + 13);
    random.draws(first, part);
    EXPECT_TRUE(
        std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(first)));
  }
}

TEST(TensorRandom, SeedAndNameGiveStreamsOfTheirOwn) {
  std::set<std::vector<std::uint16_t>> streams;
  for (const std::uint64_t seed : {0U, 1U, 2U}) {
    for (const std::string_view name : {"", "a", "b"}) {
      std::vector<std::uint16_t> draws(16);
      TensorRandom(seed, name).draws(0, draws);
      streams.insert(draws);
    }
  }
  EXPECT_EQ(streams.size(), 9U);
}

TEST(NormalVariate, HasTheMomentsOfANormalDistribution) {
  std::int64_t sum = 0;
  double squares = 0;
  std::int64_t within = 0;
  std::int32_t previous = normal_variate(0);
  for (std::uint32_t draw = 0; draw < 65536; ++draw) {
    const std::int32_t value = normal_variate(static_cast<std::uint16_t>(draw));
    EXPECT_GE(value, previous);
    EXPECT_EQ(value, -normal_variate(static_cast<std::uint16_t>(65535 - draw)));
    previous = value;
    sum += value;
    squares += static_cast<double>(value) * value;
    within += std::abs(value) <= kNormalUnit;
  }
  EXPECT_EQ(sum, 0);
  EXPECT_NEAR(std::sqrt(squares / 65536) / kNormalUnit, 1.0, 0.001);
  // The sum of twelve has excess kurtosis -0.1008; by Edgeworth, P(|z| < 1) = 0.68269 - 0.1008 / 6
  // * phi(1) = 0.6786.
  EXPECT_NEAR(static_cast<double>(within) / 65536, 0.6786, 0.0005);
  EXPECT_GT(normal_variate(65535), 4 * kNormalUnit);
}

TEST(MakeInOrder, HandsChunksOverInOrder) {
  for (const int threads : {1, 2, 5}) {
    std::vector<int> taken;
    make_in_order(
        37, threads, [](std::size_t) { return sizeof(int); },
        [](std::size_t chunk, std::span<std::byte> out) {
          if (chunk % 3 == 0) std::this_thread::yield();
          const int value = static_cast<int>(chunk);
          std::memcpy(out.data(), &value, sizeof(value));
        },
        [&](std::span<const std::byte> bytes) { taken.push_back(load<int>(bytes.data())); });
    ASSERT_EQ(taken.size(), 37U);
    for (int i = 0; i < 37; ++i) EXPECT_EQ(taken[static_cast<std::size_t>(i)], i);
  }
}

TEST(MakeInOrder, PassesExceptionsOnFromBothSides) {
  const auto size = [](std::size_t) { return std::size_t{8}; };
  const auto make = [](std::size_t, std::span<std::byte>) {};
  EXPECT_THROW(
      make_in_order(9, 2, size, make, [](std::span<const std::byte>) { throw Error("full"); }),
      Error);
  EXPECT_THROW(make_in_order(
                   9, 2, size, [](std::size_t, std::span<std::byte>) { throw std::bad_alloc(); },
                   [](std::span<const std::byte>) {}),
               std::bad_alloc);
}

class SynthModels : public ::testing::TestWithParam<std::string> {};

TEST_P(SynthModels, TinyIsReadBackWithTheSizesOfTheTable) {
  const TempFolder folder;
  const fs::path path = folder / "model";
  const SynthPlan plan = plan_checkpoint(tiny(GetParam()));
  write_checkpoint(plan, path, {});
  std::uintmax_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(path)) bytes += entry.file_size();
  EXPECT_LT(bytes, 2'000'000U);

  const Checkpoint checkpoint = Checkpoint::open(path);
  EXPECT_EQ(checkpoint.moe_layers(), plan.moe_layers);
  const MoeLayer layer = checkpoint.load_layer(plan.moe_layers.front());
  const SynthSizes& sizes = plan.model->tiny;
  EXPECT_EQ(layer.hidden, sizes.hidden);
  EXPECT_EQ(layer.intermediate, sizes.intermediate);
  EXPECT_EQ(layer.latent, sizes.latent);
  EXPECT_EQ(layer.expert_count(), sizes.experts);
  EXPECT_EQ(layer.routing.top_k, sizes.top_k);
  EXPECT_EQ(layer.gated(), is_gated(plan.model->family));
  EXPECT_EQ(layer.shared.has_value(), sizes.shared_intermediate != 0);
  if (layer.shared) {
    EXPECT_EQ(layer.shared->up.rows, sizes.shared_intermediate);
  }
  EXPECT_EQ(layer.activation.limit, plan.model->limit != 0 ? plan.model->limit : kNoLimit);
}

/// Root of the mean square of a matrix, times the root of its width: the spread of its product with
/// unit inputs.
double output_sigma(const ScaledMatrix& matrix) {
  std::vector<double> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
  dequantize(matrix, values);
  double squares = 0;
  for (const double value : values) {
    EXPECT_TRUE(std::isfinite(value));
    EXPECT_FALSE(value == 0 && std::signbit(value)) << matrix.name;
    squares += value * value;
  }
  return std::sqrt(squares / static_cast<double>(matrix.rows));
}

TEST_P(SynthModels, GateAndUpDifferInStatisticsAndReachTheLimit) {
  const TempFolder folder;
  const SynthPlan plan = plan_checkpoint(tiny(GetParam()));
  write_checkpoint(plan, folder / "model", {});
  const MoeLayer layer = Checkpoint::open(folder / "model").load_layer(plan.moe_layers.front());
  double up = 0;
  double gate = 0;
  for (const Expert& expert : layer.experts) {
    up += output_sigma(expert.up) / static_cast<double>(layer.expert_count());
    if (layer.gated())
      gate += output_sigma(expert.gate) / static_cast<double>(layer.expert_count());
    EXPECT_GT(output_sigma(expert.down), 0.0);
  }
  EXPECT_GT(up, 0.5);
  if (!layer.gated()) return;
  EXPECT_GT(gate, 1.1 * up);
  const double limit = plan.model->limit;
  if (limit == 0) return;
  EXPECT_GT(gate, limit / 3.0);  // beyond the limit: 0.3 % and more of the gates
  EXPECT_LT(gate, limit);
}

TEST_P(SynthModels, SameSeedSameBytesAnyThreadsOtherSeedOtherWeights) {
  const TempFolder folder;
  SynthWriteOptions one;
  one.threads = 1;
  SynthWriteOptions two;
  two.threads = 2;
  const auto first = write(tiny(GetParam(), 1), folder / "a", one);
  EXPECT_EQ(first, write(tiny(GetParam(), 1), folder / "b", two));
  const auto other = write(tiny(GetParam(), 2), folder / "c");
  EXPECT_EQ(first.at("config.json"), other.at("config.json"));
  const auto left = SafetensorsFile::open(folder / "a/model.safetensors");
  const auto right = SafetensorsFile::open(folder / "c/model.safetensors");
  for (const auto& [name, view] : left->tensors()) {
    if (view.bytes.size() < 4) continue;
    EXPECT_FALSE(std::ranges::equal(view.bytes, right->at(name).bytes)) << name;
  }
}

TEST_P(SynthModels, AnySliceMadeAloneEqualsTheFile) {
  const TempFolder folder;
  SynthOptions options = tiny(GetParam(), 3);
  options.router_ties = 1;
  const SynthPlan plan = plan_checkpoint(options);
  write_checkpoint(plan, folder / "model", {});
  const auto file = SafetensorsFile::open(folder / "model/model.safetensors");
  ASSERT_EQ(file->tensors().size(), plan.tensors.size());
  for (const SynthTensor& tensor : plan.tensors) {
    const TensorView& view = file->at(tensor.name);
    const std::size_t size = view.bytes.size();
    ASSERT_EQ(tensor.byte_count(), size);
    for (const auto& [first, count] :
         {std::pair(std::size_t{0}, size), std::pair(size / 3, size - size / 3),
          std::pair(size / 2, size / 4), std::pair(size - 1, std::size_t{1})}) {
      std::vector<std::byte> slice(count);
      make_bytes(tensor, plan.seed, first, slice);
      EXPECT_TRUE(std::ranges::equal(slice, view.bytes.subspan(first, count)))
          << tensor.name << " " << first;
    }
  }
}

TEST_P(SynthModels, RouterRowsDifferAndTheLastTwoBiasesTie) {
  const TempFolder folder;
  const SynthPlan plan = plan_checkpoint(tiny(GetParam()));
  write_checkpoint(plan, folder / "model", {});
  const MoeLayer layer = Checkpoint::open(folder / "model").load_layer(plan.moe_layers.front());
  const std::int64_t experts = layer.expert_count();
  std::set<std::vector<double>> rows;
  for (std::int64_t row = 0; row < experts; ++row) {
    std::vector<double> values(static_cast<std::size_t>(layer.hidden));
    dequantize(row_slice(layer.router, row, 1), values);
    rows.insert(values);
  }
  EXPECT_EQ(std::ssize(rows), experts);
  for (const ScaledMatrix& bias : {layer.router_bias, layer.selection_bias}) {
    if (!bias) continue;
    EXPECT_EQ(element_at(bias, 0, experts - 1), element_at(bias, 0, experts - 2));
    EXPECT_NE(element_at(bias, 0, experts - 2), element_at(bias, 0, experts - 3));
  }
}

INSTANTIATE_TEST_SUITE_P(All, SynthModels, ::testing::ValuesIn(model_names()),
                         [](const auto& model) {
                           std::string name = model.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST(SynthPlan, FullSizesAreThoseOfTheReleasedLayers) {
  const auto bytes_of = [](std::string_view model) {
    SynthOptions options = tiny(model);
    options.scale = SynthScale::full;
    std::uint64_t bytes = 0;
    for (const SynthTensor& tensor : plan_checkpoint(options).tensors) {
      if (tensor.name.find("experts") != std::string::npos) bytes += tensor.byte_count();
    }
    return bytes;
  };
  // 17 bytes for 32 weights, and the biases.
  EXPECT_EQ(bytes_of("gpt-oss-20b"),
            std::uint64_t{32} * 3 * 2880 * 2880 / 32 * 17 + 32 * 3 * 2880 * 2);
  // 257 experts with the shared one; a F32 for each block of 128 x 128.
  EXPECT_EQ(bytes_of("deepseek-v3"), std::uint64_t{257} * 3 * (7168 * 2048 + 4 * 56 * 16));
  EXPECT_EQ(bytes_of("nemotron-h-nvfp4"),
            std::uint64_t{128} * 2 * (2688 * 1856 / 16 * 9 + 8) + 2 * (2688 * 3712 / 16 * 9 + 8));
}

TEST(SynthPlan, LayersKeepTheModelsOwnNumbers) {
  const TempFolder folder;
  const auto layers_of = [&](std::string_view model, SynthScale scale, std::int64_t count,
                             std::optional<std::int64_t> first) {
    SynthOptions options = tiny(model);
    options.layers = count;
    options.first_layer = first;
    options.scale = scale;
    return plan_checkpoint(options).moe_layers;
  };
  using Layers = std::vector<std::int64_t>;
  EXPECT_EQ(layers_of("deepseek-v3", SynthScale::full, 2, {}), (Layers{3, 4}));
  EXPECT_EQ(layers_of("qwen3-235b", SynthScale::full, 1, {}), (Layers{0}));
  EXPECT_EQ(layers_of("nemotron-h-fp8", SynthScale::tiny, 4, {}), (Layers{1, 3, 6, 8}));
  EXPECT_EQ(layers_of("nemotron-h-fp8", SynthScale::tiny, 1, 4), (Layers{6}));
}

TEST(SynthPlan, EveryLayerWrittenAndNoOtherIsAnMoeLayerOfTheConfig) {
  const TempFolder folder;
  for (const auto& [model, first] : std::map<std::string, std::int64_t>{{"deepseek-v3", 5},
                                                                        {"qwen3-30b", 2},
                                                                        {"qwen3-vl-moe-bf16", 3},
                                                                        {"nemotron-h-nvfp4", 6},
                                                                        {"gpt-oss-20b", 0},
                                                                        {"deepseek-v4", 0}}) {
    SynthOptions options = tiny(model);
    options.layers = 3;
    options.first_layer = first;
    const SynthPlan plan = plan_checkpoint(options);
    write_checkpoint(plan, folder / model, {});
    const Checkpoint checkpoint = Checkpoint::open(folder / model);
    EXPECT_EQ(checkpoint.moe_layers(), plan.moe_layers) << model;
    for (const std::int64_t layer : plan.moe_layers) {
      EXPECT_EQ(checkpoint.load_layer(layer).layer, layer) << model;
    }
  }
}

TEST(SynthPlan, HashLayersHoldDistinctExpertsForEveryToken) {
  const TempFolder folder;
  SynthOptions options = tiny("deepseek-v4");
  options.layers = 2;
  options.vocabulary = 97;
  write(options, folder / "model");
  const Checkpoint checkpoint = Checkpoint::open(folder / "model");
  const MoeLayer hashed = checkpoint.load_layer(0);
  ASSERT_EQ(hashed.expert_table.shape, (Shape{97, 3}));
  std::set<std::int64_t> used;
  for (std::int64_t token = 0; token < 97; ++token) {
    std::set<std::int64_t> ids;
    for (std::int64_t slot = 0; slot < 3; ++slot)
      ids.insert(hashed.expert_table.at<std::int64_t>(3 * token + slot));
    EXPECT_EQ(ids.size(), 3U);
    EXPECT_GE(*ids.begin(), 0);
    EXPECT_LT(*ids.rbegin(), hashed.expert_count());
    used.merge(ids);
  }
  EXPECT_EQ(std::ssize(used), hashed.expert_count());
  const MoeLayer scored = checkpoint.load_layer(1);
  EXPECT_TRUE(scored.expert_table.bytes.empty());
  EXPECT_TRUE(scored.selection_bias);
}

TEST(SynthPlan, RouterTiesMakePairsOfEqualRowsAndBiases) {
  const TempFolder folder;
  SynthOptions options = tiny("gpt-oss-20b");
  options.router_ties = 2;
  write(options, folder / "model");
  const MoeLayer layer = Checkpoint::open(folder / "model").load_layer(0);
  const auto same = [&](std::int64_t left, std::int64_t right) {
    bool equal = element_at(layer.router_bias, 0, left) == element_at(layer.router_bias, 0, right);
    for (std::int64_t col = 0; col < layer.hidden; ++col) {
      equal = equal && element_at(layer.router, left, col) == element_at(layer.router, right, col);
    }
    return equal;
  };
  EXPECT_TRUE(same(4, 5));
  EXPECT_TRUE(same(2, 3));
  EXPECT_FALSE(same(3, 4));
  EXPECT_FALSE(same(0, 1));
}

TEST(SynthPlan, GlobalScalesDifferBetweenExpertsAndGateAndUpShareOneUnlessSplit) {
  for (const bool split : {false, true}) {
    const TempFolder folder;
    SynthOptions options = tiny("qwen3-235b-nvfp4");
    options.split_global_scales = split;
    write(options, folder / "model");
    const MoeLayer layer = Checkpoint::open(folder / "model").load_layer(0);
    std::set<float> distinct;
    for (const Expert& expert : layer.experts) {
      distinct.insert(expert.gate.global_scale);
      EXPECT_EQ(expert.gate.global_scale != expert.up.global_scale, split);
    }
    EXPECT_EQ(std::ssize(distinct), layer.expert_count());
  }
}

TEST(SynthPlan, RefusesWhatTheModelCannotHave) {
  const auto refusal = [](std::string_view model,
                          const std::function<void(SynthOptions&)>& change) {
    SynthOptions options = tiny(model);
    change(options);
    return error_of([&] { plan_checkpoint(options); });
  };
  const auto none = [](SynthOptions&) {};
  EXPECT_NE(refusal("gpt-5", none).find("known: gpt-oss-20b"), std::string::npos);
  EXPECT_NE(refusal("gpt-oss-20b", [](auto& o) { o.first_layer = 2; }).find("--layer: is 2"),
            std::string::npos);
  EXPECT_NE(refusal("gpt-oss-20b", [](auto& o) { o.layers = 25; }).find("has 24 layers"),
            std::string::npos);
  EXPECT_NE(refusal("gpt-oss-20b", [](auto& o) { o.layers = 0; }).find("--layers: is 0"),
            std::string::npos);
  EXPECT_NE(refusal("gpt-oss-20b", [](auto& o) { o.hash_layers = 1; }).find("--hash-layers"),
            std::string::npos);
  EXPECT_NE(
      refusal("gpt-oss-20b", [](auto& o) { o.split_global_scales = true; }).find("--split-global"),
      std::string::npos);
  EXPECT_NE(refusal("gpt-oss-20b", [](auto& o) { o.router_ties = 4; }).find("at most 3 pairs"),
            std::string::npos);
  EXPECT_NE(refusal("deepseek-v3", [](auto& o) { o.experts = 10; }).find("--experts: is 10"),
            std::string::npos);
  EXPECT_NE(refusal("deepseek-v4", [](auto& o) { o.hash_layers = 2; }).find("--hash-layers"),
            std::string::npos);
  EXPECT_NE(refusal("deepseek-v4", [](auto& o) { o.vocabulary = 0; }).find("--vocabulary"),
            std::string::npos);
}

TEST(WriteCheckpoint, CutsShardsAndIndexesThem) {
  const TempFolder folder;
  SynthWriteOptions how;
  how.shard_bytes = 200'000;
  const auto sharded = write(tiny("qwen3-30b"), folder / "sharded", how);
  write(tiny("qwen3-30b"), folder / "single");
  ASSERT_TRUE(sharded.contains("model-00001-of-00004.safetensors"));
  ASSERT_TRUE(sharded.contains("model-00004-of-00004.safetensors"));
  const auto index = nlohmann::json::parse(sharded.at("model.safetensors.index.json"));
  const auto single = SafetensorsFile::open(folder / "single/model.safetensors");
  EXPECT_EQ(index["weight_map"].size(), single->tensors().size());
  std::uint64_t total = 0;
  for (const auto& [name, view] : single->tensors()) {
    total += view.bytes.size();
    const auto shard =
        SafetensorsFile::open(folder / "sharded" / index["weight_map"][name].get<std::string>());
    EXPECT_TRUE(std::ranges::equal(shard->at(name).bytes, view.bytes)) << name;
    std::uint64_t shard_bytes = 0;
    for (const auto& [other, part] : shard->tensors()) shard_bytes += part.bytes.size();
    EXPECT_LE(shard_bytes, how.shard_bytes);
  }
  EXPECT_EQ(index["metadata"]["total_size"].get<std::uint64_t>(), total);
  EXPECT_EQ(Checkpoint::open(folder / "sharded").load_layer(0).expert_count(), 10);
}

TEST(WriteCheckpoint, TakesAnEmptyFolderAndRefusesAFullOneUnlessForced) {
  const TempFolder folder;
  const fs::path path = folder / "model";
  fs::create_directory(path);
  const auto first = write(tiny("gpt-oss-20b", 1), path);
  EXPECT_NE(error_of([&] { write(tiny("gpt-oss-20b", 2), path); }).find("is not empty"),
            std::string::npos);
  EXPECT_EQ(files_of(path), first);
  SynthWriteOptions force;
  force.force = true;
  EXPECT_NE(write(tiny("gpt-oss-20b", 2), path, force), first);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"model"});
}

TEST(WriteCheckpoint, ForceNeverRemovesForeignFiles) {
  const TempFolder folder;
  write_bytes(folder / "thesis.tex", "years of work");
  SynthWriteOptions force;
  force.force = true;
  EXPECT_NE(error_of([&] {
              write(tiny("gpt-oss-20b"), folder.path(), force);
            }).find("holds 'thesis.tex'"),
            std::string::npos);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"thesis.tex"});
  EXPECT_NE(error_of([&] {
              write(tiny("gpt-oss-20b"), folder / "thesis.tex", force);
            }).find("is not a folder"),
            std::string::npos);
}

TEST(WriteCheckpoint, LeavesNothingWhenStopped) {
  const TempFolder folder;
  SynthWriteOptions how;
  std::uint64_t seen = 0;
  how.progress = [&](std::uint64_t done, std::uint64_t total) {
    seen = done;
    EXPECT_LE(done, total);
    return false;
  };
  EXPECT_NE(error_of([&] { write(tiny("gpt-oss-20b"), folder / "model", how); }).find("stopped"),
            std::string::npos);
  EXPECT_GT(seen, 0U);
  EXPECT_TRUE(folder.names().empty());
}

TEST(WriteCheckpoint, SaysBeforehandThatTheDiskIsTooSmall) {
  const TempFolder folder;
  const std::uintmax_t free = fs::space(folder.path()).available;
  SynthOptions options = tiny("deepseek-v3");
  options.scale = SynthScale::full;
  options.layers = 58;
  SynthPlan plan = plan_checkpoint(options);
  const std::uint64_t once = plan.total_bytes();
  const std::vector<SynthTensor> tensors = plan.tensors;
  while (plan.total_bytes() <= free) {
    for (const SynthTensor& tensor : tensors) plan.tensors.push_back(tensor);
  }
  ASSERT_GT(once, 58U * std::uint64_t{11'000'000'000});
  const std::string message = error_of([&] { write_checkpoint(plan, folder / "model", {}); });
  EXPECT_NE(message.find("model: needs"), std::string::npos) << message;
  EXPECT_TRUE(folder.names().empty());
}

}  // namespace
}  // namespace moeref
