#include "io/checkpoint.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <exception>
#include <optional>

#include "io/families/family.hpp"
#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;

/// What the user named: a folder, its config.json, its index, or one safetensors file in it.
struct Place {
  fs::path folder;
  std::optional<fs::path> file;
};

Place locate(const fs::path& named) {
  std::error_code error;
  if (fs::is_directory(named, error)) return {named, std::nullopt};
  if (!fs::exists(named, error)) {
    fail(named.string(),
         "no such folder; name a model folder with config.json and safetensors files");
  }
  const fs::path folder = named.has_parent_path() ? named.parent_path() : fs::path(".");
  if (named.extension() == ".safetensors") return {folder, named};
  if (named.extension() == ".json") return {folder, std::nullopt};
  fail(named.string(), "is not a model folder, config.json or .safetensors file; name the folder");
}

const Family& find_family(const ModelConfig& config) {
  std::vector<std::string_view> known;
  for (const Family* family : all_families()) known.push_back(family->model_type);
  const std::string type = config.word({"model_type"}, Fallback<std::string>{}).value;
  for (const Family* family : all_families()) {
    if (family->model_type == type) return *family;
  }
  fail(config.subject("model_type"), "is {}, needs one of: {}",
       type.empty() ? "absent" : fmt::format("\"{}\"", one_line(type)), fmt::join(known, ", "));
}

/// "0, 3-60"
std::string ranges(const std::vector<std::int64_t>& layers) {
  constexpr std::size_t kMaxShown = 40;
  std::vector<std::string> parts;
  for (std::size_t i = 0; i < layers.size();) {
    std::size_t end = i + 1;
    while (end < layers.size() && layers[end] == layers[end - 1] + 1) ++end;
    parts.push_back(end - i == 1 ? fmt::format("{}", layers[i])
                                 : fmt::format("{}-{}", layers[i], layers[end - 1]));
    i = end;
  }
  if (parts.size() > kMaxShown) {
    parts.resize(kMaxShown);
    parts.emplace_back("...");
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

/// Facts that must agree whatever the family.
void check_routing(const MoeLayer& layer, const std::string& file) {
  const Routing& routing = layer.routing;
  const std::int64_t experts = layer.expert_count();
  if (routing.top_k > experts) {
    fail(file, "top_k is {}, more than the {} experts; correct the config", routing.top_k, experts);
  }
  if (experts % routing.groups != 0) {
    fail(file, "{} experts do not divide into {} groups (n_group); correct the config", experts,
         routing.groups);
  }
  if (routing.kept_groups > routing.groups) {
    fail(file, "topk_group is {}, more than the {} groups (n_group); correct the config",
         routing.kept_groups, routing.groups);
  }
  const std::int64_t group_size = experts / routing.groups;
  if (routing.groups > 1 && group_size < 2) {
    fail(file,
         "groups of one expert (n_group {} for {} experts): a group score is the sum of two; "
         "correct the config",
         routing.groups, experts);
  }
  if (routing.top_k > routing.kept_groups * group_size) {
    fail(file, "top_k is {}, more than the {} experts in {} kept groups; correct the config",
         routing.top_k, routing.kept_groups * group_size, routing.kept_groups);
  }
}

}  // namespace

struct Checkpoint::Impl {
  fs::path folder;
  std::string model_type;
  const Family* family;
  ModelConfig model;
  ModelConfig section;  ///< of `model`, with the language model
  TensorIndex tensors;
  std::vector<std::int64_t> moe_layers;
  std::optional<QuantizationConfig> quantization;
  std::exception_ptr
      quantization_error;  ///< thrown when a layer is wanted: the rest can be listed without
};

Checkpoint Checkpoint::open(const fs::path& folder) {
  const Place place = locate(folder);
  const ModelConfig model = ModelConfig::open(place.folder / "config.json");
  const Family& family = find_family(model);
  const ModelConfig section = family.section.empty() ? model : model.section(family.section);
  std::vector<std::int64_t> layers = family.moe_layers(section);
  Impl impl{place.folder,
            std::string(family.model_type),
            &family,
            model,
            section,
            TensorIndex::open(place.folder, place.file),
            std::move(layers),
            std::nullopt,
            nullptr};
  try {
    impl.quantization = QuantizationConfig::read(model, section, place.folder);
  } catch (const Error&) {
    impl.quantization_error = std::current_exception();
  }
  return Checkpoint(std::make_shared<const Impl>(std::move(impl)));
}

const fs::path& Checkpoint::folder() const { return impl_->folder; }
const std::string& Checkpoint::model_type() const { return impl_->model_type; }
const std::vector<std::int64_t>& Checkpoint::moe_layers() const { return impl_->moe_layers; }

MoeLayer Checkpoint::load_layer(std::int64_t layer) const {
  const std::vector<std::int64_t>& known = impl_->moe_layers;
  if (!std::binary_search(known.begin(), known.end(), layer)) {
    fail(impl_->folder.string(), "layer {} has no experts; {}", layer,
         known.empty() ? std::string("no layer of this model has")
                       : "the MoE layers are " + ranges(known));
  }
  if (impl_->quantization_error) std::rethrow_exception(impl_->quantization_error);
  MoeLayer result;
  result.model_type = impl_->model_type;
  result.layer = layer;
  LayerReader reader(impl_->tensors, impl_->section, *impl_->quantization, result);
  reader.note("model_type", result.model_type, impl_->model.source("model_type"));
  impl_->family->read_layer(reader);
  check_routing(result, impl_->model.file());
  reader.finish();
  return result;
}

}  // namespace moeref
