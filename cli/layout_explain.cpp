// moeref layout explain: what a byte of a prepared tensor is, and where a logical element stands.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "cli/layout_commands.hpp"
#include "cli/layout_place.hpp"
#include "cli/layout_single.hpp"
#include "cli/prepared_file.hpp"
#include "cli/selection.hpp"
#include "layout/explain.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

struct Arguments {
  std::vector<std::string> what;  ///< FILE TENSOR; with --backend: TENSOR
  BackendChoice choice;
  SingleTensor single;
  std::string shape;
  std::string dtype;
  std::string at;
  std::string find;
};

Subject subject_of_shape(const Arguments& arguments) {
  if (arguments.what.size() > 1) {
    fail(arguments.what.front(), "is a file's name; a file says its backend, leave --backend out");
  }
  if (!arguments.single.steps.empty()) {
    fail("--steps", "names the steps of one tensor of a file; {} has its own",
         arguments.choice.backend);
  }
  refuse_single(arguments.single, arguments.dtype, "a backend knows its tensors");
  const Backend& backend = find_backend(arguments.choice.backend);
  const Options options = parse_options(backend, arguments.choice.options);
  EmptyRank empty = empty_rank(backend, options, parse_sample_shape(arguments.shape, backend),
                               parse_shard(arguments.choice.tp, arguments.choice.ep));
  Subject subject;
  subject.file.layer =
      plan_empty(backend, options, std::move(empty.tensors), empty.rank, kMostElements);
  if (!arguments.what.empty()) subject.tensor = arguments.what.front();
  return subject;
}

Subject subject_of_file(const Arguments& arguments) {
  if (arguments.what.empty()) {
    fail("layout explain", "give a file and a tensor, or --backend, --shape and a tensor");
  }
  Subject subject;
  if (arguments.what.size() > 1) subject.tensor = arguments.what[1];
  if (!arguments.single.steps.empty()) {
    subject.file =
        open_foreign({arguments.what.front(), subject.tensor, arguments.shape, arguments.dtype},
                     arguments.single);
    return subject;
  }
  refuse_single(arguments.single, arguments.dtype, "the file says how it was prepared");
  const BackendChoice& choice = arguments.choice;
  if (!choice.options.empty() || !choice.tp.empty() || !choice.ep.empty() ||
      !arguments.shape.empty()) {
    fail(arguments.what.front(), "says its backend, options, rank and shape; leave them out");
  }
  subject.file = open_prepared(arguments.what.front());
  if (subject.tensor.empty() && subject.layer().tensors.size() == 1) {
    subject.tensor = subject.layer().tensors.front().name;
  }
  return subject;
}

std::vector<std::string> steps_of(const PreparedLayer& layer, const PreparedTensor& tensor) {
  std::vector<std::string> steps;
  for (const TensorRecipe& recipe : layer.recipe.tensors) {
    if (recipe.name != tensor.name) continue;
    for (const Step& step : recipe.steps) steps.push_back(describe(step));
  }
  return steps;
}

void explain_matrix(const Subject& subject, const PreparedTensor& tensor, const Arguments& given,
                    const GlobalOptions& global) {
  const BitRange range = parse_at(given.at, tensor, byte_count(tensor));
  const auto meanings = explain_bits(subject.layer(), tensor, range.first, range.count);
  const auto bytes = subject.bytes(tensor);
  const std::vector<std::string> steps = steps_of(subject.layer(), tensor);
  if (global.json) {
    json report{{"tensor", tensor.name},
                {"byte", range.first / 8},
                {"bits", range.count},
                {"steps", steps},
                {"meanings", json::array()}};
    for (const Meaning& meaning : meanings) {
      json entry = to_json(meaning);
      if (!bytes.empty()) entry["value"] = bits_at(bytes, meaning.bit, meaning.bits);
      report["meanings"].push_back(std::move(entry));
    }
    print_json(report);
    return;
  }
  fmt::print("{} byte {:#x} ({})", tensor.name, range.first / 8, range.first / 8);
  if (range.count > 8) fmt::print(", {} bytes", range.count / 8);
  if (!bytes.empty()) {
    fmt::print(": {}", hex_bits(bits_at(bytes, range.first, range.count), range.count));
  }
  fmt::print("\n");
  for (const Meaning& meaning : meanings) {
    const std::string part = bits_text("bit", meaning.bit - range.first, meaning.bits, range.count);
    const std::string of = meaning.pad ? ""
                                       : bits_text("bit", meaning.element_bit, meaning.bits,
                                                   tensor.plan.map.element_bits);
    fmt::print("  {}{}{}{}{}\n", part, part.empty() ? "" : ": ", of, of.empty() ? "" : " of ",
               describe(meaning));
  }
  if (!steps.empty())
    fmt::print("  by {}\n", wrapped(fmt::format("{}", fmt::join(steps, ", ")), 5));
}

void explain_at(const Subject& subject, const Arguments& given, const GlobalOptions& global) {
  if (subject.tensor.empty()) {
    std::vector<std::string> names;
    for (const PreparedTensor& tensor : subject.layer().tensors) names.push_back(tensor.name);
    fail("--at", "needs a tensor; there are {}", fmt::join(names, ", "));
  }
  const PreparedTensor& tensor =
      subject.layer().tensors[find_tensor(subject.layer(), subject.tensor)];
  if (tensor.from != nullptr) {
    explain_matrix(subject, tensor, given, global);
    return;
  }
  const bool byte = given.at.starts_with("byte:");
  std::string text = byte ? given.at.substr(5) : given.at;
  if (text.starts_with("[") && text.ends_with("]")) text = text.substr(1, text.size() - 2);
  explain_scalar(subject, tensor, parse_number(text) / (byte ? 4 : 1), global);
}

void run_explain(const Arguments& arguments, const GlobalOptions& global) {
  if (arguments.at.empty() == arguments.find.empty()) {
    fail("layout explain", "give --at for a place, or --find for a logical element");
  }
  const Subject subject =
      arguments.choice.backend.empty() ? subject_of_file(arguments) : subject_of_shape(arguments);
  if (arguments.at.empty()) {
    explain_find(subject, arguments.find, global);
  } else {
    explain_at(subject, arguments, global);
  }
}

}  // namespace

void add_layout_explain(CLI::App& layout, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = layout.add_subcommand(
      "explain", "what a byte of a prepared tensor is, or where a logical element stands");
  command
      ->add_option("what", arguments->what,
                   "prepared file and tensor; with --backend the tensor alone")
      ->expected(0, 2);
  CLI::Option* at = command->add_option(
      "--at", arguments->at,
      "place: 17 (element of the tensor's dtype), byte:0x1f3c0, or [1,2,3] (coordinates)");
  command
      ->add_option("--find", arguments->find,
                   "logical element, \"expert=3 gate row=17 col=5\"; rows and columns of the named "
                   "tensor (scales: blocks), without a tensor those of the weight, in every tensor "
                   "that holds something of it")
      ->excludes(at);
  command->add_option("--backend", arguments->choice.backend,
                      "without a file: the backend, with --shape");
  command->add_option("--shape", arguments->shape,
                      "experts=8,hidden=2880,intermediate=2880,gated=true,bias=false,format=mxfp4; "
                      "with --steps experts,rows,columns");
  add_rank_options(*command, arguments->choice);
  add_single_options(*command, arguments->single);
  command->add_option("--dtype", arguments->dtype,
                      "with --steps: of the logical tensor, if the steps change it");
  command->footer(
      "Rows count those of the whole model, experts have their global ids.\n"
      "Examples:\n"
      "  moeref layout explain prepared.safetensors w13_scale --at byte:0x1f3c0\n"
      "  moeref layout explain prepared.safetensors --find \"expert=3 gate row=17 col=5\"\n"
      "  moeref layout explain w13 --backend flashinfer_trtllm_nvfp4 \\\n"
      "      --shape experts=8,hidden=2048,intermediate=768 --tp 1/2 --at 4096");
  command->callback([arguments, &global] { run_explain(*arguments, global); });
}

}  // namespace moeref::cli
