#include "cli/layout_source.hpp"

#include <filesystem>
#include <utility>

#include "cli/selection.hpp"
#include "io/checkpoint.hpp"
#include "layout/prepare.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

namespace fs = std::filesystem;

LayerSource from_checkpoint(const std::string& path, std::optional<std::int64_t> layer,
                            const LogicalHints& hints) {
  if (!hints.order.empty() || !hints.format.empty()) {
    fail(hints.order.empty() ? "--format" : "--order",
         "goes with a file of logical tensors; the checkpoint {} says it itself", path);
  }
  const Checkpoint checkpoint = Checkpoint::open(path);
  if (checkpoint.moe_layers().empty()) fail(path, "has no layer with experts");
  LayerSource source;
  source.origins.layer = layer.value_or(checkpoint.moe_layers().front());
  source.origins.checkpoint = fs::weakly_canonical(checkpoint.folder()).filename().string();
  source.checkpoint = checkpoint.folder();
  source.layer = checkpoint.load_layer(*source.origins.layer);
  return source;
}

LayerSource from_tensors(const std::shared_ptr<const SafetensorsFile>& file,
                         std::optional<std::int64_t> layer, const LogicalHints& hints) {
  if (layer) {
    fail("--layer", "goes with a checkpoint; {} holds the tensors of one layer",
         file->path().string());
  }
  LogicalFile logical = read_logical_weights(file, hints);
  LayerSource source;
  source.origins = logical.origins;
  source.layer = std::move(logical.layer);
  source.part = std::move(logical.part);
  source.rank = logical.rank;
  return source;
}

/// Error: the backend's loader gives the stored rank other rows than the file has.
void check_range(const Backend& backend, const Options& options, const LayerTensors& part,
                 const StoredRank& rank) {
  LayerShape whole = part.shape;
  whole.intermediate = whole.stride = whole.full_intermediate;
  whole.tp_rank = 0;
  whole.tp_size = 1;
  const LoadedRange range = loaded_range(backend, options, whole, rank.rank);
  if (range.begin != rank.range.begin || range.count != rank.range.count ||
      range.stride != rank.range.stride) {
    fail(backend.name,
         "loads rows {}..{} of {} as rank {}/{}, the file holds rows {}..{} (stride {}); apply it "
         "to the whole layer with --tp",
         range.begin, range.begin + range.count, range.stride, rank.rank.tp_rank, rank.rank.tp_size,
         rank.range.begin, rank.range.begin + rank.range.count, rank.range.stride);
  }
}

PreparedLayer plan_part(const Backend& backend, const Options& options, const LayerSource& source) {
  check_range(backend, options, *source.part, source.rank);
  LayerTensors tensors = layer_tensors(source.layer, source.layer);
  tensors.shape = source.part->shape;
  tensors.scalars = source.part->scalars;
  PreparedLayer layer = plan_tensors(backend, options, std::move(tensors));
  layer.rank = source.rank.rank;
  layer.range = source.rank.range;
  layer.storage = source.layer.storage;
  return layer;
}

}  // namespace

LayerSource open_layer_source(const std::string& path, std::optional<std::int64_t> layer,
                              const LogicalHints& hints) {
  std::error_code unreadable;
  if (fs::is_regular_file(path, unreadable) && fs::path(path).extension() != ".json") {
    const auto file = SafetensorsFile::open(path);
    const bool beside_config = fs::exists(fs::path(path).parent_path() / "config.json", unreadable);
    if (holds_logical_weights(*file) || !beside_config) return from_tensors(file, layer, hints);
  }
  return from_checkpoint(path, layer, hints);
}

PreparedLayer plan_source(const LayerSource& source, const BackendChoice& choice) {
  const Backend& backend = find_backend(choice.backend);
  const Options options = parse_options(backend, choice.options);
  const Shard rank = parse_shard(choice.tp, choice.ep);
  if (!source.part) return plan_layer(backend, options, source.layer, rank);
  if (!rank.is_whole()) {
    fail(choice.tp.empty() ? "--ep" : "--tp",
         "the file holds one rank's part already; leave it out, or take the whole layer");
  }
  return plan_part(backend, options, source);
}

}  // namespace moeref::cli
