// moeref layout list, moeref backends: the tables of backends and steps.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "cli/layout_commands.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

std::string rule_text(const AlignmentRule& rule) {
  return fmt::format("{} % {}{}{}", rule.size, rule.multiple, rule.when.empty() ? "" : " if ",
                     rule.when);
}

/// What a layer needs with the default options, whose padding leads to whatever the kernel wants.
std::vector<std::string> default_rules(const Backend& backend) {
  std::vector<std::string> texts;
  for (const AlignmentRule& rule : rules_for(backend, parse_options(backend, {}))) {
    if (!rule.size.starts_with("padded")) texts.push_back(rule_text(rule));
  }
  return texts;
}

std::string value_text(const OptionInfo& option) {
  if (option.is_integer()) return "an integer";
  if (option.is_number()) return "a number";
  return fmt::format("{}", fmt::join(option.values, " | "));
}

json to_json(std::span<const OptionInfo> all) {
  json options = json::array();
  for (const OptionInfo& option : all) {
    options.push_back({{"name", option.name},
                       {"values", option.values},
                       {"default", option.default_value()},
                       {"summary", option.summary}});
  }
  return options;
}

json to_json(const Backend& backend) {
  json rules = json::array();
  for (const AlignmentRule& rule : backend.rules) {
    rules.push_back({{"size", rule.size},
                     {"multiple", rule.multiple},
                     {"when", rule.when},
                     {"reason", rule.reason}});
  }
  return {{"name", backend.name},
          {"family", backend.family},
          {"summary", backend.summary},
          {"formats", backend.formats},
          {"options", to_json(backend.options)},
          {"rules", rules},
          {"kernel_options", to_json(backend.kernel_options)},
          {"replay",
           {{"evidence", name(backend.replay.evidence)},
            {"note", backend.replay.note},
            {"rounding", backend.replay.rounding}}}};
}

void print_table() {
  constexpr std::size_t kName = 30;
  constexpr std::size_t kIndent = 2 + kName + 1;
  std::string_view family;
  for (const Backend* backend : all_backends()) {
    if (backend->family != family) {
      fmt::print("{}{}\n", family.empty() ? "" : "\n", backend->family);
      family = backend->family;
    }
    fmt::print("  {:{}} {}\n", backend->name, kName,
               wrapped(std::string(backend->summary), kIndent));
    const std::vector<std::string> rules = default_rules(*backend);
    std::string facts = fmt::format("takes {}", fmt::join(backend->formats, ", "));
    if (!rules.empty()) facts += fmt::format("; needs {}", fmt::join(rules, ", "));
    fmt::print("{}{}\n", std::string(kIndent, ' '), wrapped(facts, kIndent));
  }
}

/// The step that commands know by the name in front of the parameters of `text`, or nullptr.
const NamedStep* named(const std::string& text) {
  const std::string name = text.substr(0, text.find('('));
  for (const NamedStep& step : all_steps()) {
    if (step.name == name) return &step;
  }
  return nullptr;
}

void print_steps() {
  for (const NamedStep& step : all_steps()) {
    const std::string call = step.parameters.empty()
                                 ? std::string(step.name)
                                 : fmt::format("{}({})", step.name, step.parameters);
    fmt::print("{:40} {:7} {}\n", call, name(step.kind), wrapped(std::string(step.summary), 49));
    fmt::print("{:49}{}\n", "", wrapped(std::string(step.source), 49));
  }
}

json steps_to_json() {
  json steps = json::array();
  for (const NamedStep& step : all_steps()) {
    steps.push_back({{"name", step.name},
                     {"parameters", step.parameters},
                     {"kind", name(step.kind)},
                     {"summary", step.summary},
                     {"source", step.source}});
  }
  return steps;
}

/// The recipe for one form of layer.
struct Sample {
  std::string weight_format;
  LayerShape shape;
  Recipe recipe;
  std::vector<std::string> with_bias;  ///< tensors that only a layer with biases has
};

std::int64_t multiple_of(std::span<const AlignmentRule> rules, std::string_view size,
                         const LayerShape& shape) {
  std::int64_t multiple = 32;
  for (const AlignmentRule& rule : rules) {
    if (rule.size == size && applies(rule, shape)) multiple = std::lcm(multiple, rule.multiple);
  }
  return multiple;
}

std::optional<Recipe> try_recipe(const Backend& backend, const LayerShape& shape,
                                 const Options& options, std::string& refusal) {
  try {
    return make_recipe(backend, shape, options);
  } catch (const Error& refused) {
    refusal = refused.what();
    return std::nullopt;
  }
}

/// A layer of a common size that the backend takes. Sizes of GPT-OSS first: they need padding.
std::optional<Sample> sample_of(const Backend& backend, std::string_view format, bool gated,
                                const Options& options, std::string& refusal) {
  constexpr std::array<std::pair<std::int64_t, std::int64_t>, 4> kSizes{
      {{2880, 2880}, {4096, 1536}, {7168, 2048}, {4096, 4096}}};
  const std::vector<AlignmentRule> rules = rules_for(backend, options);
  for (const auto& [hidden, intermediate] : kSizes) {
    Sample sample;
    sample.weight_format = format;
    LayerShape& shape = sample.shape;
    shape.model = "a sample layer";
    shape.weight_format = format;
    shape.gated = gated;
    const auto rounded = [&](std::int64_t size, std::string_view what) {
      const std::int64_t multiple = multiple_of(rules, what, shape);
      return ceil_div(size, multiple) * multiple;
    };
    shape.experts = shape.total_experts = multiple_of(rules, "experts", shape);
    shape.hidden = rounded(hidden, "hidden");
    shape.intermediate = shape.stride = shape.full_intermediate =
        rounded(intermediate, "intermediate");
    const auto plain = try_recipe(backend, shape, options, refusal);
    shape.bias = true;
    std::string no_bias;
    const auto biased = try_recipe(backend, shape, options, no_bias);
    shape.bias = static_cast<bool>(biased);
    if (!plain && !biased) continue;
    sample.recipe = biased ? *biased : *plain;
    if (plain && biased) {
      for (const TensorRecipe& tensor : biased->tensors) {
        const bool always =
            std::any_of(plain->tensors.begin(), plain->tensors.end(),
                        [&](const TensorRecipe& other) { return other.name == tensor.name; });
        if (!always) sample.with_bias.push_back(tensor.name);
      }
    }
    return sample;
  }
  return std::nullopt;
}

json recipe_to_json(const Sample& sample) {
  json tensors = json::array();
  for (const TensorRecipe& tensor : sample.recipe.tensors) {
    json steps = json::array();
    for (const Step& step : tensor.steps) {
      steps.push_back({{"step", describe(step)}, {"kind", name(kind_of(step))}});
    }
    tensors.push_back({{"name", tensor.name},
                       {"from", name(tensor.from)},
                       {"steps", steps},
                       {"kernel_steps", tensor.kernel_steps}});
  }
  json scalars = json::array();
  for (const ScalarRecipe& scalar : sample.recipe.scalars) {
    scalars.push_back(
        {{"name", scalar.name}, {"formula", scalar.formula}, {"per_expert", scalar.per_expert}});
  }
  return {{"format", sample.weight_format},
          {"gated", sample.shape.gated},
          {"hidden", sample.shape.hidden},
          {"intermediate", sample.shape.intermediate},
          {"tensors", tensors},
          {"with_bias_only", sample.with_bias},
          {"scalars", scalars},
          {"notes", sample.recipe.notes}};
}

std::string steps_text(const TensorRecipe& tensor) {
  if (tensor.steps.empty()) return "as it is";
  std::vector<std::string> steps;
  for (std::size_t i = 0; i < tensor.steps.size(); ++i) {
    const bool kernel = i + tensor.kernel_steps == tensor.steps.size();
    if (kernel && i > 0) steps.emplace_back("|");
    steps.push_back(describe(tensor.steps[i]));
  }
  return fmt::format("{}", fmt::join(steps, "  "));
}

void print_recipe(const Sample& sample) {
  constexpr std::size_t kIndent = 28;
  for (const TensorRecipe& tensor : sample.recipe.tensors) {
    const bool biased = std::find(sample.with_bias.begin(), sample.with_bias.end(), tensor.name) !=
                        sample.with_bias.end();
    std::string from =
        tensor.name == name(tensor.from) ? "" : fmt::format("of {}: ", name(tensor.from));
    if (biased) from = "(if there are biases) " + from;
    fmt::print("    {:23} {}\n", tensor.name, wrapped(from + steps_text(tensor), kIndent));
  }
  for (const ScalarRecipe& scalar : sample.recipe.scalars) {
    fmt::print(
        "    {:23} {}\n", scalar.name,
        wrapped(fmt::format("= {}{}", scalar.formula, scalar.per_expert ? "" : "  (one number)"),
                kIndent));
  }
  for (const std::string& note : sample.recipe.notes) {
    fmt::print("    note: {}\n", wrapped(note, 10));
  }
}

std::vector<Sample> samples_of(const Backend& backend, const Options& options,
                               std::vector<std::string>& refusals) {
  std::vector<Sample> samples;
  for (const std::string_view format : backend.formats) {
    for (const bool gated : {true, false}) {
      std::string refusal;
      if (auto sample = sample_of(backend, format, gated, options, refusal)) {
        samples.push_back(std::move(*sample));
      } else {
        refusals.push_back(
            fmt::format("{}, {}: {}", format, gated ? "gated" : "not gated", refusal));
      }
    }
  }
  return samples;
}

void print_option(const OptionInfo& option) {
  constexpr std::size_t kIndent = 28;
  fmt::print(
      "    {:23} {}\n{:28}{}\n", option.name,
      wrapped(fmt::format("{} (default {})", value_text(option), option.default_value()), kIndent),
      "", wrapped(std::string(option.summary), kIndent));
}

void print_options(const Backend& backend) {
  constexpr std::size_t kRule = 35;
  if (!backend.options.empty()) fmt::print("\nOptions (the first value is the default)\n");
  for (const OptionInfo& option : backend.options) print_option(option);
  if (!backend.rules.empty()) fmt::print("\nRules\n");
  for (const AlignmentRule& rule : backend.rules) {
    const std::string text = rule_text(rule);
    const std::string gap = text.size() <= kRule ? "" : fmt::format("\n{:{}}", "", kRule + 4);
    fmt::print("    {:{}}{} {}\n", text, kRule, gap, wrapped(std::string(rule.reason), kRule + 5));
  }
}

/// The numerics of a gated layer without parameters under these options; nothing if there are none.
std::optional<Numerics> usual_numerics(const Backend& backend, const Options& options,
                                       std::string& refusal) {
  NumericsRequest request;
  request.shape.hidden = request.shape.intermediate = request.shape.stride = 1024;
  request.shape.experts = request.shape.total_experts = 8;
  request.options = options;
  request.kernel = parse_kernel_options(backend, {});
  request.tokens = 64;
  request.top_k = 2;
  request.static_scales = true;
  try {
    return numerics_for(backend, request);
  } catch (const Error& refused) {
    refusal = refused.what();
    return std::nullopt;
  }
}

void print_quantizer(std::string_view stage, const ActivationQuantizer& quantizer) {
  if (!quantizer) return;
  fmt::print("    {:23} {}{}{}{}{}\n", stage, quantizer.quantizer,
             quantizer.options.empty() ? "" : " ", fmt::join(quantizer.options, " "),
             quantizer.scale.empty()   ? ""
             : quantizer.inverts_scale ? ", scale 1 / "
                                       : ", scale ",
             quantizer.scale);
}

/// What becomes of the activations under these options.
void print_quantizers(const Backend& backend, const Options& options) {
  fmt::print("\nActivations\n");
  std::string refusal;
  const std::optional<Numerics> numerics = usual_numerics(backend, options, refusal);
  if (!numerics) {
    fmt::print("    {}\n", wrapped(refusal, 4));
    return;
  }
  if (!numerics->input && !numerics->intermediate) fmt::print("    16 bits, as they are\n");
  print_quantizer("input", numerics->input);
  print_quantizer("output of GEMM1", numerics->gemm1_output);
  print_quantizer("intermediate", numerics->intermediate);
}

void print_kernel_options(const Backend& backend) {
  if (backend.kernel_options.empty()) return;
  fmt::print("\nKernel (--kernel of golden and run; the first value is the default)\n");
  for (const OptionInfo& option : backend.kernel_options) print_option(option);
}

json quantizer_json(std::string_view stage, const ActivationQuantizer& use) {
  json entry{{"stage", stage}, {"quantizer", use.quantizer}, {"options", use.options}};
  if (!use.scale.empty()) entry["scale"] = use.scale;
  if (use.inverts_scale) entry["inverts_scale"] = true;
  return entry;
}

json activations_json(const Backend& backend, const Options& options) {
  json report = json::array();
  std::string refusal;
  const std::optional<Numerics> numerics = usual_numerics(backend, options, refusal);
  if (!numerics) return report;
  if (numerics->input) report.push_back(quantizer_json("input", numerics->input));
  if (numerics->gemm1_output) report.push_back(quantizer_json("gemm1", numerics->gemm1_output));
  if (numerics->intermediate) {
    report.push_back(quantizer_json("intermediate", numerics->intermediate));
  }
  return report;
}

/// Samples of the same steps, told once.
void print_samples(const std::vector<Sample>& samples) {
  std::vector<std::pair<std::string, std::vector<const Sample*>>> groups;
  for (const Sample& sample : samples) {
    json told = recipe_to_json(sample);
    told.erase("format");
    told.erase("gated");
    const std::string text = told.dump();
    const auto known = std::find_if(groups.begin(), groups.end(),
                                    [&](const auto& group) { return group.first == text; });
    if (known == groups.end()) {
      groups.push_back({text, {&sample}});
    } else {
      known->second.push_back(&sample);
    }
  }
  for (const auto& [text, members] : groups) {
    std::vector<std::string> forms;
    for (const Sample* member : members) {
      forms.push_back(
          fmt::format("{} {}", member->weight_format, member->shape.gated ? "gated" : "not gated"));
    }
    fmt::print("\n{}\n", wrapped(fmt::format("{}: hidden {}, intermediate {}",
                                             fmt::join(forms, ", "), members.front()->shape.hidden,
                                             members.front()->shape.intermediate),
                                 2));
    print_recipe(*members.front());
  }
}

/// The steps of this backend that `layout list --steps` knows, each once.
void print_step_summaries(const std::vector<Sample>& samples) {
  std::map<std::string, std::string> summaries;
  for (const Sample& sample : samples) {
    for (const TensorRecipe& tensor : sample.recipe.tensors) {
      for (const Step& step : tensor.steps) {
        const std::string text = describe(step);
        const NamedStep* known = named(text);
        if (const auto* recode = std::get_if<Recode>(&step)) {
          summaries.emplace(recode->name, fmt::format("recodes: {}", recode->summary));
        } else if (known != nullptr) {
          summaries.emplace(std::string(known->name), std::string(known->summary));
        }
      }
    }
  }
  if (!summaries.empty()) fmt::print("\nSteps (before | the framework's, after it the kernel's)\n");
  for (const auto& [step, summary] : summaries) {
    fmt::print("    {:31} {}\n", step, wrapped(summary, 36));
  }
}

void list_backend(const std::string& name, const std::vector<std::string>& option_texts,
                  const GlobalOptions& global) {
  const Backend& backend = find_backend(name);
  const Options options = parse_options(backend, option_texts);
  std::vector<std::string> refusals;
  const std::vector<Sample> samples = samples_of(backend, options, refusals);
  if (global.json) {
    json report = to_json(backend);
    report["activations"] = activations_json(backend, options);
    report["recipes"] = json::array();
    for (const Sample& sample : samples) report["recipes"].push_back(recipe_to_json(sample));
    report["refused"] = refusals;
    print_json(report);
    return;
  }
  fmt::print("{} ({}): {}\ntakes {}\n", backend.name, backend.family,
             wrapped(std::string(backend.summary), 2), fmt::join(backend.formats, ", "));
  print_options(backend);
  print_quantizers(backend, options);
  print_kernel_options(backend);
  print_samples(samples);
  for (const std::string& refusal : refusals) {
    fmt::print("\nnot taken: {}\n", wrapped(refusal, 2));
  }
  print_step_summaries(samples);
}

struct Arguments {
  std::string backend;
  std::vector<std::string> options;
  bool steps = false;
};

void run_list(const Arguments& arguments, const GlobalOptions& global) {
  if (!arguments.backend.empty()) {
    if (arguments.steps) fail("--steps", "lists every step; leave the backend out");
    list_backend(arguments.backend, arguments.options, global);
    return;
  }
  if (!arguments.options.empty()) fail("--option", "belongs to a backend; name it");
  json report = json::object();
  if (arguments.steps) {
    if (global.json) {
      report["steps"] = steps_to_json();
    } else {
      print_steps();
    }
  } else if (global.json) {
    report["backends"] = json::array();
    for (const Backend* backend : all_backends()) report["backends"].push_back(to_json(*backend));
  } else {
    print_table();
  }
  if (global.json) print_json(report);
}

}  // namespace

void add_layout_list(CLI::App& layout, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = layout.add_subcommand("list", "backends, steps, alignment rules");
  command->add_option("--backend,backend", arguments->backend,
                      "tell this one's options, rules, steps of every tensor and formulas");
  command->add_option("--option", arguments->options, "show it with these options, key=value");
  command->add_flag("--steps", arguments->steps, "every step, with parameters and source");
  command->footer(
      "Examples:\n"
      "  moeref layout list\n"
      "  moeref layout list --steps\n"
      "  moeref layout list flashinfer_trtllm_nvfp4 --option pad=whole_upstream");
  command->callback([arguments, &global] { run_list(*arguments, global); });
}

/// The table of the README, made of the data that the engine runs on.
void print_numerics_table() {
  fmt::print("| backend | rounding points | replay | what was measured, or why not |\n");
  fmt::print("|---|---|---|---|\n");
  for (const Backend* backend : all_backends()) {
    const ReplayStatus& replay = backend->replay;
    const bool measured = replay.evidence == ReplayEvidence::measured;
    const std::string_view status =
        measured ? "measured bit-exact on hardware"
                 : (replay.evidence == ReplayEvidence::derived ? "derived" : "not replayable");
    fmt::print("| `{}` | {} | {} | {} |\n", backend->name, measured ? "measured" : replay.rounding,
               status, replay.note);
  }
}

void add_backends_command(CLI::App& app, const GlobalOptions& global) {
  CLI::App* command = app.add_subcommand("backends", "list the backends and what is known of them");
  auto numerics = std::make_shared<bool>(false);
  command->add_flag("--numerics", *numerics,
                    "a Markdown table of what --numerics backend and replay rest on");
  command->callback([numerics, &global] {
    if (*numerics && !global.json) {
      print_numerics_table();
    } else {
      run_list(Arguments{}, global);
    }
  });
}

}  // namespace moeref::cli
