#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <optional>

#include "cli/case_writer.hpp"
#include "cli/commands.hpp"
#include "cli/destination.hpp"
#include "cli/golden_job.hpp"
#include "cli/moe_case.hpp"
#include "cli/selection.hpp"
#include "cli/version.hpp"
#include "io/safetensors.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string source;
  std::optional<std::int64_t> layer;
  std::string backend = "reference";
  std::vector<std::string> backend_options;
  std::string numerics = "reference";
  std::vector<std::string> kernel_options;
  bool scales_in_combine = false;
  std::string routing;
  std::int64_t tokens = 64;
  std::uint64_t seed = 0;
  std::string hidden;
  std::string checkpoint;
  std::string tp;
  std::string ep;
  std::string output;
  bool stages = false;
  std::string out;
  std::vector<std::string> checkpoint_options;  ///< those given that a golden file does not take
};

/// What to run: which layer of which checkpoint, on which inputs.
struct Job {
  std::string checkpoint;
  MoeLayer layer;
  LayerInputs inputs;
  CaseOptions options;
  std::string expected_sha256;  ///< of out.final in the golden file, if the source was one and
                                ///< nothing was overridden
};

/// Error: -o would replace what is read.
void check_out(const Arguments& arguments, const fs::path& checkpoint) {
  if (arguments.out.empty()) return;
  check_destination(arguments.out, arguments.source, checkpoint);
  check_destination(arguments.out, arguments.hidden, {});
}

Job job_from_golden(const Arguments& arguments) {
  GoldenJob golden = read_golden_job(arguments.source, arguments.checkpoint);
  check_out(arguments, golden.checkpoint);
  Job job;
  job.checkpoint = golden.checkpoint;
  job.layer = std::move(golden.layer);
  job.inputs = std::move(golden.inputs);
  job.options = golden.options;
  const bool sharded = !arguments.tp.empty() || !arguments.ep.empty();
  if (sharded) job.options.shard = parse_shard(arguments.tp, arguments.ep);
  const bool same_output =
      arguments.output.empty() || arguments.output == name(golden.options.output);
  if (!arguments.output.empty()) job.options.output = parse_output_format(arguments.output);
  check_numerics(job.options);
  const TensorView* final = golden.file->find("out.final");
  if (final != nullptr && !sharded && same_output) job.expected_sha256 = sha256(final->bytes);
  return job;
}

Job job_from_checkpoint(const Arguments& arguments) {
  const Checkpoint checkpoint = Checkpoint::open(arguments.source);
  check_out(arguments, checkpoint.folder());
  Job job;
  job.checkpoint = arguments.source;
  if (checkpoint.moe_layers().empty()) fail(arguments.source, "has no layer with experts");
  job.layer = checkpoint.load_layer(arguments.layer.value_or(checkpoint.moe_layers().front()));
  const std::int64_t vocabulary =
      job.layer.expert_table.bytes.empty() ? 0 : job.layer.expert_table.shape.at(0);
  job.inputs = arguments.hidden.empty() ? random_layer_inputs(arguments.tokens, job.layer.hidden,
                                                              arguments.seed, vocabulary)
                                        : read_layer_inputs(arguments.hidden, job.layer.hidden);
  const std::vector<std::string> backends = parse_backends(arguments.backend);
  if (backends.size() > 1) fail("--backend", "names {} backends; run takes one", backends.size());
  job.options.backend = backends.front();
  job.options.backend_options = arguments.backend_options;
  job.options.level = parse_level(arguments.numerics);
  job.options.kernel_options = arguments.kernel_options;
  job.options.scales_in_combine = arguments.scales_in_combine;
  job.options.routing = arguments.routing;
  job.options.shard = parse_shard(arguments.tp, arguments.ep);
  job.options.output = parse_output_format(arguments.output.empty() ? "bf16" : arguments.output);
  check_format(find_backend(job.options.backend), job.layer);
  check_numerics(job.options);
  return job;
}

/// Error: an option that the source does not take, which would be ignored.
void check_options(const Arguments& arguments, bool golden) {
  if (golden && !arguments.checkpoint_options.empty()) {
    fail(arguments.checkpoint_options.front(),
         "goes with a checkpoint; a golden file brings its layer, inputs and backend");
  }
  if (!golden && !arguments.checkpoint.empty()) {
    fail("--checkpoint", "goes with a golden file; {} is the checkpoint already", arguments.source);
  }
}

void run_forward(const Arguments& arguments, const GlobalOptions& global) {
  std::error_code unreadable;
  const bool golden = fs::path(arguments.source).extension() == ".safetensors" &&
                      !fs::is_directory(arguments.source, unreadable);
  check_options(arguments, golden);
  Job job = golden ? job_from_golden(arguments) : job_from_checkpoint(arguments);
  job.options.stages = arguments.stages;
  const auto begin = std::chrono::steady_clock::now();
  const ComputedCase computed = compute_case(job.layer, job.inputs, job.options, global, "run");
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const std::vector<Tensor> outputs = output_tensors(job.layer, computed, job.options);
  const nlohmann::json params = case_params(job.checkpoint, job.layer, job.inputs, job.options,
                                            computed.route.top_k, computed.rows);
  if (!arguments.out.empty()) {
    CaseWriter writer;
    for (const Tensor& output : outputs) writer.add(output.view());
    writer.write(arguments.out, {{"op", "moe_output"},
                                 {"params", metadata_text(params)},
                                 {"source", std::string("moeref ") + kVersion}});
  }
  const std::string digest = sha256(outputs.back().bytes);
  const bool compared = !job.expected_sha256.empty();
  const bool equal = digest == job.expected_sha256;
  if (global.json) {
    nlohmann::json report{{"params", params}, {"final_sha256", digest}, {"seconds", seconds}};
    if (compared) report["equals_golden"] = equal;
    if (!arguments.out.empty()) report["file"] = arguments.out;
    print_json(report);
  } else if (!global.quiet) {
    fmt::print("{} layer {}, {} tokens, {} numerics, {:.3f} s\n", job.checkpoint, job.layer.layer,
               job.inputs.hidden.rows, params["numerics"].get<std::string>(), seconds);
    fmt::print("sha256 of the output {}{}\n", digest,
               !compared ? ""
               : equal   ? ", equal to the golden file"
                         : ", NOT the golden file's");
    if (!arguments.out.empty()) fmt::print("-> {}\n", arguments.out);
  }
  if (compared && !equal) throw ExitWith{1};
}

}  // namespace

void add_run_command(CLI::App& app, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("run", "run one layer's forward on a checkpoint, or a golden file again");
  command
      ->add_option("source", arguments->source,
                   "checkpoint folder, or golden file (its inputs are run again and compared)")
      ->required();
  std::vector<CLI::Option*> for_checkpoints{
      command->add_option("--layer", arguments->layer,
                          "layer number (default: the first MoE layer)"),
      command->add_option("--backend", arguments->backend, "backend name"),
      command->add_option("--tokens", arguments->tokens, "random tokens (default 64)"),
      command->add_option("--seed", arguments->seed, "seed of the random hidden states"),
      command->add_option("--hidden", arguments->hidden, "safetensors file with hidden_states"),
      command->add_option("--option", arguments->backend_options,
                          "options of the backend, key=value"),
      command->add_option("--numerics", arguments->numerics,
                          "reference (default), backend or replay"),
      command->add_option(
          "--kernel", arguments->kernel_options,
          "what of the backend's kernels decides bits, key=value (see moeref layout "
          "list NAME)"),
      command->add_option("--routing", arguments->routing,
                          "route as this kernel does (see moeref routing)"),
      command->add_flag("--scale-in-combine", arguments->scales_in_combine,
                        "the routed scaling factor multiplies the sum of the experts")};
  command->get_option("--routing")->check(not_empty);
  for_checkpoints[3]->check(CLI::NonNegativeNumber);
  for_checkpoints[4]->excludes(for_checkpoints[2])->excludes(for_checkpoints[3]);
  command->add_option("--checkpoint", arguments->checkpoint,
                      "the checkpoint of a golden file, if it is not where the file says");
  command->add_option("--tp", arguments->tp, "tensor-parallel rank, R/N");
  command->add_option("--ep", arguments->ep, "expert-parallel rank, R/N");
  command->add_option("--output", arguments->output, "output type: bf16 (default), f16, f32");
  command->add_flag("--stages", arguments->stages, "also write every stage");
  command->add_option("-o,--out", arguments->out, "file for the outputs");
  command->footer(
      "Examples:\n"
      "  moeref run gpt-oss-20b --layer 0 --tokens 8 --stages -o out.safetensors\n"
      "  moeref run golden/CASE.safetensors --checkpoint gpt-oss-20b");
  command->callback([arguments, for_checkpoints, &global] {
    for (const CLI::Option* option : for_checkpoints) {
      if (option->count() > 0) arguments->checkpoint_options.push_back(option->get_name());
    }
    run_forward(*arguments, global);
  });
}

}  // namespace moeref::cli
