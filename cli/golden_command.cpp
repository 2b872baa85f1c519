#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <utility>

#include "cli/commands.hpp"
#include "cli/layout_source.hpp"
#include "cli/logical_weights.hpp"
#include "cli/moe_case.hpp"
#include "cli/prepared_file.hpp"
#include "cli/selection.hpp"
#include "cli/version.hpp"
#include "io/json_file.hpp"
#include "io/safetensors.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string checkpoint;
  std::string layers = "*";
  std::string backends = "reference";
  std::vector<std::string> backend_options;
  std::string numerics = "reference";
  std::vector<std::string> kernel_options;
  bool scales_in_combine = false;
  std::string routing;
  std::string tokens = "64";
  std::uint64_t seed = 0;
  std::string hidden;
  std::string tp;
  std::string ep;
  std::string output = "bf16";
  bool stages = false;
  bool weights = false;
  bool bounds = false;
  std::string folder;
};

/// "_pad=none": the options that differ from the defaults.
std::string changed_options(const Options& options, const Options& defaults) {
  std::string name;
  for (const auto& [key, value] : options.values()) {
    if (!defaults.is(key, value)) name += fmt::format("_{}={}", key, value);
  }
  return name;
}

/// A backend, its options and the layer as it prepares it for the rank.
struct Preparation {
  const Backend* backend = nullptr;
  Options options;
  std::shared_ptr<const PreparedLayer> layer;  ///< nothing if nothing is prepared

  /// "marlin_mxfp4", "marlin_mxfp4_pad=none"
  std::string name() const {
    return std::string(backend->name) + changed_options(options, parse_options(*backend, {}));
  }
};

/// "_replay_BLOCK_SIZE_M=16_scaled"; nothing for reference alone.
std::string numerics_name(const Backend& backend, const Arguments& arguments) {
  std::string name = arguments.routing.empty() ? "" : "_" + arguments.routing;
  if (arguments.numerics != "reference") {
    name += "_" + arguments.numerics;
    name += changed_options(parse_kernel_options(backend, arguments.kernel_options),
                            parse_kernel_options(backend, {}));
  }
  return name + (arguments.scales_in_combine ? "_scaled" : "");
}

/// What the stages of a case are.
std::string_view note_of(NumericsLevel level) {
  switch (level) {
    case NumericsLevel::reference:
      return "every stage is the correctly rounded value of the exact result of its inputs";
    case NumericsLevel::backend:
      return "rounding points and quantizers of the backend; every stage is the correctly rounded "
             "value of the exact result of its inputs";
    case NumericsLevel::replay:
      break;
  }
  return "the bits of the backend's kernel: its sums, roundings and approximate instructions";
}

std::string case_name(const std::string& model, const MoeLayer& layer, const LayerInputs& inputs,
                      const Preparation& preparation, const Shard& shard,
                      const Arguments& arguments) {
  std::string name =
      fmt::format("{}_l{}_{}_t{}", model, layer.layer, preparation.name(), inputs.hidden.rows);
  name += arguments.hidden.empty() ? fmt::format("_s{}", arguments.seed)
                                   : "_" + fs::path(arguments.hidden).stem().string();
  name += numerics_name(*preparation.backend, arguments);
  if (shard.tp_size > 1) name += fmt::format("_tp{}of{}", shard.tp_rank, shard.tp_size);
  if (shard.ep_size > 1) name += fmt::format("_ep{}of{}", shard.ep_rank, shard.ep_size);
  if (arguments.output != "bf16") name += "_" + arguments.output;
  return name;
}

/// One line of the summary.
struct Written {
  fs::path file;
  nlohmann::json report;
};

Written write_case(const fs::path& file, const fs::path& checkpoint, const MoeLayer& layer,
                   const LayerInputs& inputs, const CaseOptions& options,
                   const Arguments& arguments, const ComputedCase& computed,
                   const std::vector<Tensor>& bounds,
                   const std::shared_ptr<const PreparedLayer>& prepared, int threads) {
  nlohmann::json params =
      case_params(checkpoint, layer, inputs, options, computed.route.top_k, computed.rows);
  if (arguments.hidden.empty()) params["seed"] = arguments.seed;
  const std::vector<Tensor> outputs = output_tensors(layer, computed, options);
  CaseWriter writer;
  for (TensorView input : inputs.tensors) {
    input.name = "in." + input.name;
    writer.add(input);
  }
  for (const Tensor& output : outputs) writer.add(output.view());
  for (const Tensor& bound : bounds) writer.add(bound.view());
  if (options.weights) {
    add_prepared(writer, prepared, "weights.", threads);
    add_shared_weights(writer, shard(layer, options.shard), "weights.shared_");
    params["prepared"] = prepared_params(*prepared, {params["checkpoint"], layer.layer});
  }
  writer.write(file, {{"op", "moe_forward"},
                      {"params", metadata_text(params)},
                      {"source", std::string("moeref ") + kVersion},
                      {"note", std::string(note_of(options.level))}});
  Written written{file, {}};
  written.report["file"] = file.string();
  params.erase("prepared");  // the report names the file, which has it
  written.report["params"] = params;
  written.report["final_sha256"] = sha256(outputs.back().bytes);
  const GemmStatistics& statistics = computed.result.statistics;
  written.report["dots"] = {{"one_sum", statistics.one_sum},
                            {"split", statistics.split},
                            {"estimated", statistics.estimated},
                            {"wide", statistics.wide},
                            {"not_finite", statistics.not_finite}};
  return written;
}

void print_summary(const Checkpoint& checkpoint, const std::vector<Written>& cases,
                   const MoeLayer& last, double seconds) {
  fmt::print("{} ({}), {} experts, hidden {}, intermediate {}, {} weights\n",
             checkpoint.folder().string(), checkpoint.model_type(), last.expert_count(),
             last.hidden, last.intermediate, last.weight_format);
  for (const Written& written : cases) {
    const nlohmann::json& params = written.report["params"];
    const nlohmann::json& dots = written.report["dots"];
    fmt::print("  layer {}  {}  {} tokens, top-{}, output {}, {} numerics\n",
               params["layer"].get<int>(), params["backend"].get<std::string>(),
               params["tokens"].get<int>(), params["top_k"].get<int>(),
               params["output"].get<std::string>(), params["numerics"].get<std::string>());
    std::int64_t exact = 0;
    for (const nlohmann::json& count : dots) exact += count.get<std::int64_t>();
    if (exact != 0) {
      fmt::print(
          "    {} exact dot products: {} in one f64 sum, {} split, {} estimated, {} wide, {} not "
          "finite\n",
          exact, dots["one_sum"].get<std::int64_t>(), dots["split"].get<std::int64_t>(),
          dots["estimated"].get<std::int64_t>(), dots["wide"].get<std::int64_t>(),
          dots["not_finite"].get<std::int64_t>());
    }
    fmt::print("    sha256 of the output {}\n", written.report["final_sha256"].get<std::string>());
    fmt::print("    -> {}\n", written.file.string());
  }
  fmt::print("{} golden file{} in {:.2f} s\n", cases.size(), cases.size() == 1 ? "" : "s", seconds);
}

/// The folder of -o and what leads to it; those that it made and that stay empty go again.
class OutputFolder {
 public:
  explicit OutputFolder(const fs::path& folder) {
    std::error_code status;
    for (fs::path at = fs::absolute(folder).lexically_normal(); !fs::exists(at, status);
         at = at.parent_path()) {
      made_.push_back(at);
    }
    fs::create_directories(folder, status);
    if (status)
      fail(folder.string(), "cannot be created ({}); choose another -o", status.message());
  }
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  ~OutputFolder() {
    std::error_code not_empty;
    for (const fs::path& folder : made_) fs::remove(folder, not_empty);
  }

 private:
  std::vector<fs::path> made_;  ///< the deepest first
};

/// The layer as the backend prepares it; nothing if neither weights nor the backend's numerics are
/// asked for. Error: the backend does not take the layer, or its numerics do not.
std::shared_ptr<const PreparedLayer> prepare(const Preparation& wanted, const MoeLayer& layer,
                                             CaseOptions options) {
  const Backend& backend = *wanted.backend;
  check_format(backend, layer);
  const bool reference = options.level == NumericsLevel::reference;
  if (reference && !options.weights) return nullptr;
  auto prepared = std::make_shared<const PreparedLayer>(
      plan_layer(backend, wanted.options, layer, options.shard));
  options.backend = backend.name;
  if (!reference) check_layer_numerics(*prepared, layer, options);
  return prepared;
}

/// Every chosen backend with its options, nothing prepared; with "*" those that have no such
/// numerics are left out. Error: an option that one of them does not have; options for "*"; a named
/// backend without such numerics.
std::vector<Preparation> choose_backends(const Arguments& arguments, const CaseOptions& options) {
  const bool all = arguments.backends == "*";
  for (const auto& [flag, texts] : {std::pair{"--option", &arguments.backend_options},
                                    std::pair{"--kernel", &arguments.kernel_options}}) {
    if (!all || texts->empty()) continue;
    fail(flag, "'{}' goes with backends by name; * takes each with its defaults",
         one_line(texts->front()));
  }
  std::vector<Preparation> chosen;
  for (const std::string& name : parse_backends(arguments.backends)) {
    const Backend& backend = find_backend(name);
    CaseOptions checked = options;
    checked.backend = name;
    try {
      check_numerics(checked);
    } catch (const Error&) {
      if (!all) throw;
      continue;
    }
    chosen.push_back({&backend, parse_options(backend, arguments.backend_options), nullptr});
  }
  return chosen;
}

/// The chosen backends with the layer prepared; with "*" those that do not take it are left out.
/// Error: a named backend does not take the layer; with "*": none does.
std::vector<Preparation> prepare_all(const Arguments& arguments,
                                     const std::vector<Preparation>& chosen, const MoeLayer& layer,
                                     const CaseOptions& options) {
  std::vector<Preparation> preparations;
  std::string refusal;
  for (const Preparation& wanted : chosen) {
    try {
      preparations.push_back({wanted.backend, wanted.options, prepare(wanted, layer, options)});
    } catch (const Error& refused) {
      if (arguments.backends != "*") throw;
      refusal = refused.what();
    }
  }
  if (preparations.empty()) {
    fail("--backend", "no backend takes layer {}: {}", layer.layer, refusal);
  }
  return preparations;
}

/// Error: a folder that is not named, or the checkpoint's own.
void check_folder(const fs::path& folder, const Checkpoint& checkpoint) {
  if (folder.empty()) fail("--out", "'' is no folder; name one");
  std::error_code absent;
  if (fs::equivalent(folder, checkpoint.folder(), absent)) {
    fail(folder.string(), "is the folder of the checkpoint that is read; choose another -o");
  }
}

/// The cases of one layer: every count of tokens for every backend.
void write_layer(const Arguments& arguments, const GlobalOptions& global,
                 const Checkpoint& checkpoint, const MoeLayer& layer,
                 const std::vector<std::int64_t>& tokens,
                 const std::vector<Preparation>& preparations, CaseOptions options,
                 std::vector<Written>& cases) {
  const fs::path folder = arguments.folder;
  const std::string model = fs::weakly_canonical(checkpoint.folder()).filename().string();
  const std::int64_t vocabulary =
      layer.expert_table.bytes.empty() ? 0 : layer.expert_table.shape.at(0);
  for (const std::int64_t count : tokens) {
    const LayerInputs inputs =
        arguments.hidden.empty()
            ? random_layer_inputs(count, layer.hidden, arguments.seed, vocabulary)
            : read_layer_inputs(arguments.hidden, layer.hidden);
    if (arguments.bounds) check_boundable(inputs);
    std::optional<ComputedCase> computed;
    std::vector<Tensor> bounds;
    for (const Preparation& preparation : preparations) {
      options.backend = preparation.backend->name;
      // Reference numerics are the same whatever the backend: computed once.
      if (!computed || options.level != NumericsLevel::reference) {
        computed = compute_case(
            layer, inputs, options, global,
            fmt::format("{} layer {}, {} tokens", model, layer.layer, inputs.hidden.rows));
        if (arguments.bounds) bounds = bound_tensors(layer, inputs, *computed, options, global);
      }
      const std::string name =
          case_name(model, layer, inputs, preparation, options.shard, arguments);
      cases.push_back(write_case(folder / (name + ".safetensors"), checkpoint.folder(), layer,
                                 inputs, options, arguments, *computed, bounds, preparation.layer,
                                 global.threads));
    }
  }
}

void run_golden(const Arguments& arguments, const GlobalOptions& global) {
  const auto begin = std::chrono::steady_clock::now();
  const Checkpoint checkpoint = Checkpoint::open(arguments.checkpoint);
  check_folder(arguments.folder, checkpoint);
  const auto layers = parse_numbers("--layer", arguments.layers, checkpoint.moe_layers());
  auto tokens = parse_numbers("--tokens", arguments.tokens, {});
  if (!arguments.hidden.empty()) tokens = {0};  // the file has them
  if (tokens.empty()) fail("--tokens", "'{}' names no number", arguments.tokens);
  CaseOptions options;
  options.shard = parse_shard(arguments.tp, arguments.ep);
  options.output = parse_output_format(arguments.output);
  options.stages = arguments.stages;
  options.weights = arguments.weights;
  options.level = parse_level(arguments.numerics);
  options.backend_options = arguments.backend_options;
  options.kernel_options = arguments.kernel_options;
  options.scales_in_combine = arguments.scales_in_combine;
  options.routing = arguments.routing;
  if (arguments.bounds && options.level != NumericsLevel::reference) {
    fail("--bounds",
         "goes with --numerics reference: it holds for every kernel that computes in "
         "f32, not for one backend's rounding points");
  }
  if (arguments.bounds && options.scales_in_combine) {
    fail("--bounds",
         "takes the routed scaling factor from the router weights, where --scale-in-combine does "
         "not leave it; leave one of them out");
  }
  const std::vector<Preparation> chosen = choose_backends(arguments, options);
  if (layers.empty()) fail(checkpoint.folder().string(), "has no layer with experts");

  // What a backend refuses in a later layer is told before the first is computed.
  for (const std::int64_t index : layers) {
    if (layers.size() == 1) break;
    prepare_all(arguments, chosen, checkpoint.load_layer(index), options);
  }
  const OutputFolder folder(arguments.folder);
  std::vector<Written> cases;
  MoeLayer layer;
  for (const std::int64_t index : layers) {
    layer = checkpoint.load_layer(index);
    write_layer(arguments, global, checkpoint, layer, tokens,
                prepare_all(arguments, chosen, layer, options), options, cases);
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (global.json) {
    nlohmann::json reports = nlohmann::json::array();
    for (const Written& written : cases) reports.push_back(written.report);
    print_json(reports);
  } else if (!global.quiet) {
    print_summary(checkpoint, cases, layer, seconds);
  }
}

}  // namespace

void add_golden_command(CLI::App& app, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "golden", "compute golden outputs of MoE layers of a checkpoint, one file a case");
  command->add_option("checkpoint", arguments->checkpoint, "model folder in Hugging Face form")
      ->required();
  command->add_option("--layer", arguments->layers,
                      "the model's own layer numbers: 3, 0,2,5-7 or * (default: all MoE layers)");
  command->add_option("--backend", arguments->backends,
                      "names, or * for all that take the layer (default reference): whose kernels "
                      "--numerics follows, whose weights --weights writes");
  command->add_option("--option", arguments->backend_options,
                      "options of the backend, key=value (see moeref layout list NAME)");
  command->add_option("--numerics", arguments->numerics,
                      "reference (default): one rounding a stage; backend: the backend's rounding "
                      "points and quantizers; replay: the bits of its kernels");
  command->add_option("--kernel", arguments->kernel_options,
                      "what of the kernels decides bits, key=value (see moeref layout list NAME)");
  command
      ->add_option("--routing", arguments->routing,
                   "route as this kernel does (see moeref routing); default: reference")
      ->check(not_empty);
  command->add_flag("--scale-in-combine", arguments->scales_in_combine,
                    "the model's routed scaling factor multiplies the sum of the experts, not the "
                    "router weights");
  CLI::Option* tokens =
      command->add_option("--tokens", arguments->tokens, "token counts: 64, 1,7,64 (default 64)");
  CLI::Option* seed = command->add_option("--seed", arguments->seed,
                                          "seed of the random hidden states (default 0)");
  seed->check(CLI::NonNegativeNumber);
  command
      ->add_option("--hidden", arguments->hidden,
                   "safetensors file with hidden_states (and input_ids, topk_ids, topk_weights) "
                   "instead of random ones")
      ->excludes(tokens)
      ->excludes(seed);
  command->add_option("--tp", arguments->tp, "tensor-parallel rank, R/N");
  command->add_option("--ep", arguments->ep, "expert-parallel rank, R/N");
  command->add_option("--output", arguments->output, "output type: bf16 (default), f16, f32");
  command->add_flag("--stages", arguments->stages, "also write every stage");
  command->add_flag("--weights", arguments->weights, "also write the weights the backend reads");
  command->add_flag("--bounds", arguments->bounds,
                    "also write, per output, the interval for f32 arithmetic in any order; check "
                    "then tells 'allowed' from 'wrong'");
  command->add_option("-o,--out", arguments->folder, "folder for the files")->required();
  command->footer(
      "Examples:\n"
      "  moeref golden gpt-oss-20b --layer 0 --tokens 1,64 --seed 7 --stages -o golden\n"
      "  moeref golden DeepSeek-V3 --layer 3-5 --hidden dump.safetensors --ep 2/8 -o golden\n"
      "  moeref golden gpt-oss-20b --layer 0 --backend NAME --weights -o golden\n"
      "  moeref golden gpt-oss-20b --backend flashinfer_sm90_mxfp4 --numerics replay --stages -o "
      "golden");
  command->callback([arguments, &global] { run_golden(*arguments, global); });
}

}  // namespace moeref::cli
