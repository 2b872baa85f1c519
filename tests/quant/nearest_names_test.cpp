#include "quant/nearest_names.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <vector>

namespace moeref {
namespace {

using Names = std::vector<std::string>;

/// The tensors of a model of two layers with four experts.
Names model_names() {
  Names names{"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"};
  for (int layer = 0; layer < 2; ++layer) {
    names.push_back(fmt::format("model.layers.{}.mlp.gate.weight", layer));
    for (int expert = 0; expert < 4; ++expert) {
      for (const char* matrix : {"gate_proj", "up_proj", "down_proj"}) {
        for (const char* kind : {"weight", "weight_scale_inv"}) {
          names.push_back(
              fmt::format("model.layers.{}.mlp.experts.{}.{}.{}", layer, expert, matrix, kind));
        }
      }
    }
  }
  return names;
}

std::string nearest(std::string_view wanted, const Names& names) {
  const Names found = nearest_names(wanted, names, 1);
  return found.empty() ? "" : found[0];
}

TEST(NearestNames, FindsAMisspeltPart) {
  EXPECT_EQ(nearest("model.layers.1.mlp.experts.2.gate_porj.weight", model_names()),
            "model.layers.1.mlp.experts.2.gate_proj.weight");
  EXPECT_EQ(nearest("model.layer.1.mlp.expert.2.up_proj.weight", model_names()),
            "model.layers.1.mlp.experts.2.up_proj.weight");
}

TEST(NearestNames, KeepsLayerAndExpertWhenTheEndingIsAnother) {
  EXPECT_EQ(nearest("model.layers.1.mlp.experts.2.up_proj.weight_scale", model_names()),
            "model.layers.1.mlp.experts.2.up_proj.weight_scale_inv");
}

TEST(NearestNames, FindsNamesBehindAnotherPrefix) {
  EXPECT_EQ(nearest("layers.0.mlp.experts.3.down_proj.weight", model_names()),
            "model.layers.0.mlp.experts.3.down_proj.weight");
  EXPECT_EQ(nearest("language_model.model.layers.0.mlp.experts.3.down_proj.weight", model_names()),
            "model.layers.0.mlp.experts.3.down_proj.weight");
  EXPECT_EQ(nearest("head.weight", model_names()), "lm_head.weight");
}

TEST(NearestNames, FindsTheNameWithAnotherNumber) {
  EXPECT_EQ(nearest("model.layers.1.mlp.experts.4.up_proj.weight", model_names()),
            "model.layers.1.mlp.experts.0.up_proj.weight");
}

TEST(NearestNames, PutsTheNameItselfFirst) {
  for (const std::string& name : model_names()) EXPECT_EQ(nearest(name, model_names()), name);
}

TEST(NearestNames, WorksForPlainWords) {
  const Names backends{"reference", "flashinfer_trtllm_fp8", "flashinfer_trtllm_mxfp4",
                       "flashinfer_cutlass_fp8", "marlin_mxfp4"};
  EXPECT_EQ(nearest("flashinfer_trtlm_fp8", backends), "flashinfer_trtllm_fp8");
  EXPECT_EQ(nearest("marlin_mxfp8", backends), "marlin_mxfp4");
  EXPECT_EQ(nearest("refrence", backends), "reference");
  EXPECT_EQ(nearest("trtllm_fp8", backends), "flashinfer_trtllm_fp8");
}

TEST(NearestNames, BreaksTiesBySuffixThenPrefixThenName) {
  EXPECT_EQ(nearest_names("abcd", Names{"abcX", "Xbcd", "aXcd", "abXd"}, 4),
            (Names{"Xbcd", "aXcd", "abXd", "abcX"}));
  EXPECT_EQ(nearest_names("ab", Names{"Yb", "Xb"}), (Names{"Xb", "Yb"}));
}

TEST(NearestNames, GivesAtMostCountDistinctNames) {
  EXPECT_EQ(nearest_names("a", Names{}), Names{});
  EXPECT_EQ(nearest_names("a", Names{"b"}), Names{"b"});
  EXPECT_EQ(nearest_names("a", Names{"b", "b", "c", "d", "e"}), (Names{"b", "c", "d"}));
  EXPECT_EQ(nearest_names("a", Names{"b"}, 0), Names{});
  EXPECT_EQ(nearest_names("", Names{"", "."}, 2), (Names{"", "."}));
}

TEST(NearestNames, DoesNotDependOnTheOrderOfCandidates) {
  Names names = model_names();
  const Names expected = nearest_names("model.layers.0.mlp.experts.9.w1.weight", names, 5);
  std::reverse(names.begin(), names.end());
  EXPECT_EQ(nearest_names("model.layers.0.mlp.experts.9.w1.weight", names, 5), expected);
}

/// Levenshtein distance by the definition.
int edit_distance(const std::string& from, const std::string& to) {
  std::vector<std::vector<int>> cost(from.size() + 1, std::vector<int>(to.size() + 1));
  for (std::size_t i = 0; i <= from.size(); ++i) {
    for (std::size_t k = 0; k <= to.size(); ++k) {
      int best = static_cast<int>(i + k);
      if (i > 0 && k > 0) {
        best = std::min({cost[i - 1][k] + 1, cost[i][k - 1] + 1,
                         cost[i - 1][k - 1] + (from[i - 1] == to[k - 1] ? 0 : 1)});
      }
      cost[i][k] = best;
    }
  }
  return cost[from.size()][to.size()];
}

TEST(NearestNames, RanksWordsByEditDistance) {
  std::minstd_rand random(7);
  const auto letter = [&] { return static_cast<char>('a' + random() % 3); };
  for (int round = 0; round < 200; ++round) {
    std::string wanted(1 + random() % 40, ' ');
    for (char& c : wanted) c = letter();
    Names names;
    for (int i = 0; i < 40; ++i) {
      std::string name = wanted;
      for (auto edits = random() % 20; edits > 0; --edits) {
        const auto at = static_cast<std::ptrdiff_t>(random() % (name.size() + 1));
        const auto kind = random() % 3;
        if (kind == 0 || at == static_cast<std::ptrdiff_t>(name.size())) {
          name.insert(name.begin() + at, letter());
        } else if (kind == 1 && name.size() > 1) {
          name.erase(name.begin() + at);
        } else {
          name[static_cast<std::size_t>(at)] = letter();
        }
      }
      names.push_back(name);
    }
    int previous = 0;
    for (const std::string& name : nearest_names(wanted, names, names.size())) {
      // Beyond what it costs to leave a word out and put the other in, all words are equally far.
      const int both = static_cast<int>(6 + wanted.size() / 4 + name.size() / 4);
      const int distance = std::min(edit_distance(wanted, name), both - 1);
      EXPECT_GE(distance, previous) << wanted << " " << name;
      previous = distance;
    }
  }
}

TEST(NearestNames, IsFastForManyNames) {
  Names names;
  for (int layer = 0; layer < 100; ++layer) {
    for (int expert = 0; expert < 500; ++expert) {
      for (const char* end : {"gate_proj.weight", "gate_proj.weight_scale_inv"}) {
        names.push_back(fmt::format("model.layers.{}.mlp.experts.{}.{}", layer, expert, end));
      }
    }
  }
  Names hashes;  // no part occurs twice
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    hashes.push_back(fmt::format("{:016x}{:016x}", i * 0x9E3779B97F4A7C15, i * 0xD1B54A32D192ED03));
  }
  const std::string long_name(100'000, 'x');
  const Names long_names(100, long_name + "y");
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(nearest("model.layers.77.mlp.experts.499.gate_proj.weight_scale_in", names),
            "model.layers.77.mlp.experts.499.gate_proj.weight_scale_inv");
  EXPECT_EQ(nearest(hashes[1234].substr(1), hashes), hashes[1234]);
  EXPECT_EQ(nearest(long_name, long_names), long_names[0]);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(seconds.count(), 10)
      << "a second is ample even on a busy machine; quadratic work takes minutes";
  RecordProperty("milliseconds", static_cast<int>(seconds.count() * 1000));
}

}  // namespace
}  // namespace moeref
