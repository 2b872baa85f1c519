// moeref routing: the table of routing kernels.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/commands.hpp"
#include "cli/layout_commands.hpp"
#include "engine/routing_kernels.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

/// The text of an enumerator; each list is in the order of its enumeration.
template <typename Enumeration, std::size_t kCount>
std::string_view text_of(Enumeration value, const std::string_view (&texts)[kCount]) {
  return texts[static_cast<std::size_t>(value)];
}

constexpr std::string_view kTypes[] = {"f32", "bf16", "the logits' type"};
constexpr std::string_view kLevels[] = {"rounded", "precise", "fast_math"};
constexpr std::string_view kScores[] = {"x",
                                        "softmax: e / S, e = exp(x - max)",
                                        "softmax: e * (1 / S), e = exp(x - max)",
                                        "1 / (1 + exp(-x))",
                                        "1 / (1 + __expf(-x))",
                                        "tanh(x / 2) / 2 + 1/2",
                                        "sqrt(log1p(exp x))",
                                        "sqrt(x > 20 ? x : log1p(exp x))",
                                        "sqrt(x > 20 ? x : log(1 + exp x))",
                                        "sqrt(max(x, 0) + log1p(exp(-|x|)))",
                                        "softmax, rounded once",
                                        "sigmoid, rounded once",
                                        "sqrt(softplus x), rounded once"};
constexpr std::string_view kBiases[] = {"none", "added to the score", "added to the logit"};
constexpr std::string_view kGroupScores[] = {"none", "sum of the two largest choices",
                                             "largest choice"};
constexpr std::string_view kGroupOrders[] = {"the best stay, the first of equals",
                                             "the worst leaves first, the last of equals"};
constexpr std::string_view kFills[] = {"-infinity", "0"};
constexpr std::string_view kTies[] = {"lower index", "lowest reversed lane", "unspecified"};
constexpr std::string_view kSlots[] = {"by falling choice", "by rising expert", "unspecified"};
constexpr std::string_view kWeights[] = {"score",
                                         "choice - bias",
                                         "tanh(x / 2) / 2 + 1/2 of the logit",
                                         "softmax of the chosen logits: e / S",
                                         "softmax of the chosen logits, rounded once",
                                         "sigmoid of the logit, rounded once"};
constexpr std::string_view kShareUses[] = {"never", "if the layer asks", "always"};
constexpr std::string_view kShares[] = {"w / D", "w * (1 / D)", "(w * scaling) / D",
                                        "w * scaling / D in f64", "w * scaling / D, rounded once"};
constexpr std::string_view kDivisors[] = {"S", "S + epsilon", "max(S, epsilon)", "S > 0 ? S : 1"};
constexpr std::string_view kScalings[] = {"must be 1", "always", "only with shares"};
constexpr std::string_view kSums[] = {"unspecified", "serial", "32 lanes, butterfly",
                                      "vectors of 16 bytes over lanes, butterfly",
                                      "256 threads, tree in each warp, warps serially"};
constexpr std::string_view kNan[] = {"undefined", "chosen first, weights NaN"};

std::vector<std::string_view> names(const std::vector<Format>& formats) {
  std::vector<std::string_view> result;
  for (const Format format : formats) result.push_back(name(format));
  return result;
}

std::vector<std::string_view> names(const std::vector<RoutingMethod>& methods) {
  std::vector<std::string_view> result;
  for (const RoutingMethod method : methods) result.push_back(name(method));
  return result;
}

std::vector<std::string_view> levels(const RoutingKernel& kernel) {
  std::vector<std::string_view> result{text_of(RoutingArithmetic::rounded, kLevels)};
  for (const RoutingArithmetic level : kernel.replays) result.push_back(text_of(level, kLevels));
  return result;
}

std::vector<std::string> rules(const RoutingKernel& kernel) {
  std::vector<std::string> result;
  for (const RoutingRule& rule : kernel.rules) result.push_back(to_string(rule));
  return result;
}

bool is_softmax(ScoreForm form) {
  return form == ScoreForm::softmax_divided || form == ScoreForm::softmax_reciprocal;
}

bool sums_weights(const RoutingKernel& kernel) {
  return kernel.share_use != ShareUse::never || kernel.weight == RouteWeightForm::softmax_divided;
}

json to_json(const RoutingKernel& kernel) {
  json entry{{"name", kernel.name},
             {"family", kernel.family},
             {"summary", kernel.summary},
             {"source", kernel.source},
             {"evidence", kernel.evidence},
             {"open", kernel.open},
             {"methods", names(kernel.methods)},
             {"selects", kernel.selects},
             {"logits", names(kernel.logit_types)},
             {"nan_logits", text_of(kernel.nan_logits, kNan)},
             {"score", text_of(kernel.score, kScores)},
             {"score_type", text_of(kernel.score_type, kTypes)},
             {"bias", text_of(kernel.bias, kBiases)},
             {"bias_type", text_of(kernel.bias_type, kTypes)},
             {"choice_type", text_of(kernel.choice_type, kTypes)},
             {"group_score", text_of(kernel.group_score, kGroupScores)},
             {"group_order", text_of(kernel.group_order, kGroupOrders)},
             {"mask_fill", text_of(kernel.mask_fill, kFills)},
             {"ties", text_of(kernel.ties, kTies)},
             {"minus_zero_below_plus_zero", kernel.minus_zero_first},
             {"lanes_first", kernel.lanes_first},
             {"slots", text_of(kernel.slots, kSlots)},
             {"weight", text_of(kernel.weight, kWeights)},
             {"shares", text_of(kernel.share_use, kShareUses)},
             {"share", text_of(kernel.share, kShares)},
             {"divisor", text_of(kernel.divisor, kDivisors)},
             {"epsilon", kernel.epsilon},
             {"scaling", text_of(kernel.scaling, kScalings)},
             {"output_type", text_of(kernel.output_type, kTypes)},
             {"levels", levels(kernel)},
             {"replay_evidence", kernel.replay_evidence},
             {"rules", json::array()}};
  if (is_softmax(kernel.score)) entry["score_sum"] = text_of(kernel.score_sum, kSums);
  if (sums_weights(kernel)) entry["weight_sum"] = text_of(kernel.share_sum, kSums);
  // JSON has no infinity.
  if (kernel.floor) entry["floor"] = fmt::format("{}", *kernel.floor);
  for (const RoutingRule& rule : kernel.rules) {
    entry["rules"].push_back({{"rule", to_string(rule)}, {"reason", rule.reason}});
  }
  return entry;
}

void list_kernels(const GlobalOptions& global) {
  if (global.json) {
    json report = json::array();
    for (const RoutingKernel& kernel : all_routing_kernels()) report.push_back(to_json(kernel));
    return print_json(report);
  }
  constexpr std::size_t kName = 41;
  constexpr std::size_t kIndent = 2 + kName + 1;
  std::string_view family;
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    if (kernel.family != family) {
      fmt::print("{}{}\n", family.empty() ? "" : "\n", kernel.family);
      family = kernel.family;
    }
    fmt::print("  {:{}} {}\n", kernel.name, kName, wrapped(std::string(kernel.summary), kIndent));
    std::string facts =
        fmt::format("{} logits; ties: {}; known: {}", fmt::join(names(kernel.logit_types), ", "),
                    text_of(kernel.ties, kTies), kernel.evidence);
    if (!kernel.rules.empty()) facts += fmt::format("; needs {}", fmt::join(rules(kernel), ", "));
    fmt::print("{}{}\n", std::string(kIndent, ' '), wrapped(facts, kIndent));
  }
  fmt::print("\nmoeref routing NAME shows formulas, types, orders and the source.\n");
}

std::string typed(std::string_view text, ValueType type) {
  if (type == ValueType::f32) return std::string(text);
  return fmt::format("{}, rounded to {}", text, text_of(type, kTypes));
}

std::string score_text(const RoutingKernel& kernel) {
  std::string text = typed(text_of(kernel.score, kScores), kernel.score_type);
  if (is_softmax(kernel.score)) {
    text += fmt::format("; order of S: {}", text_of(kernel.score_sum, kSums));
  }
  return text;
}

std::string bias_text(const RoutingKernel& kernel) {
  std::string text = typed(text_of(kernel.bias, kBiases), kernel.bias_type);
  if (kernel.bias == BiasUse::score) {
    text += fmt::format("; the sum is {}", text_of(kernel.choice_type, kTypes));
  }
  return text;
}

std::string group_text(const RoutingKernel& kernel) {
  return fmt::format("{}; {}; {} outside", text_of(kernel.group_score, kGroupScores),
                     text_of(kernel.group_order, kGroupOrders), text_of(kernel.mask_fill, kFills));
}

std::string tie_text(const RoutingKernel& kernel) {
  std::string text(text_of(kernel.ties, kTies));
  text += kernel.minus_zero_first ? "; -0 is below +0" : "; -0 equals +0";
  if (kernel.lanes_first) text += "; 32 lanes compare their own first, where -0 equals +0";
  return text + fmt::format("; slots {}", text_of(kernel.slots, kSlots));
}

/// Few digits for a constant that is an f32.
std::string epsilon_text(double epsilon) {
  const auto narrow = static_cast<float>(epsilon);
  return static_cast<double>(narrow) == epsilon ? fmt::format("{} (f32)", narrow)
                                                : fmt::format("{}", epsilon);
}

std::string weight_text(const RoutingKernel& kernel) {
  std::string text(text_of(kernel.weight, kWeights));
  if (kernel.share_use != ShareUse::never && kernel.weight != RouteWeightForm::softmax_divided) {
    text += fmt::format("; {} {}, D = {}", text_of(kernel.share_use, kShareUses),
                        text_of(kernel.share, kShares), text_of(kernel.divisor, kDivisors));
    if (kernel.epsilon > 0.0) text += ", epsilon " + epsilon_text(kernel.epsilon);
  }
  if (sums_weights(kernel)) {
    text += fmt::format("; order of S: {}", text_of(kernel.share_sum, kSums));
  }
  return text;
}

void explain_kernel(const std::string& text, const GlobalOptions& global) {
  const RoutingKernel& kernel = find_routing_kernel(text);
  if (global.json) return print_json(to_json(kernel));
  const auto line = [](std::string_view label, std::string_view content) {
    if (!content.empty()) fmt::print("  {:9} {}\n", label, wrapped(std::string(content), 12));
  };
  fmt::print("{} ({})\n", kernel.name, kernel.family);
  line("what", kernel.summary);
  line("methods", fmt::format("{}", fmt::join(names(kernel.methods), ", ")));
  line("logits", fmt::format("{}; NaN: {}", fmt::join(names(kernel.logit_types), ", "),
                             text_of(kernel.nan_logits, kNan)));
  line("score", score_text(kernel));
  line("bias", bias_text(kernel));
  if (kernel.group_score != GroupScore::none) line("groups", group_text(kernel));
  line("ties", kernel.selects ? tie_text(kernel) : "none: the experts are given");
  line("weights", weight_text(kernel));
  line("scaling", text_of(kernel.scaling, kScalings));
  line("output", text_of(kernel.output_type, kTypes));
  line("needs", fmt::format("{}", fmt::join(rules(kernel), ", ")));
  line("levels", fmt::format("{}", fmt::join(levels(kernel), ", ")));
  line("replay", kernel.replay_evidence);
  line("known", kernel.evidence);
  line("open", kernel.open);
  line("source", kernel.source);
}

}  // namespace

void add_routing_command(CLI::App& app, const GlobalOptions& global) {
  CLI::App* command =
      app.add_subcommand("routing", "list the routing kernels of GPU stacks and what they round");
  const auto kernel = std::make_shared<std::string>();
  command->add_option("name", *kernel, "show all of this kernel");
  command->footer("Example: moeref routing sgl_topk_sigmoid");
  command->callback([kernel, &global] {
    if (kernel->empty()) return list_kernels(global);
    explain_kernel(*kernel, global);
  });
}

}  // namespace moeref::cli
