#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.hpp"
#include "cli/inspect.hpp"
#include "cli/progress.hpp"

namespace moeref::cli {
namespace {

struct Arguments {
  std::string path;
  std::string pattern;
  bool no_values = false;
};

void run_inspect(const Arguments& arguments, const GlobalOptions& global) {
  Progress progress("inspect", global.quiet);
  InspectOptions options;
  options.values = !arguments.no_values;
  options.tensor_pattern = arguments.pattern;
  options.threads = global.threads;
  options.progress = [&progress](std::uint64_t done, std::uint64_t total) {
    progress.show(static_cast<std::int64_t>(done), static_cast<std::int64_t>(total));
  };
  const InspectReport report = inspect(arguments.path, options);
  if (global.json) {
    print_json(report_json(report));
  } else {
    fmt::print("{}", report_text(report));
  }
}

}  // namespace

void add_inspect_command(CLI::App& app, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "show tensors, formats and value statistics of a file or model, and what is suspicious");
  command->add_option("path", arguments->path, "safetensors file, index, or model folder")
      ->required();
  command->add_option(
      "--tensor", arguments->pattern,
      "only tensors with this in their name, or that match this glob (* and ?); one line each");
  command->add_flag("--no-values", arguments->no_values,
                    "read the headers only: at once, whatever the size");
  command->footer(
      "Tensors whose names differ in numbers only share a line: experts.{0..127}. \"at max\" is "
      "the share of codes\n"
      "of the largest magnitude. Findings: error = no reader can make sense of it, warning = very "
      "likely not what\n"
      "was meant, note = legal, and a trap for some reader. The exit code is 0 whatever is found; "
      "scripts take\n"
      "--json and the codes.\n\n"
      "Examples:\n"
      "  moeref inspect gpt-oss-20b                                     a whole checkpoint\n"
      "  moeref inspect DeepSeek-V3 --no-values                         names, shapes, formats "
      "only\n"
      "  moeref inspect model.safetensors --tensor '*experts.17.*'      one expert, tensor by "
      "tensor\n"
      "  moeref inspect gpt-oss-20b --json | jq '.findings[].code'");
  command->callback([arguments, &global] { run_inspect(*arguments, global); });
}

}  // namespace moeref::cli
