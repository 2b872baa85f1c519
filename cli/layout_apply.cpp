// moeref layout apply: a layer's weights as a backend prepares them, or one tensor through steps.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "cli/destination.hpp"
#include "cli/layout_commands.hpp"
#include "cli/layout_single.hpp"
#include "cli/layout_source.hpp"
#include "cli/moe_case.hpp"
#include "cli/prepared_file.hpp"
#include "cli/version.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

struct Arguments {
  std::string source;
  std::string tensor;
  std::optional<std::int64_t> layer;
  BackendChoice choice;
  std::string format;
  SingleTensor single;
  std::string out;
};

nlohmann::json report_of(const PreparedLayer& layer, const std::string& file) {
  nlohmann::json report{{"file", file}, {"tensors", nlohmann::json::array()}};
  if (layer.backend != nullptr) {
    report["backend"] = layer.backend->name;
    report["options"] = layer.options.values();
    report["notes"] = layer.recipe.notes;
  }
  for (const PreparedTensor& tensor : layer.tensors) {
    nlohmann::json entry{{"name", tensor.name},
                         {"dtype", name(tensor.dtype)},
                         {"shape", written_shape(tensor)},
                         {"bytes", byte_count(tensor)}};
    if (!tensor.strides.empty()) {
      entry["view"] = {{"shape", tensor.shape}, {"strides", tensor.strides}};
    }
    report["tensors"].push_back(std::move(entry));
  }
  return report;
}

void print_tensors(const PreparedLayer& layer) {
  for (const PreparedTensor& tensor : layer.tensors) {
    fmt::print("  {:24} {:8} {}", tensor.name, name(tensor.dtype),
               to_string(written_shape(tensor)));
    if (!tensor.strides.empty()) {
      fmt::print(", the kernel's view {} with strides {}", to_string(tensor.shape),
                 to_string(tensor.strides));
    }
    fmt::print("\n");
  }
}

void write(const std::shared_ptr<const PreparedLayer>& layer, std::string_view op,
           const nlohmann::json& params, const Arguments& arguments, const GlobalOptions& global,
           const std::string& headline) {
  CaseWriter writer;
  add_prepared(writer, layer, "", global.threads);
  writer.write(arguments.out, {{"op", std::string(op)},
                               {"params", metadata_text(params)},
                               {"source", std::string("moeref ") + kVersion}});
  if (global.json) {
    print_json(report_of(*layer, arguments.out));
  } else if (!global.quiet) {
    fmt::print("{}\n", headline);
    print_tensors(*layer);
    for (const std::string& note : layer->recipe.notes) {
      fmt::print("  note: {}\n", wrapped(note, 8));
    }
    fmt::print("-> {}\n", arguments.out);
  }
}

void apply_backend(const Arguments& arguments, const GlobalOptions& global) {
  if (!arguments.tensor.empty()) {
    fail(arguments.tensor, "names one tensor, which takes --steps; a backend prepares a layer");
  }
  const LayerSource source = open_layer_source(arguments.source, arguments.layer,
                                               {arguments.single.order, arguments.format});
  check_destination(arguments.out, arguments.source, source.checkpoint);
  const auto layer = std::make_shared<const PreparedLayer>(plan_source(source, arguments.choice));
  const LayerShape& shape = layer->source->shape;
  write(layer, kPreparedWeights, prepared_params(*layer, source.origins), arguments, global,
        fmt::format("{}: {} experts, hidden {}, intermediate {}, {} weights of {}",
                    layer->backend->name, shape.experts, shape.hidden, shape.intermediate,
                    shape.weight_format, source.origins.checkpoint));
}

/// The tensor through the steps; without --order its rows are no halves.
PreparedLayer plan_tensor(const TensorView& view, const Arguments& arguments) {
  const SingleTensor& single = arguments.single;
  const std::string& steps = single.steps;
  TensorStack stack =
      dense_stack(view, parse_order(single.order.empty() ? "none" : single.order),
                  element_bits(single, arguments.source + ": " + view.name, view.dtype));
  set_block(single, stack);
  return plan_single(arguments.tensor, std::move(stack), parse_steps("--steps", steps),
                     kMostElements);
}

void apply_steps(const Arguments& arguments, const GlobalOptions& global) {
  if (arguments.tensor.empty()) {
    fail("--steps", "takes one tensor; name it after the file {}", arguments.source);
  }
  need_order(arguments.single);
  check_destination(arguments.out, arguments.source, {});
  const auto file = SafetensorsFile::open(arguments.source);
  const TensorView& view = file->at(arguments.tensor);
  if (view.shape.empty() || view.shape.size() > 3 || element_count(view.shape) == 0) {
    fail(arguments.source + ": " + view.name,
         "is {}; steps take [experts, rows, columns], [rows, columns] or [rows]",
         to_string(view.shape));
  }
  PreparedLayer planned = plan_tensor(view, arguments);
  planned.storage.push_back(file);
  const auto layer = std::make_shared<const PreparedLayer>(std::move(planned));
  write(layer, kPreparedTensor, prepared_tensor_params(*layer, arguments.single.steps), arguments,
        global, fmt::format("{} after {}", arguments.tensor, arguments.single.steps));
}

void run_apply(const Arguments& arguments, const GlobalOptions& global) {
  if (arguments.choice.backend.empty() == arguments.single.steps.empty()) {
    fail("layout apply", "give --backend for a layer, or --steps for one tensor");
  }
  if (arguments.single.steps.empty()) {
    SingleTensor single = arguments.single;
    single.order.clear();  // of logical tensors
    refuse_single(single, "", "a backend knows its tensors");
    apply_backend(arguments, global);
  } else {
    apply_steps(arguments, global);
  }
}

}  // namespace

void add_layout_apply(CLI::App& layout, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      layout.add_subcommand("apply",
                            "prepare a layer for a backend, or put one tensor through "
                            "steps");
  command
      ->add_option("source", arguments->source,
                   "checkpoint folder, or safetensors file with logical tensors (w13, w13_scale, "
                   "w2, ... or weights.*)")
      ->required();
  command->add_option("tensor", arguments->tensor, "with --steps: the tensor");
  CLI::Option* layer = command->add_option("--layer", arguments->layer,
                                           "layer number (default: the first MoE layer)");
  CLI::Option* backend =
      command->add_option("--backend", arguments->choice.backend, "backend, see layout list");
  add_rank_options(*command, arguments->choice);
  command->add_option("--format", arguments->format,
                      "weight format of logical tensors, if the file does not say it");
  add_single_options(*command, arguments->single);
  CLI::Option* steps = command->get_option("--steps")->excludes(layer)->excludes(backend);
  for (const char* of_layers : {"--option", "--tp", "--ep", "--format"}) {
    steps->excludes(command->get_option(of_layers));
  }
  command->add_option("-o,--out", arguments->out, "file to write")->required();
  command->footer(
      "Examples:\n"
      "  moeref layout apply gpt-oss-20b --layer 0 --backend reference -o logical.safetensors\n"
      "  moeref layout apply logical.safetensors --backend NAME --tp 0/2 -o rank0.safetensors\n"
      "  moeref layout apply dump.safetensors w13 --order gate_up --bits 4 \\\n"
      "      --steps \"swap_halves interleave_halves(1) shuffle_rows(128)\" -o w13.safetensors");
  command->callback([arguments, &global] { run_apply(*arguments, global); });
}

}  // namespace moeref::cli
