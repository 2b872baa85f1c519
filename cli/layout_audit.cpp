// moeref layout audit: does a layer keep its function when a backend prepares it?
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/layout_commands.hpp"
#include "cli/layout_source.hpp"
#include "cli/layout_trials.hpp"
#include "cli/selection.hpp"
#include "engine/audit.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

struct Arguments {
  BackendChoice choice;
  std::string checkpoint;
  std::optional<std::int64_t> layer;
  std::string shape;
  LogicalHints hints;
};

json to_json(const AuditReport& report) {
  json effects = json::array();
  for (const RecodingEffect& effect : report.effects) {
    effects.push_back({{"tensor", effect.tensor},
                       {"recoding", effect.recoding},
                       {"weights", effect.weights},
                       {"changed", effect.changed},
                       {"largest_change", effect.largest_change},
                       {"largest_output_change", effect.largest_output_change}});
  }
  const LayerShape& shape = report.shape;
  return {{"backend", report.backend},
          {"shape",
           {{"experts", shape.experts},
            {"hidden", shape.hidden},
            {"intermediate", shape.intermediate},
            {"stride", shape.stride},
            {"gated", shape.gated},
            {"bias", shape.bias},
            {"format", shape.weight_format},
            {"tp", fmt::format("{}/{}", shape.tp_rank, shape.tp_size)}}},
          {"survives", report.survives},
          {"outputs", report.outputs},
          {"differing", report.differing},
          {"first_difference", report.first_difference},
          {"note", report.note},
          {"effects", std::move(effects)}};
}

void print_effects(const AuditReport& report) {
  for (const RecodingEffect& effect : report.effects) {
    fmt::print("  {}\n",
               wrapped(fmt::format("{} by {}: {} of {} weights change, by at most {:.3g} of the "
                                   "largest weight; the output by {:.3g}",
                                   effect.tensor, effect.recoding, effect.changed, effect.weights,
                                   effect.largest_change, effect.largest_output_change),
                       4));
  }
}

void print_report(const AuditReport& report) {
  const LayerShape& shape = report.shape;
  fmt::print("{}: {} experts, hidden {}, intermediate {}{}, {}{}\n", report.backend, shape.experts,
             shape.hidden, shape.intermediate,
             shape.tp_size > 1 ? fmt::format(" (rank {}/{})", shape.tp_rank, shape.tp_size) : "",
             shape.weight_format, shape.gated ? "" : ", not gated");
  print_effects(report);
  if (!report.note.empty()) fmt::print("  note: {}\n", wrapped(report.note, 8));
  if (report.survives) {
    fmt::print("the function survives: {} outputs, all bits equal{}\n", report.outputs,
               report.effects.empty() ? "" : " after these recodings");
  } else {
    fmt::print("the function does NOT survive: {} of {} outputs differ\n  first: {}\n",
               report.differing, report.outputs, report.first_difference);
  }
}

void audit_one(const Backend& backend, const Options& options, const MoeLayer& layer,
               const Shard& rank, const GlobalOptions& global) {
  const AuditReport report = audit(backend, options, layer, rank, global.threads);
  if (global.json) {
    print_json(to_json(report));
  } else if (!global.quiet) {
    print_report(report);
  }
  if (!report.survives) throw ExitWith{1};
}

json to_json(const Variant& variant) {
  json entry{{"survives", !variant.found.has_value()}, {"tried", variant.tried}};
  if (variant.tried == 0) entry["refusal"] = variant.refusal;
  if (variant.found) {
    entry["smallest_broken"] = to_json(variant.found->report);
    entry["shape"] = shape_text(variant.found->shape);
  }
  return entry;
}

void print_variant(const Variant& variant) {
  if (variant.found) {
    const AuditReport& report = variant.found->report;
    fmt::print("{}: does NOT survive; the smallest shape that breaks is\n  {}\n    {}\n",
               variant.text(), shape_text(variant.found->shape),
               wrapped(fmt::format("{} of {} outputs differ, first: {}", report.differing,
                                   report.outputs, report.first_difference),
                       4));
  } else if (variant.tried == 0) {
    fmt::print("{}\n", wrapped(fmt::format("{}: takes none of the awkward layers ({})",
                                           variant.text(), variant.refusal),
                               2));
  } else {
    fmt::print("{}: survives on {} awkward layers\n", variant.text(), variant.tried);
  }
}

json to_json(const Zoo& all) {
  json report{{"survived", all.survived},
              {"refused", all.refused},
              {"broken", json::array()},
              {"audits", json::array()}};
  for (const Outcome& outcome : all.outcomes) {
    json entry{{"shape", trial_text(outcome.trial)}};
    if (outcome.report) {
      entry["report"] = to_json(*outcome.report);
    } else {
      entry["refusal"] = outcome.refusal;
    }
    report["audits"].push_back(std::move(entry));
  }
  for (const Outcome* outcome : all.broken) report["broken"].push_back(trial_text(outcome->trial));
  return report;
}

void print_zoo(const Backend& backend, const Zoo& all) {
  fmt::print("{}: {} sample layers keep their function, {} do not, {} are refused\n", backend.name,
             all.survived, all.broken.size(), all.refused);
  for (const Outcome* outcome : all.broken) {
    const AuditReport& report = *outcome->report;
    fmt::print("  {}\n    {}\n", trial_text(outcome->trial),
               wrapped(fmt::format("{} of {} outputs differ, first: {}", report.differing,
                                   report.outputs, report.first_difference),
                       4));
  }
  const auto recoded = std::find_if(
      all.outcomes.begin(), all.outcomes.end(),
      [](const Outcome& outcome) { return outcome.report && !outcome.report->effects.empty(); });
  if (recoded == all.outcomes.end()) return;
  fmt::print("recodings, on {}:\n", trial_text(recoded->trial));
  print_effects(*recoded->report);
}

/// The backend as chosen over the zoo; then where it breaks first: as chosen, or each other option
/// value.
void audit_zoo(const Backend& backend, const Arguments& arguments, const GlobalOptions& global) {
  const std::vector<std::string>& chosen = arguments.choice.options;
  const Options options = parse_options(backend, chosen);
  const Zoo all = audit_samples(backend, options, global);
  std::vector<Variant> variants;
  if (chosen.empty()) {
    variants = try_variants(backend, global);
  } else if (!all.broken.empty()) {
    Variant variant{chosen, 0, smallest_break(backend, options, global.threads), ""};
    if (variant.found) variants.push_back(std::move(variant));
  }
  if (global.json) {
    json report = to_json(all);
    report["backend"] = backend.name;
    report["options"] = options.values();
    report["variants"] = json::object();
    for (const Variant& variant : variants) report["variants"][variant.text()] = to_json(variant);
    print_json(report);
  } else if (!global.quiet) {
    print_zoo(backend, all);
    for (const Variant& variant : variants) print_variant(variant);
  }
  if (!all.broken.empty()) throw ExitWith{1};
}

void run_audit(const Arguments& arguments, const GlobalOptions& global) {
  const Backend& backend = find_backend(arguments.choice.backend);
  const Options options = parse_options(backend, arguments.choice.options);
  const Shard rank = parse_shard(arguments.choice.tp, arguments.choice.ep);
  if (!arguments.checkpoint.empty()) {
    if (!arguments.shape.empty()) {
      fail("--shape", "is for sample layers; {} has its own", arguments.checkpoint);
    }
    const LayerSource source =
        open_layer_source(arguments.checkpoint, arguments.layer, arguments.hints);
    if (source.part) {
      fail(arguments.checkpoint, "holds one rank's part; audit the whole layer with --tp or --ep");
    }
    audit_one(backend, options, source.layer, rank, global);
    return;
  }
  if (arguments.layer) fail("--layer", "goes with a checkpoint");
  if (!arguments.hints.order.empty() || !arguments.hints.format.empty()) {
    fail(arguments.hints.order.empty() ? "--format" : "--order",
         "goes with a file of logical tensors; a sample layer's format is part of --shape");
  }
  if (!arguments.shape.empty()) {
    audit_one(backend, options, sample_layer(parse_sample_shape(arguments.shape, backend)), rank,
              global);
    return;
  }
  if (!rank.is_whole()) {
    fail(arguments.choice.tp.empty() ? "--ep" : "--tp",
         "needs --shape or a checkpoint; the sample layers have ranks of their own");
  }
  audit_zoo(backend, arguments, global);
}

}  // namespace

void add_layout_audit(CLI::App& layout, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = layout.add_subcommand(
      "audit", "does the function of a layer survive a backend's preparation?");
  command->add_option("backend", arguments->choice.backend, "backend, see layout list")->required();
  command->add_option("checkpoint", arguments->checkpoint,
                      "instead of sample layers: this one's, or a file of logical tensors");
  command->add_option("--layer", arguments->layer, "layer number of the checkpoint");
  command->add_option("--shape", arguments->shape,
                      "one sample layer: experts=2,hidden=256,intermediate=192,gated=true,"
                      "bias=false,format=nvfp4,seed=0");
  add_rank_options(*command, arguments->choice);
  command->add_option("--format", arguments->hints.format,
                      "weight format of logical tensors, if the file does not say it");
  command->add_option("--order", arguments->hints.order,
                      "gate_up, up_gate or interleaved rows of logical tensors, if the file does "
                      "not say it");
  command->footer(
      "Reads the prepared tensors as the kernel does, runs the exact engine on them and on the\n"
      "logical weights after the stated recodings, and compares all bits. Exit code 1 if they "
      "differ.\n"
      "Without a layer: many sample layers, and for every other option value the smallest shape\n"
      "that breaks.\n"
      "Examples:\n"
      "  moeref layout audit flashinfer_trtllm_nvfp4\n"
      "  moeref layout audit flashinfer_trtllm_nvfp4 --option pad=whole_upstream\n"
      "  moeref layout audit flashinfer_trtllm_nvfp4 --shape intermediate=192 --tp 1/2");
  command->callback([arguments, &global] { run_audit(*arguments, global); });
}

}  // namespace moeref::cli
