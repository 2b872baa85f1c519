#include "cli/prepared_file.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "cli/conform/memory_order.hpp"
#include "io/json_file.hpp"
#include "quant/error.hpp"
#include "quant/nearest_names.hpp"
#include "quant/parallel.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

constexpr std::int64_t kPieceBytes = std::int64_t{64} << 20;

/// A recoder that sees some experts of a tensor, counted from 0.
class PieceRecoder : public Recoder {
 public:
  PieceRecoder(std::shared_ptr<const Recoder> whole, std::int64_t first)
      : whole_(std::move(whole)), first_(first) {}

  std::string name() const override { return whole_->name(); }
  int in_bits() const override { return whole_->in_bits(); }
  int out_bits() const override { return whole_->out_bits(); }
  bool invertible() const override { return whole_->invertible(); }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    whole_->rewrite(in_whole(at), in, out);
  }
  void restore(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    whole_->restore(in_whole(at), in, out);
  }

 private:
  Place in_whole(Place at) const {
    at.expert += first_;
    return at;
  }

  std::shared_ptr<const Recoder> whole_;
  std::int64_t first_;
};

/// The experts of a stack that a piece has.
TensorStack part_of(const TensorStack& stack, const ExpertPiece& piece) {
  TensorStack part = stack;
  part.experts = piece.map.experts;
  const auto begin = stack.planes.begin() + piece.first * stack.halves;
  part.planes.assign(begin, begin + part.experts * stack.halves);
  return part;
}

using Sink = std::function<void(std::span<const std::byte>)>;

void put_matrix(const PreparedTensor& tensor, int threads, const Sink& sink) {
  std::vector<std::byte> made;
  for_each_piece(tensor.plan.map, tensor.plan.recoders, threads, [&](const ExpertPiece& piece) {
    made.resize(static_cast<std::size_t>(piece.map.experts * piece.map.out_bytes()));
    apply(piece.map, part_of(*tensor.from, piece), piece.recoders, made, threads);
    sink(made);
  });
}

json views_of(const PreparedLayer& layer) {
  json views = json::object();
  for (const PreparedTensor& tensor : layer.tensors) {
    if (tensor.strides.empty()) continue;
    views[tensor.name] = {{"shape", tensor.shape}, {"strides", tensor.strides}};
  }
  return views;
}

/// A matrix without data, whose tables stay in bounds whatever the steps are.
PreparedTensor plan_bounded(const TensorRecipe& recipe, const TensorStack& stack,
                            std::int64_t most) {
  PreparedTensor prepared = plan_matrix(recipe, stack, nullptr, most);
  check_movable(recipe.name, prepared.plan.map, {}, stack.element_bits);
  return prepared;
}

Options options_from_json(const Backend& backend, const Fields& fields) {
  std::vector<std::string> texts;
  for (const auto& [key, value] : fields.all().items()) {
    texts.push_back(fmt::format("{}={}", one_line(key), one_line(fields.string(key.c_str()))));
  }
  return parse_options(backend, texts);
}

std::int64_t data_bytes(const SafetensorsFile& file) {
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    bytes += static_cast<std::int64_t>(tensor.bytes.size());
  }
  return bytes;
}

PreparedLayer layer_of(const Fields& fields, std::int64_t most) {
  const std::string name = one_line(fields.string("backend"));
  const Backend& backend = find_backend(name);
  const Options options = options_from_json(backend, fields.object("options"));
  LayerTensors tensors = layer_from_json(fields, most);
  const StoredRank rank = rank_from_json(fields, tensors.shape);
  return plan_empty(backend, options, std::move(tensors), rank, most);
}

PreparedLayer single_of(const Fields& fields, std::int64_t most) {
  const Fields source = fields.object("source");
  TensorStack stack = stack_from_json(source, source.integer("experts", 1, most), most);
  const std::string tensor = fields.string("tensor");
  return plan_single(tensor, std::move(stack),
                     parse_steps(fields.subject() + ".steps", fields.string("steps")), most);
}

std::string op_of(const SafetensorsFile& file) {
  const auto op = file.metadata().find("op");
  return op == file.metadata().end() ? "" : op->second;
}

/// What went wrong in a step that trusts the shapes it gets, as bad input.
template <typename Make>
PreparedLayer make_from_metadata(const std::string& subject, Make make) {
  try {
    return make();
  } catch (const std::logic_error& problem) {
    fail(subject, "its metadata do not make a layout ({})", one_line(problem.what()));
  }
}

}  // namespace

json prepared_params(const PreparedLayer& layer, const Origins& origins) {
  json params = to_json(*layer.source);
  params["backend"] = layer.backend->name;
  params["options"] = layer.options.values();
  params["checkpoint"] = origins.checkpoint;
  if (origins.layer) params["layer"] = *origins.layer;
  add_rank(params, layer.rank, layer.range);
  json formulas = json::object();
  for (const ScalarRecipe& scalar : layer.recipe.scalars) formulas[scalar.name] = scalar.formula;
  params["formulas"] = std::move(formulas);
  params["views"] = views_of(layer);
  return params;
}

json prepared_tensor_params(const PreparedLayer& layer, const std::string& steps) {
  const PreparedTensor& tensor = layer.tensors.front();
  json source = to_json(*tensor.from);
  source["experts"] = tensor.from->experts;
  return {{"tensor", tensor.name},
          {"steps", steps},
          {"source", std::move(source)},
          {"views", views_of(layer)}};
}

Shape written_shape(const PreparedTensor& tensor) {
  return conform::memory_order(tensor.shape, tensor.strides);
}

void add_prepared(CaseWriter& writer, const std::shared_ptr<const PreparedLayer>& layer,
                  const std::string& prefix, int threads) {
  writer.keep(layer);
  for (const PreparedTensor& tensor : layer->tensors) {
    const PreparedTensor* planned = &tensor;
    TensorSpec spec{prefix + tensor.name, tensor.dtype, written_shape(tensor)};
    if (tensor.from == nullptr) {
      writer.add(std::move(spec),
                 [planned](const Sink& sink) { sink(std::as_bytes(std::span(planned->values))); });
    } else {
      writer.add(std::move(spec),
                 [planned, threads](const Sink& sink) { put_matrix(*planned, threads, sink); });
    }
  }
}

PreparedLayer plan_empty(const Backend& backend, const Options& options, LayerTensors tensors,
                         const StoredRank& rank, std::int64_t most) {
  PreparedLayer layer;
  layer.backend = &backend;
  layer.options = options;
  layer.rank = rank.rank;
  layer.range = rank.range;
  layer.source = std::make_shared<const LayerTensors>(std::move(tensors));
  layer.recipe = make_recipe(backend, layer.source->shape, options);
  for (const TensorRecipe& recipe : layer.recipe.tensors) {
    layer.tensors.push_back(plan_bounded(recipe, layer.source->at(recipe.from), most));
  }
  for (const ScalarRecipe& scalar : layer.recipe.scalars) {
    PreparedTensor prepared;
    prepared.name = scalar.name;
    prepared.dtype = DType::f32;
    layer.tensors.push_back(std::move(prepared));
  }
  return layer;
}

PreparedLayer plan_single(const std::string& tensor, TensorStack stack, std::vector<Step> steps,
                          std::int64_t most) {
  PreparedLayer layer;
  LayerTensors tensors;
  tensors.shape.experts = tensors.shape.total_experts = stack.experts;
  tensors.stacks[static_cast<std::size_t>(Slot::w13)] = std::move(stack);
  layer.source = std::make_shared<const LayerTensors>(std::move(tensors));
  layer.recipe.tensors.push_back({tensor, Slot::w13, std::move(steps), 0});
  layer.tensors.push_back(
      plan_bounded(layer.recipe.tensors.front(), layer.source->at(Slot::w13), most));
  return layer;
}

std::string PreparedFile::subject(const std::string& tensor) const {
  return fmt::format("{}: {}{}", file->path().string(), prefix, tensor);
}

const TensorView& PreparedFile::stored(const PreparedTensor& tensor) const {
  const TensorView& view = file->at(prefix + tensor.name);
  if (tensor.from == nullptr) {
    if (view.dtype == DType::f32) return view;
    fail(subject(tensor.name), "is {}, needs F32", name(view.dtype));
  }
  if (view.dtype != tensor.dtype ||
      static_cast<std::int64_t>(view.bytes.size()) != byte_count(tensor)) {
    fail(subject(tensor.name), "is {} {}, its metadata need {} {}; the two belong to other files",
         name(view.dtype), to_string(view.shape), name(tensor.dtype),
         to_string(written_shape(tensor)));
  }
  return view;
}

bool is_prepared(const SafetensorsFile& file) {
  const std::string op = op_of(file);
  if (op == kPreparedWeights || op == kPreparedTensor) return true;
  const auto params = file.metadata().find("params");
  if (op != "moe_forward" || params == file.metadata().end()) return false;
  return parse_json_object(file.path().string() + ": metadata params", params->second)
      .contains("prepared");
}

PreparedFile open_prepared(const std::filesystem::path& path) {
  PreparedFile opened;
  opened.file = SafetensorsFile::open(path);
  const std::string subject = path.string() + ": metadata params";
  if (!is_prepared(*opened.file)) {
    fail(path.string(),
         "holds no prepared weights; give a file of `moeref layout apply` or `moeref golden "
         "--weights`, or name the steps");
  }
  const auto text = opened.file->metadata().find("params");
  if (text == opened.file->metadata().end()) fail(path.string(), "has no metadata params");
  opened.params = parse_json_object(subject, text->second);
  const bool golden = op_of(*opened.file) == "moe_forward";
  if (golden) {
    opened.prefix = "weights.";
    opened.params = json(opened.params["prepared"]);
  }
  const bool single = op_of(*opened.file) == kPreparedTensor;
  const std::int64_t most = most_elements(data_bytes(*opened.file));
  const Fields fields(golden ? subject + ".prepared" : subject, opened.params);
  opened.layer = make_from_metadata(
      subject, [&] { return single ? single_of(fields, most) : layer_of(fields, most); });
  // Factors that the backend does not pass for this layer are not in the file.
  std::erase_if(opened.layer.tensors, [&opened](const PreparedTensor& tensor) {
    return tensor.from == nullptr && opened.file->find(opened.prefix + tensor.name) == nullptr;
  });
  return opened;
}

std::size_t find_tensor(const PreparedLayer& layer, const std::string& name) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < layer.tensors.size(); ++i) {
    if (layer.tensors[i].name == name) return i;
    names.push_back(layer.tensors[i].name);
  }
  fail(one_line(name), "is not among the prepared tensors: {}", fmt::join(names, ", "));
}

ExpertPiece piece_of(const IndexMap& map, const Recoders& recoders, std::int64_t first,
                     std::int64_t count) {
  ExpertPiece piece{first, map, {}};
  piece.map.experts = count;
  for (const auto& recoder : recoders) {
    piece.recoders.push_back(std::make_shared<PieceRecoder>(recoder, first));
  }
  return piece;
}

void for_each_piece(const IndexMap& map, const Recoders& recoders, int threads,
                    const std::function<void(const ExpertPiece&)>& visit) {
  const std::int64_t expert_bytes =
      std::max({std::int64_t{1}, map.out_bytes(), map.in_rows * map.in_cols * 4});
  const std::int64_t most =
      std::max<std::int64_t>(kPieceBytes / expert_bytes, thread_count(threads));
  for (std::int64_t first = 0; first < map.experts; first += most) {
    visit(piece_of(map, recoders, first, std::min(most, map.experts - first)));
  }
}

}  // namespace moeref::cli
