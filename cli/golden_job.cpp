#include "cli/golden_job.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <type_traits>

#include "cli/selection.hpp"
#include "io/checkpoint.hpp"
#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

namespace fs = std::filesystem;

template <typename T>
T param(const nlohmann::json& params, const std::string& file, const char* key) {
  const auto found = params.find(key);
  const bool proper =
      found != params.end() && (!std::is_same_v<T, std::int64_t> || found->is_number_integer());
  try {
    if (proper) return found->get<T>();
  } catch (const nlohmann::json::exception&) {
  }
  fail(file, "its metadata params lack a proper '{}'; is it a golden file of moeref?", key);
}

/// The checkpoint of a golden file: as given, else a folder of the stored name beside the file or
/// here.
std::string find_checkpoint(const std::string& source, const std::string& given,
                            const std::string& stored) {
  if (!given.empty()) return given;
  std::error_code unreadable;
  for (const fs::path& folder : {fs::path(source).parent_path() / stored, fs::path(stored)}) {
    if (fs::is_directory(folder, unreadable)) return folder.string();
  }
  fail(source,
       "was made from the checkpoint {}, which is neither beside it nor here; give "
       "its folder with --checkpoint",
       stored);
}

nlohmann::json golden_params(const SafetensorsFile& file) {
  const auto found = file.metadata().find("params");
  if (found == file.metadata().end()) {
    fail(file.path().string(), "has no metadata params; give a golden file or a checkpoint folder");
  }
  return parse_json_object(file.path().string() + ": metadata params", found->second);
}

/// Error: the checkpoint holds another layer than the one that the golden file was made from.
void check_same_layer(const std::string& source, const nlohmann::json& params,
                      const MoeLayer& layer) {
  const auto compare = [&](const char* key, const nlohmann::json& actual) {
    if (params.value(key, nlohmann::json()) == actual) return;
    fail(source, "was made from a layer with {} {}, the checkpoint's has {}", key,
         params.value(key, nlohmann::json()).dump(), actual.dump());
  };
  compare("model_type", layer.model_type);
  compare("hidden", layer.hidden);
  compare("intermediate", layer.intermediate);
  compare("experts", layer.expert_count());
  compare("weight_format", layer.weight_format);
}

/// The numerics that a golden file was made with.
void read_numerics(const nlohmann::json& params, const std::string& file, CaseOptions& options) {
  options.level = parse_level(param<std::string>(params, file, "numerics"));
  const auto texts = [&](const char* key, std::vector<std::string>& into) {
    if (!params.contains(key)) return;
    for (const auto& [name, value] : param<std::map<std::string, std::string>>(params, file, key)) {
      into.push_back(one_line(fmt::format("{}={}", name, value)));
    }
  };
  texts("options", options.backend_options);
  texts("kernel", options.kernel_options);
  options.scales_in_combine = params.value("scales_in_combine", nlohmann::json()) == true;
  if (params.contains("routing")) options.routing = param<std::string>(params, file, "routing");
  check_numerics(options);
}

}  // namespace

GoldenJob read_golden_job(const std::string& source, const std::string& checkpoint) {
  GoldenJob job;
  job.file = SafetensorsFile::open(source);
  const nlohmann::json params = golden_params(*job.file);
  job.checkpoint =
      find_checkpoint(source, checkpoint, param<std::string>(params, source, "checkpoint"));
  job.layer =
      Checkpoint::open(job.checkpoint).load_layer(param<std::int64_t>(params, source, "layer"));
  check_same_layer(source, params, job.layer);
  job.inputs = read_layer_inputs(source, job.layer.hidden);
  job.options.backend = param<std::string>(params, source, "backend");
  parse_backends(job.options.backend);
  read_numerics(params, source, job.options);
  job.options.shard = parse_shard(param<std::string>(params, source, "tp"),
                                  param<std::string>(params, source, "ep"));
  job.options.output = parse_output_format(param<std::string>(params, source, "output"));
  return job;
}

std::optional<ExpertRange> rows_by_expert(const SafetensorsFile& golden) {
  if (!golden.metadata().contains("params")) return std::nullopt;
  const nlohmann::json params = golden_params(golden);
  if (params.value("rows", nlohmann::json()) != "by_expert") return std::nullopt;
  const std::string file = golden.path().string();
  Shard shard;
  parse_rank(file + ": metadata params 'ep'", param<std::string>(params, file, "ep"), shard.ep_rank,
             shard.ep_size);
  const auto experts = param<std::int64_t>(params, file, "experts");
  if (shard.ep_size < 1 || shard.ep_rank < 0 || shard.ep_rank >= shard.ep_size || experts < 1 ||
      experts % shard.ep_size != 0) {
    fail(file,
         "its metadata params give rank {} of {} ranks {} experts; is it a golden file of moeref?",
         shard.ep_rank, shard.ep_size, experts);
  }
  const std::int64_t local = experts / shard.ep_size;
  return ExpertRange{shard.ep_rank * local, (shard.ep_rank + 1) * local};
}

}  // namespace moeref::cli
