#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/conform/logical_hashes.hpp"
#include "cli/conform/ops.hpp"
#include "engine/bounds/block.hpp"
#include "engine/bounds/routing.hpp"
#include "io/checkpoint.hpp"
#include "io/json_file.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"

namespace moeref::conform {
namespace {

using bounds::Arithmetic;
using bounds::BoundedMatrix;
using bounds::BoundedRoute;
using bounds::Precision;

MoeLayer load_layer(const GoldenCase& golden) {
  const auto checkpoint = golden.text_param("checkpoint");
  if (!checkpoint) fail(golden.path.string(), "op {} needs params.checkpoint", golden.op);
  return Checkpoint::open(golden.path.parent_path() / *checkpoint)
      .load_layer(golden.integer_param("layer"));
}

BoundedMatrix exact_rows(const GoldenCase& golden, const TensorView& tensor, std::int64_t cols) {
  if (tensor.shape.size() != 2 || tensor.shape[1] != cols) {
    fail(golden.subject(tensor.name), "has shape {}, needs [tokens, {}]", to_string(tensor.shape),
         cols);
  }
  BoundedMatrix matrix(tensor.shape[0], cols);
  matrix.value = to_doubles(tensor);
  return matrix;
}

BoundedMatrix exact_row(std::vector<double> values) {
  BoundedMatrix matrix(1, static_cast<std::int64_t>(values.size()));
  matrix.value = std::move(values);
  return matrix;
}

/// The selection bias of the layer; no columns if it has none.
BoundedMatrix selection_bias(const MoeLayer& layer) {
  if (!layer.selection_bias) return {};
  std::vector<double> values(static_cast<std::size_t>(layer.selection_bias.cols));
  dequantize(layer.selection_bias, std::span<double>(values));
  return exact_row(std::move(values));
}

/// The precision in which an output was computed; outputs without a bound: f64 for names that say
/// so, else f32.
Precision precision_of(const GoldenCase& golden, std::string_view output) {
  const CompareRule& rule = golden.rule(output);
  const bool is_f64 =
      rule.kind == CompareKind::bound ? rule.precision == Format::f64 : output.ends_with("_f64");
  return is_f64 ? Precision::f64 : Precision::f32;
}

/// The ids of every token as moeref chooses them, and which of the stored sets hold.
struct Choice {
  ComputedSets sets;
  std::vector<std::int32_t>
      settled;  ///< [tokens, top_k]: the stored ids where their set holds (their order), else ours
};

constexpr std::int32_t kNoExpert = -1;

/// Stored ids as [tokens, top_k], if their shape fits; those outside the experts become
/// `kNoExpert`, which nothing chooses.
std::optional<std::vector<std::int32_t>> stored_ids(const GoldenCase& golden, std::int64_t tokens,
                                                    std::int64_t top_k, std::int64_t experts) {
  const TensorView* stored = golden.find_output("topk_ids");
  if (stored == nullptr || stored->shape != Shape{tokens, top_k}) return std::nullopt;
  std::vector<std::int32_t> ids;
  for (const std::int64_t id : to_integers(*stored)) {
    ids.push_back(id >= 0 && id < experts ? static_cast<std::int32_t>(id) : kNoExpert);
  }
  return ids;
}

/// One token's choice with the errors of `choices`, or by the layer's table.
class Chooser {
 public:
  Chooser(const GoldenCase& golden, const MoeLayer& layer, const BoundedMatrix& choices)
      : routing_(layer.routing), choices_(choices) {
    if (layer.expert_table.bytes.empty()) return;
    table_ids_ = bounds::look_up_experts(layer, to_integers(golden.input("input_ids")));
    if (static_cast<std::int64_t>(table_ids_.size()) != choices.rows * routing_.top_k) {
      fail(golden.subject("in.input_ids"), "gives {} expert ids, needs {} tokens x {} slots",
           table_ids_.size(), choices.rows, routing_.top_k);
    }
  }

  std::vector<std::int32_t> choose(std::int64_t token) const {
    if (!table_ids_.empty()) {
      const auto begin = table_ids_.begin() + token * routing_.top_k;
      return {begin, begin + routing_.top_k};
    }
    const std::span<const double> values(choices_.value);
    return bounds::choose(routing_, values.subspan(static_cast<std::size_t>(token * choices_.cols),
                                                   static_cast<std::size_t>(choices_.cols)));
  }

  bool accepts(std::int64_t token, std::span<const std::int32_t> stored) const {
    if (table_ids_.empty()) return bounds::may_choose(routing_, choices_, token, stored);
    std::vector<std::int32_t> wanted = choose(token);
    std::vector<std::int32_t> given(stored.begin(), stored.end());
    std::sort(wanted.begin(), wanted.end());
    std::sort(given.begin(), given.end());
    return wanted == given;
  }

 private:
  const Routing& routing_;
  const BoundedMatrix& choices_;
  std::vector<std::int32_t> table_ids_;
};

Choice settle_choice(const GoldenCase& golden, const MoeLayer& layer,
                     const BoundedMatrix& choices) {
  const Chooser chooser(golden, layer, choices);
  const std::int64_t top_k = layer.routing.top_k;
  const auto stored = stored_ids(golden, choices.rows, top_k, choices.cols);
  Choice choice;
  choice.sets.tokens = choices.rows;
  choice.sets.width = top_k;
  for (std::int64_t token = 0; token < choices.rows; ++token) {
    const std::vector<std::int32_t> ours = chooser.choose(token);
    bool agrees = false;
    std::span<const std::int32_t> settled = ours;
    if (stored) {
      const auto given = std::span(*stored).subspan(static_cast<std::size_t>(token * top_k),
                                                    static_cast<std::size_t>(top_k));
      agrees = chooser.accepts(token, given);
      if (agrees) settled = given;
    }
    choice.sets.ids.insert(choice.sets.ids.end(), ours.begin(), ours.end());
    choice.sets.stored_agrees.push_back(agrees);
    choice.settled.insert(choice.settled.end(), settled.begin(), settled.end());
  }
  return choice;
}

/// Weights [tokens, top_k] in the order of the stored slots.
bounds::BoundedOutput weights_output(const BoundedRoute& route) {
  BoundedMatrix weights(route.tokens, route.top_k);
  for (std::size_t slot = 0; slot < route.weights.size(); ++slot) {
    weights.value[slot] = route.weights[slot].value;
    weights.stored[slot] = route.weights[slot].stored;
    weights.own[slot] = route.weights[slot].own;
  }
  return bounds::bounded_output(weights);
}

/// The stored ids and weights, which the original computed the experts' outputs from; what is not
/// stored is ours.
BoundedRoute stored_route(const GoldenCase& golden, const BoundedRoute& ours,
                          std::int64_t experts) {
  const auto ids = stored_ids(golden, ours.tokens, ours.top_k, experts);
  const TensorView* weights = golden.find_output("topk_weights");
  if (!ids || weights == nullptr || weights->shape != Shape{ours.tokens, ours.top_k}) return ours;
  return bounds::exact_route(*ids, to_doubles(*weights), ours.tokens, ours.top_k);
}

/// A block evaluated once for each precision that its outputs ask for.
class BlockEvaluations {
 public:
  BlockEvaluations(const MoeLayer& layer, const BoundedMatrix& hidden, BoundedRoute route)
      : layer_(layer), hidden_(hidden), route_(std::move(route)) {}

  const bounds::BlockOutputs& at(Precision precision) {
    const auto found = done_.find(precision);
    if (found != done_.end()) return found->second;
    return done_
        .emplace(precision,
                 bounds::evaluate_outputs(bounds::arithmetic(precision), layer_, hidden_, route_))
        .first->second;
  }

 private:
  const MoeLayer& layer_;
  const BoundedMatrix& hidden_;
  BoundedRoute route_;
  std::map<Precision, bounds::BlockOutputs> done_;
};

/// An output of the experts, from the stored ids and weights.
struct StoredRouteOutput {
  std::string_view name;
  BoundedMatrix bounds::BlockOutputs::*part;
};

constexpr std::array kStoredRouteOutputs{
    StoredRouteOutput{"routed_f64", &bounds::BlockOutputs::routed},
    StoredRouteOutput{"slot_f64", &bounds::BlockOutputs::slots},
    StoredRouteOutput{"shared_f64", &bounds::BlockOutputs::shared},
    StoredRouteOutput{"final_f64", &bounds::BlockOutputs::final_output},
};

}  // namespace

OpResult run_moe_block(const GoldenCase& golden) {
  const MoeLayer layer = load_layer(golden);
  const BoundedMatrix hidden = exact_rows(golden, golden.input("hidden"), layer.hidden);
  OpResult result;
  result.statements = check_logical_hashes(golden, layer);

  const Arithmetic& f32 = bounds::arithmetic(Precision::f32);
  const BoundedMatrix bias = selection_bias(layer);
  const BoundedMatrix logits = bounds::router_logits(f32, layer, hidden);
  const Choice choice =
      settle_choice(golden, layer, bounds::choice_values(f32, layer, logits, bias));
  if (const TensorView* given = golden.find_input("router_logits_f64")) {
    const BoundedMatrix wide =
        bounds::router_logits(bounds::arithmetic(Precision::f64), layer, hidden);
    result.statements.push_back(
        compare_bound("in.router_logits_f64", "bound f64", *given, bounds::bounded_output(wide)));
  }
  result.outputs.emplace("topk_ids", choice.sets);

  const auto routed_by_us = [&](Precision precision) {
    const Arithmetic& arithmetic = bounds::arithmetic(precision);
    return bounds::weigh(arithmetic, layer, bounds::router_logits(arithmetic, layer, hidden),
                         choice.settled, layer.routing.top_k);
  };
  const BoundedRoute weights = routed_by_us(precision_of(golden, "topk_weights"));
  result.outputs.emplace("topk_weights", weights_output(weights));

  BlockEvaluations from_stored(layer, hidden, stored_route(golden, weights, logits.cols));
  for (const StoredRouteOutput& output : kStoredRouteOutputs) {
    if (golden.find_output(output.name) == nullptr) continue;
    const BoundedMatrix& part = from_stored.at(precision_of(golden, output.name)).*output.part;
    if (part.rows == 0 && hidden.rows != 0)
      continue;  // no shared expert: the comparison says that there is no such output
    result.outputs.emplace(std::string(output.name), bounds::bounded_output(part));
  }
  if (golden.find_output("module_f32") != nullptr) {
    const Precision precision = precision_of(golden, "module_f32");
    const bounds::BlockOutputs whole = bounds::evaluate_outputs(
        bounds::arithmetic(precision), layer, hidden, routed_by_us(precision));
    result.outputs.emplace("module_f32", bounds::bounded_output(whole.final_output));
  }
  return result;
}

OpResult run_moe_routing(const GoldenCase& golden) {
  MoeLayer layer = load_layer(golden);
  const auto given = golden.params.find("routing_and_activation");
  if (given != golden.params.end() && given->is_object() && given->contains("k")) {
    if (!(*given)["k"].is_number_integer()) {
      fail(golden.subject("params.routing_and_activation.k"), "is {}, needs an integer",
           shown((*given)["k"]));
    }
    layer.routing.top_k = (*given)["k"].get<std::int64_t>();
  }
  if (golden.find_input("input_ids") == nullptr) layer.expert_table = {};  // routed by score alone
  const TensorView* narrow = golden.find_input("router_logits_f32");
  const BoundedMatrix logits =
      exact_rows(golden, narrow != nullptr ? *narrow : golden.input("router_logits_f64"),
                 layer.expert_count());
  const TensorView* correction = golden.find_input("correction_bias");
  const BoundedMatrix bias =
      correction != nullptr ? exact_row(to_doubles(*correction)) : selection_bias(layer);

  const Arithmetic& f32 = bounds::arithmetic(Precision::f32);
  const Choice choice =
      settle_choice(golden, layer, bounds::choice_values(f32, layer, logits, bias));
  OpResult result;
  result.outputs.emplace("topk_ids", choice.sets);
  result.outputs.emplace(
      "topk_weights",
      weights_output(bounds::weigh(bounds::arithmetic(precision_of(golden, "topk_weights")), layer,
                                   logits, choice.settled, layer.routing.top_k)));
  return result;
}

}  // namespace moeref::conform
