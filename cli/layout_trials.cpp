#include "cli/layout_trials.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <utility>

#include "cli/layout_commands.hpp"
#include "cli/progress.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

/// Error: the backend's rules refuse the shape; told before a layer of it is made.
void check_rules(const Backend& backend, const Options& options, const Trial& trial) {
  const EmptyRank empty = empty_rank(backend, options, trial.shape, trial.rank);
  make_recipe(backend, empty.tensors.shape, options);
}

Outcome audit_trial(const Backend& backend, const Options& options, const Trial& trial,
                    int threads) {
  Outcome outcome{trial, std::nullopt, ""};
  try {
    check_rules(backend, options, trial);
    outcome.report = audit(backend, options, sample_layer(trial.shape), trial.rank, threads);
  } catch (const Error& refused) {
    outcome.refusal = refused.what();
  }
  return outcome;
}

/// Once more with a limit if the backend refuses the layer: some kernels always clamp.
Outcome try_audit(const Backend& backend, const Options& options, Trial trial, int threads) {
  Outcome outcome = audit_trial(backend, options, trial, threads);
  if (outcome.report || !trial.shape.gated || trial.shape.bias) return outcome;
  trial.shape.limit = 0.5f;
  Outcome limited = audit_trial(backend, options, trial, threads);
  return limited.report ? limited : outcome;
}

/// Aligned, awkward, minimal, not gated, one and seven experts, ranks.
std::vector<Trial> zoo(const Backend& backend) {
  struct Sizes {
    std::int64_t experts, hidden, intermediate;
  };
  constexpr std::array<Sizes, 9> kSizes{{{1, 128, 128},
                                         {2, 256, 256},
                                         {7, 256, 128},
                                         {2, 512, 192},
                                         {3, 128, 96},
                                         {2, 384, 320},
                                         {1, 512, 208},
                                         {2, 128, 64},
                                         {2, 512, 256}}};
  constexpr std::array<Shard, 7> kRanks{
      {{}, {0, 2, 0, 1}, {1, 2, 0, 1}, {3, 8, 0, 1}, {7, 8, 0, 1}, {0, 1, 0, 4}, {0, 1, 3, 4}}};
  std::vector<Trial> trials;
  const auto add = [&](const Sizes& sizes, bool gated, std::string_view format, const Shard& rank) {
    SampleShape shape;
    shape.experts = sizes.experts;
    shape.hidden = sizes.hidden;
    shape.intermediate = sizes.intermediate;
    shape.gated = gated;
    shape.weight_format = format;
    trials.push_back({shape, rank});
    shape.bias = true;
    if (gated) trials.push_back({shape, rank});
  };
  for (const std::string_view format : backend.formats) {
    for (const Sizes& sizes : kSizes) {
      add(sizes, true, format, {});
      add(sizes, false, format, {});
    }
    for (const Shard& rank : kRanks) {
      if (!rank.is_whole()) add({4, 256, 512}, true, format, rank);
    }
  }
  return trials;
}

/// Awkward layers first: the smallest that breaks is looked for only if one of them does.
Variant try_variant(const Backend& backend, std::vector<std::string> texts, int threads) {
  Variant variant{std::move(texts), 0, std::nullopt, ""};
  const Options options = parse_options(backend, variant.texts);
  struct Awkward {
    std::int64_t hidden, intermediate;
    bool gated = true;
    bool bias = false;
    float limit = kNoLimit;
  };
  const std::vector<Awkward> all{{256, 128, true, false, 0.5f},
                                 {256, 128, true, true},
                                 {128, 96},
                                 {128, 72},
                                 {128, 104},
                                 {128, 80},
                                 {128, 96, false},
                                 {256, 128},
                                 {512, 256}};
  constexpr std::int64_t kEnough = 5;
  for (const Awkward& awkward : all) {
    Trial trial;
    trial.shape.hidden = awkward.hidden;
    trial.shape.intermediate = awkward.intermediate;
    trial.shape.gated = awkward.gated;
    trial.shape.bias = awkward.bias;
    trial.shape.limit = awkward.limit;
    trial.shape.weight_format = backend.formats.front();
    const Outcome outcome = try_audit(backend, options, trial, threads);
    if (!outcome.report) {
      variant.refusal = outcome.refusal;
      continue;
    }
    ++variant.tried;
    if (!outcome.report->survives) variant.found = smallest_break(backend, options, threads);
    if (variant.found || variant.tried == kEnough) break;
  }
  return variant;
}

/// "key=value" of every option value that is not the default.
std::vector<std::vector<std::string>> other_values(const Backend& backend) {
  std::vector<std::vector<std::string>> all;
  for (const OptionInfo& option : backend.options) {
    if (!option.is_choice()) continue;
    all.emplace_back();
    for (std::size_t i = 1; i < option.values.size(); ++i) {
      all.back().push_back(fmt::format("{}={}", option.name, option.values[i]));
    }
  }
  return all;
}

}  // namespace

std::string shape_text(const SampleShape& shape) {
  std::string text =
      fmt::format("experts={},hidden={},intermediate={},gated={},bias={},format={}", shape.experts,
                  shape.hidden, shape.intermediate, shape.gated, shape.bias, shape.weight_format);
  if (shape.limit != kNoLimit) text += fmt::format(",limit={}", shape.limit);
  return text;
}

std::string trial_text(const Trial& trial) {
  std::string text = shape_text(trial.shape);
  const Shard& rank = trial.rank;
  if (rank.tp_size > 1) text += fmt::format(" --tp {}/{}", rank.tp_rank, rank.tp_size);
  if (rank.ep_size > 1) text += fmt::format(" --ep {}/{}", rank.ep_rank, rank.ep_size);
  return text;
}

Zoo audit_samples(const Backend& backend, const Options& options, const GlobalOptions& global) {
  Zoo all;
  const std::vector<Trial> trials = zoo(backend);
  Progress progress(std::string(backend.name), global.quiet || global.json);
  for (const Trial& trial : trials) {
    all.outcomes.push_back(try_audit(backend, options, trial, global.threads));
    progress.show(static_cast<std::int64_t>(all.outcomes.size()),
                  static_cast<std::int64_t>(trials.size()));
  }
  for (const Outcome& outcome : all.outcomes) {
    if (!outcome.report) {
      ++all.refused;
    } else if (outcome.report->survives) {
      ++all.survived;
    } else {
      all.broken.push_back(&outcome);
    }
  }
  if (all.survived == 0 && all.broken.empty()) {
    fail(backend.name, "takes none of the {} sample layers ({}); give --shape", all.outcomes.size(),
         all.outcomes.front().refusal);
  }
  return all;
}

std::string Variant::text() const { return fmt::format("{}", fmt::join(texts, " ")); }

std::vector<Variant> try_variants(const Backend& backend, const GlobalOptions& global) {
  std::vector<Variant> variants;
  const auto options = other_values(backend);
  std::vector<std::pair<std::size_t, std::string>> harmless;
  for (std::size_t option = 0; option < options.size(); ++option) {
    for (const std::string& text : options[option]) {
      variants.push_back(try_variant(backend, {text}, global.threads));
      if (!variants.back().found) harmless.emplace_back(option, text);
    }
  }
  for (const auto& [option, text] : harmless) {
    for (const auto& [other, other_text] : harmless) {
      if (other <= option) continue;
      Variant both = try_variant(backend, {text, other_text}, global.threads);
      if (both.found) variants.push_back(std::move(both));
    }
  }
  return variants;
}

}  // namespace moeref::cli
