// moeref layout undo: prepared tensors back to logical ones, pads checked.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "cli/destination.hpp"
#include "cli/layout_commands.hpp"
#include "cli/layout_single.hpp"
#include "cli/layout_undoing.hpp"
#include "cli/logical_weights.hpp"
#include "cli/moe_case.hpp"
#include "cli/version.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

struct Arguments {
  ForeignTensor input;
  SingleTensor single;
  std::string out;
};

PreparedFile open_file(const Arguments& arguments) {
  if (!arguments.single.steps.empty()) return open_foreign(arguments.input, arguments.single);
  constexpr std::string_view kInstead = "the file says how it was prepared";
  if (!arguments.input.shape.empty()) fail("--shape", "goes with --steps; {}", kInstead);
  refuse_single(arguments.single, arguments.input.dtype, kInstead);
  PreparedFile opened = open_prepared(arguments.input.file);
  if (!arguments.input.tensor.empty()) {
    const PreparedTensor wanted =
        opened.layer.tensors[find_tensor(opened.layer, arguments.input.tensor)];
    if (wanted.from == nullptr) {
      fail(arguments.input.tensor, "holds factors made from scalars; only matrices can be undone");
    }
    opened.layer.tensors = {wanted};
  }
  return opened;
}

json recoded_of(const std::vector<Undoing>& undoings) {
  json recoded = json::object();
  for (const Undoing& undoing : undoings) {
    if (!undoing.written_as.empty() && !undoing.restoration.kept.empty()) {
      recoded[undoing.written_as] = undoing.restoration.kept;
    }
  }
  return recoded;
}

/// Tensors of the logical layer that no prepared tensor holds: folded or dropped.
std::vector<std::string> absent_of(const PreparedFile& file, const std::vector<Undoing>& undoings) {
  std::vector<std::string> absent;
  for (int i = 0; i < kSlotCount; ++i) {
    const auto slot = static_cast<Slot>(i);
    const TensorStack* source = file.layer.source->find(slot);
    // One scale of a whole matrix is among the scalars.
    if (source == nullptr || source->block_rows == kWholeAxis) continue;
    const bool written = std::any_of(undoings.begin(), undoings.end(), [&](const Undoing& undoing) {
      return undoing.written_as == name(slot);
    });
    if (!written) absent.emplace_back(name(slot));
  }
  return absent;
}

SafetensorsWriter::Metadata metadata_of(const PreparedFile& file,
                                        const std::vector<Undoing>& undoings, bool whole_layer) {
  json params;
  if (whole_layer) {
    params = to_json(*file.layer.source);
    for (const char* key : {"checkpoint", "layer"}) {
      if (file.params.contains(key)) params[key] = file.params[key];
    }
    add_rank(params, file.layer.rank, file.layer.range);
    params["undone_from"] = file.layer.backend->name;
    params["order"] = "gate_up";
  } else {
    params["order"] = file.layer.tensors.front().from->halves == 2 ? "gate_up" : "none";
  }
  if (json recoded = recoded_of(undoings); !recoded.empty()) params["recoded"] = std::move(recoded);
  return {{"op", std::string(whole_layer ? kLogicalWeights : "logical_tensor")},
          {"params", metadata_text(params)},
          {"source", std::string("moeref ") + kVersion}};
}

json report_of(const Undoing& undoing) {
  const UndoReport& report = undoing.report;
  json entry{{"tensor", undoing.tensor->name},
             {"logical", undoing.written_as},
             {"pads", report.pads},
             {"wrong_pads", report.wrong_pads},
             {"copies", report.copies},
             {"wrong_copies", report.wrong_copies},
             {"missing", undoing.missing},
             {"differing_experts", undoing.differing_experts},
             {"recoded", undoing.restoration.kept}};
  if (!undoing.first_wrong.empty()) entry["first_wrong"] = undoing.first_wrong;
  return entry;
}

/// "1024 pads, all right" or "1024 pads, 3 WRONG"
std::string count_text(std::int64_t count, std::int64_t wrong, std::string_view what) {
  if (count == 0) return "";
  return wrong == 0 ? fmt::format(", {} {} right", count, what)
                    : fmt::format(", {} of {} {} WRONG", wrong, count, what);
}

void print_undoing(const Undoing& undoing) {
  const UndoReport& report = undoing.report;
  const std::string target =
      undoing.written_as.empty() ? "(checks another tensor)" : "-> " + undoing.written_as;
  fmt::print("  {:24} {}{}{}\n", undoing.tensor->name, target,
             count_text(report.pads, report.wrong_pads, "pads"),
             count_text(report.copies, report.wrong_copies, "copies"));
  if (!undoing.first_wrong.empty()) fmt::print("    first: {}\n", undoing.first_wrong);
  if (undoing.differing_experts > 0) {
    fmt::print("    {} experts DIFFER from the tensor that is written\n",
               undoing.differing_experts);
  }
  if (undoing.missing > 0) {
    fmt::print("    {} elements are not in it; they are 0\n", undoing.missing);
  }
  if (!undoing.restoration.kept.empty()) {
    fmt::print("    codes stay as rewritten by {}\n", fmt::join(undoing.restoration.kept, ", "));
  }
}

json report_of(const FactorCheck& check) {
  json entry{{"tensor", check.name},
             {"factors", check.count},
             {"recomputed", check.recomputed},
             {"wrong", check.wrong}};
  if (!check.first_wrong.empty()) entry["first_wrong"] = check.first_wrong;
  return entry;
}

void print_factors(const FactorCheck& check) {
  const std::string found =
      check.recomputed
          ? count_text(check.count, check.wrong, "factors")
          : fmt::format(", {} factors, not recomputed: made from all block scales", check.count);
  fmt::print("  {:24} {}\n", check.name, found.substr(2));
  if (!check.first_wrong.empty()) fmt::print("    first: {}\n", check.first_wrong);
}

/// What has been found right.
std::string right_text(const std::vector<FactorCheck>& factors) {
  const bool all =
      !factors.empty() && std::all_of(factors.begin(), factors.end(),
                                      [](const FactorCheck& check) { return check.recomputed; });
  return all ? "every pad, copy and factor is right" : "every pad and copy is right";
}

void run_undo(const Arguments& arguments, const GlobalOptions& global) {
  check_destination(arguments.out, arguments.input.file, {});
  const PreparedFile file = open_file(arguments);
  const bool whole_layer = file.layer.backend != nullptr && arguments.input.tensor.empty();
  std::vector<Undoing> undoings = plan_undo(file, file.layer.backend == nullptr);
  CaseWriter writer;
  add_undone(writer, file, undoings, global.threads);
  if (whole_layer) add_logical_scalars(writer, *file.layer.source);
  const std::vector<FactorCheck> factors =
      whole_layer ? check_factors(file) : std::vector<FactorCheck>{};
  writer.write(arguments.out, metadata_of(file, undoings, whole_layer));
  bool right = true;
  for (Undoing& undoing : undoings) {
    explain_wrong(file, undoing);
    right = right && undoing.is_right();
  }
  for (const FactorCheck& check : factors) right = right && check.wrong == 0;
  const std::vector<std::string> absent =
      whole_layer ? absent_of(file, undoings) : std::vector<std::string>{};
  if (global.json) {
    json report{{"file", arguments.out}, {"right", right}, {"absent", absent}};
    report["tensors"] = json::array();
    for (const Undoing& undoing : undoings) report["tensors"].push_back(report_of(undoing));
    report["factors"] = json::array();
    for (const FactorCheck& check : factors) report["factors"].push_back(report_of(check));
    print_json(report);
  } else if (!global.quiet) {
    for (const Undoing& undoing : undoings) print_undoing(undoing);
    for (const FactorCheck& check : factors) print_factors(check);
    if (!absent.empty()) {
      fmt::print("  not among the prepared tensors: {}\n", fmt::join(absent, ", "));
    }
    fmt::print("{}\n-> {}\n", right ? right_text(factors) : "WRONG", arguments.out);
  }
  if (!right) throw ExitWith{1};
}

}  // namespace

void add_layout_undo(CLI::App& layout, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = layout.add_subcommand(
      "undo", "prepared tensors back to logical ones; checks pads, copies and factors");
  command
      ->add_option("file", arguments->input.file,
                   "file of layout apply or of golden --weights; with --steps any tensor file")
      ->required();
  command->add_option("tensor", arguments->input.tensor, "this tensor alone");
  add_single_options(*command, arguments->single);
  command->add_option("--shape", arguments->input.shape,
                      "with --steps: experts,rows,columns of the logical tensor, in elements");
  command->add_option("--dtype", arguments->input.dtype,
                      "with --steps: of the logical tensor, if the steps change it");
  command->add_option("-o,--out", arguments->out, "file to write")->required();
  command->footer(
      "Writes w13 (gate rows, then up rows), w13_scale, w2, ... with what a later apply needs.\n"
      "Exit code 1 if a pad or a copy does not hold what the layout says, or a factor not what "
      "its\n"
      "formula gives. Factors that all block scales enter are not recomputed.\n"
      "Examples:\n"
      "  moeref layout undo prepared.safetensors -o logical.safetensors\n"
      "  moeref layout undo gpu.safetensors w13_sf --steps swizzle_128x4 --shape 8,512,16 \\\n"
      "      -o scales.safetensors");
  command->callback([arguments, &global] { run_undo(*arguments, global); });
}

}  // namespace moeref::cli
