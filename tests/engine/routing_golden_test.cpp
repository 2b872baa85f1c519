// Routing against the ids and weights that transformers computed (data/golden/models).

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/routing.hpp"
#include "io/safetensors.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using File = std::shared_ptr<const SafetensorsFile>;

const fs::path kModels = fs::path(MOEREF_DATA_DIR) / "golden" / "models";

/// Any of the number types of a golden file, as double.
std::vector<double> numbers(const TensorView& tensor) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    switch (tensor.dtype) {
      case DType::f64:
        values.push_back(tensor.at<double>(i));
        break;
      case DType::f32:
        values.push_back(static_cast<double>(tensor.at<float>(i)));
        break;
      case DType::bf16:
        values.push_back(static_cast<double>(
            std::bit_cast<float>(static_cast<std::uint32_t>(tensor.at<std::uint16_t>(i)) << 16)));
        break;
      case DType::i32:
        values.push_back(tensor.at<std::int32_t>(i));
        break;
      case DType::i64:
        values.push_back(static_cast<double>(tensor.at<std::int64_t>(i)));
        break;
      default:
        ADD_FAILURE() << tensor.name << " has dtype " << name(tensor.dtype);
    }
  }
  return values;
}

template <typename To>
std::vector<To> converted(const std::vector<double>& values) {
  std::vector<To> result;
  for (const double value : values) result.push_back(static_cast<To>(value));
  return result;
}

/// The tensor of one layer of a checkpoint whose name ends in one of `endings`; empty if none.
std::vector<double> layer_tensor(const std::string& checkpoint, std::int64_t layer,
                                 const std::vector<std::string>& endings) {
  const std::string infix = fmt::format("layers.{}.", layer);
  for (const auto& entry : fs::directory_iterator(kModels / checkpoint)) {
    if (entry.path().extension() != ".safetensors") continue;
    const File file = SafetensorsFile::open(entry.path());
    for (const auto& [tensor_name, tensor] : file->tensors()) {
      for (const std::string& ending : endings) {
        if (tensor_name.find(infix) != std::string::npos && tensor_name.ends_with(ending)) {
          return numbers(tensor);
        }
      }
    }
  }
  return {};
}

Routing routing_of(const json& params) {
  static const std::map<std::string, RoutingMethod> kKinds{
      {"topk_softmax", RoutingMethod::topk_softmax},
      {"softmax_topk", RoutingMethod::softmax_topk},
      {"sigmoid_group", RoutingMethod::deepseek_v3},
      {"sqrtsoftplus", RoutingMethod::sqrt_softplus}};
  Routing routing;
  routing.method = kKinds.at(params.at("kind").get<std::string>());
  routing.top_k = params.at("k").get<std::int64_t>();
  routing.renormalize = params.value("norm", true);
  routing.scaling = params.value("scale", 1.0f);
  routing.groups = params.value("n_group", 1);
  routing.kept_groups = params.value("topk_group", 1);
  const bool deepseek = routing.method == RoutingMethod::deepseek_v3 ||
                        routing.method == RoutingMethod::sqrt_softplus;
  routing.sum_epsilon = deepseek ? 1e-20f : 0.0f;
  return routing;
}

struct Case {
  Routing routing;
  std::int64_t tokens = 0;
  std::int64_t experts = 0;
  std::vector<double> logits;
  std::vector<double> logit_errors;  ///< how far the original's and our f32 logits may be off, each
  std::vector<float> bias;
  std::vector<std::int32_t> table_ids;  ///< given by token id, or empty
  std::vector<std::int32_t> ids;
  std::vector<double> weights;
};

constexpr double kUnit = 0x1p-24;  ///< half an ulp of 1 in f32

/// Rounding a logit to f32; and, where the original computed it in f32, its dot product in any
/// order.
std::vector<double> logit_errors(const SafetensorsFile& file, const std::string& checkpoint,
                                 std::int64_t layer, const std::vector<double>& logits,
                                 std::int64_t experts) {
  std::vector<double> errors;
  for (const double z : logits) errors.push_back(std::fabs(z) * kUnit);
  const TensorView* hidden = file.find("in.hidden");
  if (hidden == nullptr || file.at("out.topk_weights").dtype != DType::f32) return errors;
  const auto width = static_cast<std::size_t>(hidden->shape.at(1));
  const std::vector<double> x = numbers(*hidden);
  const std::vector<double> w = layer_tensor(checkpoint, layer, {"gate.weight", "router.weight"});
  for (std::size_t i = 0; i < errors.size(); ++i) {
    const std::size_t token = i / static_cast<std::size_t>(experts);
    const std::size_t expert = i % static_cast<std::size_t>(experts);
    double magnitude = 0.0;
    for (std::size_t k = 0; k < width; ++k) {
      magnitude += std::fabs(x[token * width + k] * w.at(expert * width + k));
    }
    errors[i] += magnitude * static_cast<double>(width + 2) * kUnit;
  }
  return errors;
}

Case read_case(const fs::path& path) {
  const File file = SafetensorsFile::open(path);
  const json params = json::parse(file->metadata().at("params"));
  const auto checkpoint = params.at("checkpoint").get<std::string>();
  const auto layer = params.at("layer").get<std::int64_t>();
  Case c;
  c.routing = routing_of(params.at("routing_and_activation"));
  // The f32 logits of the original, where stored, are what it went on with: no error in them.
  const TensorView* original = file->find("in.router_logits_f32");
  const TensorView& logits = original != nullptr ? *original : file->at("in.router_logits_f64");
  c.tokens = logits.shape.at(0);
  c.experts = logits.shape.at(1);
  c.logits = numbers(logits);
  c.ids = converted<std::int32_t>(numbers(file->at("out.topk_ids")));
  c.weights = numbers(file->at("out.topk_weights"));
  c.logit_errors = original != nullptr
                       ? std::vector<double>(c.logits.size(), 0.0)
                       : logit_errors(*file, checkpoint, layer, c.logits, c.experts);
  if (const TensorView* bias = file->find("in.correction_bias")) {
    c.bias = converted<float>(numbers(*bias));
  } else if (c.routing.method == RoutingMethod::deepseek_v3 ||
             c.routing.method == RoutingMethod::sqrt_softplus) {
    c.bias = converted<float>(
        layer_tensor(checkpoint, layer, {"gate.e_score_correction_bias", "gate.bias"}));
  }
  const std::vector<double> table = layer_tensor(checkpoint, layer, {"gate.tid2eid"});
  if (!table.empty()) {
    const auto top_k = static_cast<std::size_t>(c.routing.top_k);
    for (const double token_id : numbers(file->at("in.input_ids"))) {
      for (std::size_t slot = 0; slot < top_k; ++slot) {
        c.table_ids.push_back(
            static_cast<std::int32_t>(table.at(static_cast<std::size_t>(token_id) * top_k + slot)));
      }
    }
  }
  return c;
}

/// Relative distance allowed between our weight and one whose every operation was rounded to f32,
/// sums in any order, library functions within 4 ulp (8 units). The logits are off by at most `d`
/// on either side, which moves no score by more than 2 d. A score is at most: softmax 8 + 8 units
/// for the two exp, spread of the logits for their differences, experts for the sum, 1 division;
/// sigmoid 8 + 2; sqrt(softplus) 8 + 8 + 1. A weight divides by a sum of such scores.
double relative_bound(const Case& c, std::size_t token) {
  double largest_error = 0.0;
  double low = INFINITY;
  double high = -INFINITY;
  for (std::size_t e = 0; e < static_cast<std::size_t>(c.experts); ++e) {
    const std::size_t i = token * static_cast<std::size_t>(c.experts) + e;
    largest_error = std::max(largest_error, c.logit_errors[i]);
    low = std::min(low, c.logits[i]);
    high = std::max(high, c.logits[i]);
  }
  const double score_units = 17.0 + (high - low) + static_cast<double>(c.experts);
  const double theirs = 2.0 * (2.0 * largest_error + score_units * kUnit) +
                        (static_cast<double>(c.routing.top_k) + 3) * kUnit;
  const double ours = 2.0 * (2.0 * largest_error + kUnit) + kUnit;
  return (theirs + ours) * 1.001;  // second-order terms
}

/// (expert, weight) of one token by rising expert.
template <typename Weight>
std::vector<std::pair<std::int32_t, double>> sorted_slots(const std::vector<std::int32_t>& ids,
                                                          const std::vector<Weight>& weights,
                                                          std::size_t token, std::size_t top_k) {
  std::vector<std::pair<std::int32_t, double>> slots;
  for (std::size_t i = token * top_k; i < (token + 1) * top_k; ++i) {
    slots.emplace_back(ids.at(i), static_cast<double>(weights.at(i)));
  }
  std::sort(slots.begin(), slots.end());
  return slots;
}

void expect_original(const Case& c, const Route& route) {
  const auto top_k = static_cast<std::size_t>(c.routing.top_k);
  ASSERT_EQ(route.ids.size(), c.ids.size());
  for (std::size_t token = 0; token < static_cast<std::size_t>(c.tokens); ++token) {
    const auto ours = sorted_slots(route.ids, route.weights, token, top_k);
    const auto theirs = sorted_slots(c.ids, c.weights, token, top_k);
    const double bound = relative_bound(c, token);
    EXPECT_LT(bound, 5e-3) << "a bound this wide would not see a wrong formula";
    for (std::size_t slot = 0; slot < top_k; ++slot) {
      EXPECT_EQ(ours[slot].first, theirs[slot].first) << "token " << token;
      EXPECT_NEAR(ours[slot].second, theirs[slot].second, bound * theirs[slot].second)
          << "token " << token << ", expert " << theirs[slot].first;
    }
  }
}

std::vector<std::string> golden_cases() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kModels)) {
    const std::string stem = entry.path().stem().string();
    if (stem.starts_with("moe_block_") || stem.starts_with("moe_routing_")) names.push_back(stem);
  }
  std::sort(names.begin(), names.end());
  return names;
}

class RoutingGolden : public testing::TestWithParam<std::string> {};

TEST_P(RoutingGolden, ChoosesAndWeighsAsTheOriginal) {
  const Case c = read_case(kModels / (GetParam() + ".safetensors"));
  const auto logits = converted<float>(c.logits);
  const Route route = c.table_ids.empty()
                          ? route_logits(c.routing, logits, c.experts, c.bias)
                          : weigh_given_experts(c.routing, logits, c.experts, c.table_ids);
  expect_original(c, route);
  check_route(route, c.experts, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Models, RoutingGolden, testing::ValuesIn(golden_cases()),
                         [](const testing::TestParamInfo<std::string>& instance) {
                           return instance.param;
                         });

TEST(RoutingGoldenFiles, AreTheOnesKnown) { EXPECT_GE(golden_cases().size(), 28u); }

TEST(RoutingGoldenNegativeBias, FillZeroPicksMaskedExpertsInEveryToken) {
  // params.match_fraction: the original agrees with the fill -inf in all tokens, with 0 in none.
  Case c = read_case(kModels / "moe_routing_negbias_deepseek_v3_fp8_h256_i128_e8_l1.safetensors");
  c.routing.mask_fill = MaskFill::zero;
  const Route route = route_logits(c.routing, converted<float>(c.logits), c.experts, c.bias);
  const auto top_k = static_cast<std::size_t>(c.routing.top_k);
  for (std::size_t first = 0; first < route.ids.size(); first += top_k) {
    const std::set<std::int32_t> ours(
        route.ids.begin() + static_cast<std::ptrdiff_t>(first),
        route.ids.begin() + static_cast<std::ptrdiff_t>(first + top_k));
    for (std::size_t slot = 0; slot < top_k; ++slot)
      EXPECT_FALSE(ours.contains(c.ids[first + slot]));
  }
}

}  // namespace
}  // namespace moeref
