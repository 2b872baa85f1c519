#include <fmt/format.h>
#include <fmt/ranges.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.hpp"
#include "cli/progress.hpp"
#include "io/synth/plan.hpp"
#include "io/synth/write.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

struct Arguments {
  std::string model;
  std::string scale = "tiny";
  SynthOptions options;
  std::string shard_size = "5GB";
  std::string folder;
  bool force = false;
};

/// "500000", "200MB", "5GB": decimal units, as Hugging Face counts shards.
std::uint64_t parse_bytes(const std::string& text) {
  constexpr std::pair<std::string_view, std::uint64_t> kUnits[] = {
      {"KB", 1'000}, {"MB", 1'000'000}, {"GB", 1'000'000'000}, {"", 1}};
  for (const auto& [suffix, factor] : kUnits) {
    if (!text.ends_with(suffix)) continue;
    const std::string number = text.substr(0, text.size() - suffix.size());
    const bool digits = !number.empty() && number.size() <= 9 + (factor == 1 ? 6 : 0) &&
                        number.find_first_not_of("0123456789") == std::string::npos;
    if (digits && std::stoull(number) > 0) return std::stoull(number) * factor;
    break;
  }
  fail("--shard-size", "is '{}'; give bytes, or a whole number of KB, MB or GB such as 5GB", text);
}

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

/// While it lives, Ctrl-C asks the work to stop, so that nothing half-done is left behind.
class InterruptGuard {
 public:
  InterruptGuard() : previous_(std::signal(SIGINT, [](int) { interrupted = true; })) {}
  ~InterruptGuard() { std::signal(SIGINT, previous_); }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  void (*previous_)(int);
};

nlohmann::json json_summary(const SynthPlan& plan, const SynthFiles& files) {
  nlohmann::json summary = {{"folder", files.folder.string()},
                            {"model", plan.model->name},
                            {"scale", plan.scale == SynthScale::tiny ? "tiny" : "full"},
                            {"seed", plan.seed},
                            {"layers", plan.moe_layers},
                            {"tensors", plan.tensors.size()},
                            {"tensor_bytes", files.tensor_bytes},
                            {"files", files.weight_files}};
  if (plan.quantizer) {
    summary["quantizer"] = {{"name", plan.quantizer->quantizer->name},
                            {"options", plan.quantizer->options.values()}};
  }
  return summary;
}

void print_summary(const SynthPlan& plan, const SynthFiles& files, double seconds) {
  const SynthSizes& sizes = plan.sizes;
  fmt::print("{}: {}\n", plan.model->name, plan.model->description);
  fmt::print("  {} experts, top-{}, hidden {}, intermediate {}", sizes.experts, sizes.top_k,
             sizes.hidden, sizes.intermediate);
  if (sizes.shared_intermediate != 0) fmt::print(", shared {}", sizes.shared_intermediate);
  if (sizes.latent != 0) fmt::print(", latent {}", sizes.latent);
  if (plan.quantizer) fmt::print("\n  weights quantized by {}", full_name(*plan.quantizer));
  const double megabytes = static_cast<double>(files.tensor_bytes) * 1e-6;
  fmt::print("\n  {} tensors, {:.1f} MB in {} file{}, {:.2f} s ({:.0f} MB/s)\n",
             plan.tensors.size(), megabytes, files.weight_files.size(),
             files.weight_files.size() == 1 ? "" : "s", seconds, megabytes / seconds);
  fmt::print("  -> {}\n", files.folder.string());
  const bool one = plan.moe_layers.size() == 1;
  fmt::print("layer{} with experts: {}; for example: moeref golden {} --layer {} -o golden\n",
             one ? "" : "s", fmt::join(plan.moe_layers, ", "), files.folder.string(),
             plan.moe_layers.front());
}

void run_synth(const Arguments& arguments, const GlobalOptions& global) {
  const auto begin = std::chrono::steady_clock::now();
  SynthOptions options = arguments.options;
  options.model = arguments.model;
  if (arguments.scale != "tiny" && arguments.scale != "full") {
    fail("--scale", "is '{}'; tiny and full are known", arguments.scale);
  }
  options.scale = arguments.scale == "tiny" ? SynthScale::tiny : SynthScale::full;
  const SynthPlan plan = plan_checkpoint(options);

  SynthWriteOptions write;
  write.threads = global.threads;
  write.shard_bytes = parse_bytes(arguments.shard_size);
  write.force = arguments.force;
  Progress progress("synth " + arguments.model, global.quiet);
  write.progress = [&progress](std::uint64_t done, std::uint64_t total) {
    progress.show(static_cast<std::int64_t>(done), static_cast<std::int64_t>(total));
    return !interrupted;
  };
  const SynthFiles files = [&] {
    const InterruptGuard guard;
    return write_checkpoint(plan, arguments.folder, write);
  }();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (global.json) {
    print_json(json_summary(plan, files));
  } else if (!global.quiet) {
    print_summary(plan, files, seconds);
  }
}

std::string footer() {
  std::string text =
      "Writes config.json (hf_quant_config.json), weights and, if they are cut, an index. The "
      "layers hold\n"
      "everything the MoE block reads and its norm. Attention is left out; embeddings and lm_head "
      "are there\n"
      "in tiny checkpoints only. num_hidden_layers and the like are cut to the layers written, so "
      "that the\n"
      "layer numbers are the model's own: --layer 3 of deepseek-v3 is its first layer with "
      "experts.\n"
      "Same options, same bytes, on every machine and with any --threads.\n\n"
      "Without --quantizer, codes and scales are drawn themselves. With it, normally distributed "
      "bf16 weights\n"
      "are drawn and quantized: codes, block scales and global scales are what the quantizer makes "
      "of them (gate\n"
      "and up share a global scale unless --split-global-scales). Router, norms, biases, scales of "
      "activations,\n"
      "and a shared expert in another form (deepseek-v4: FP8) stay as they are. A quantizer that "
      "does not fit the\n"
      "model is refused with a list of those that do.\n\nModels:\n";
  for (const SynthModel& model : synth_models()) {
    text += fmt::format("  {:<24} {}\n", model.name, model.description);
  }
  return text +
         "\nExamples:\n"
         "  moeref synth gpt-oss-20b -o tiny-gpt-oss                        small, ragged sizes\n"
         "  moeref synth gpt-oss-20b --scale full -o gpt-oss-20b            one layer, 423 MB\n"
         "  moeref synth deepseek-v3 --scale full --experts 32 -o ds        released sizes, 32 "
         "experts\n"
         "  moeref synth deepseek-v4 --layers 2 --hash-layers 1 -o ds4      layer 0 routes by "
         "token id\n"
         "  moeref synth gpt-oss-20b --quantizer ocp_mx -o ocp              weights as OCP MX 1.0 "
         "quantizes them\n"
         "  moeref synth deepseek-v3 --quantizer deepgemm_fp8_block --quantizer-option scale=ue8m0 "
         "-o dg";
}

}  // namespace

void add_synth_command(CLI::App& app, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  SynthOptions& options = arguments->options;
  CLI::App* command =
      app.add_subcommand("synth", "write a random checkpoint in a released model's form and size");
  command->add_option("model", arguments->model, "one of the models listed below")->required();
  command->add_option("--scale", arguments->scale,
                      "tiny (default): below 2 MB a layer; full: the released sizes");
  command->add_option("--layers", options.layers, "MoE layers to write (default 1)");
  command->add_option("--layer", options.first_layer,
                      "the model's number of the first of them (default: its first with experts)");
  command->add_option("--seed", options.seed, "seed of the weights (default 0)");
  command->add_option("--experts", options.experts, "experts, instead of the model's number");
  command->add_option("--vocabulary", options.vocabulary,
                      "vocabulary size, instead of the model's (deepseek-v4: 129280 is assumed)");
  command->add_option("--hash-layers", options.hash_layers,
                      "deepseek-v4: how many of the first layers route by token id "
                      "(default: 1 if more than one is written, else 0)");
  command->add_option(
      "--router-ties", options.router_ties,
      "pairs of experts with equal router rows, whose logits always tie (default 0)");
  command->add_flag("--split-global-scales", options.split_global_scales,
                    "NVFP4: gate and up with different global scales, as some releases have");
  command->add_option("--quantizer", options.quantizer,
                      "draw bf16 weights and quantize them with this weight quantizer");
  command->add_option("--quantizer-option", options.quantizer_options,
                      "an option of the quantizer, key=value; may be repeated");
  command->add_option("--shard-size", arguments->shard_size,
                      "bytes of a weight file (default 5GB)");
  command->add_flag("--force", arguments->force, "replace a checkpoint that is in the folder");
  command->add_option("-o,--out", arguments->folder, "folder to write, new or empty")->required();
  command->footer(footer());
  command->callback([arguments, &global] { run_synth(*arguments, global); });
}

}  // namespace moeref::cli
