#include "layout/prepare.hpp"

#include <algorithm>
#include <cstring>

#include "layout/kernel_view.hpp"
#include "quant/error.hpp"
#include "simd/float_environment.hpp"

namespace moeref {
namespace {

PreparedTensor plan_scalar(const ScalarRecipe& recipe, const LayerTensors& tensors) {
  PreparedTensor prepared;
  prepared.name = recipe.name;
  prepared.dtype = DType::f32;
  prepared.values = recipe.values_of_layer != nullptr
                        ? recipe.values_of_layer(tensors)
                        : recipe.values(tensors.scalars, tensors.shape);
  if (recipe.per_expert) prepared.shape = {static_cast<std::int64_t>(prepared.values.size())};
  return prepared;
}

/// Every rank's part must begin and end between scale blocks and bytes. `stack` is the whole
/// tensor, `block` its rows or columns (a scale's are counted in the weight's).
void check_cut(const TensorStack* stack, std::int64_t block, const LoadedRange& range,
               std::string_view what) {
  if (stack == nullptr || block == kWholeAxis || range.stride % block == 0) return;
  fail("--tp",
       "every rank gets {} rows of a half, which cuts {} of {}: {}; choose --tp so that the "
       "share is a multiple of {}",
       range.stride, what, block, stack->name, block);
}

void check_cuts(const LayerTensors& whole, const LoadedRange& range) {
  if (range.stride >= whole.shape.intermediate) return;
  const TensorStack& w2 = whole.at(Slot::w2);
  check_cut(&w2, 8 / std::min(w2.element_bits, 8), range, "bytes of codes");
  for (const Slot slot : {Slot::w13_scale, Slot::w2_scale}) {
    const TensorStack* scale = whole.find(slot);
    if (scale == nullptr) continue;
    check_cut(scale, slot == Slot::w13_scale ? scale->block_rows : scale->block_cols, range,
              "scale blocks");
  }
}

void plan_all(PreparedLayer& prepared) {
  prepared.recipe = make_recipe(*prepared.backend, prepared.source->shape, prepared.options);
  for (const TensorRecipe& recipe : prepared.recipe.tensors) {
    prepared.tensors.push_back(
        plan_matrix(recipe, prepared.source->at(recipe.from), prepared.source.get()));
  }
  for (const ScalarRecipe& recipe : prepared.recipe.scalars) {
    PreparedTensor scalar = plan_scalar(recipe, *prepared.source);
    if (!scalar.values.empty()) prepared.tensors.push_back(std::move(scalar));
  }
  const auto swiglu = prepared.options.values().find("swiglu");
  if (swiglu == prepared.options.values().end() || swiglu->second == "as_model") {
    check_activation(prepared);
  }
}

}  // namespace

LoadedRange loaded_range(const Backend& backend, const Options& options, const LayerShape& whole,
                         const Shard& rank) {
  const Loader loader = backend.loader != nullptr ? backend.loader(whole, options) : Loader{};
  return loaded_range(loader, whole.intermediate, rank.tp_rank, rank.tp_size);
}

void set_share(LayerShape& shape, const LoadedRange& range, const Shard& rank) {
  shape.intermediate = range.count;
  shape.stride = range.stride;
  shape.tp_rank = rank.tp_rank;
  shape.tp_size = rank.tp_size;
}

PreparedTensor plan_matrix(const TensorRecipe& recipe, const TensorStack& stack,
                           const LayerTensors* layer, std::int64_t most_elements) {
  PreparedTensor prepared;
  prepared.name = recipe.name;
  prepared.plan = make_plan(recipe.name, stack, recipe.steps, layer, most_elements);
  prepared.dtype = prepared.plan.dtype;
  prepared.shape = prepared.plan.shape;
  // A bias is a vector for each expert.
  if (is_bias(recipe.from) && prepared.shape.size() == 3 && prepared.shape.back() == 1) {
    prepared.shape.pop_back();
  }
  prepared.strides = prepared.plan.strides;
  prepared.from = &stack;
  return prepared;
}

PreparedLayer plan_tensors(const Backend& backend, const Options& options, LayerTensors tensors) {
  const simd::DefaultFloatEnvironment environment;
  PreparedLayer prepared;
  prepared.backend = &backend;
  prepared.options = options;
  prepared.source = std::make_shared<const LayerTensors>(std::move(tensors));
  prepared.range = {0, prepared.source->shape.intermediate, prepared.source->shape.stride};
  plan_all(prepared);
  return prepared;
}

PreparedLayer plan_layer(const Backend& backend, const Options& options, const MoeLayer& layer,
                         const Shard& rank) {
  const simd::DefaultFloatEnvironment environment;
  const MoeLayer owned = shard(layer, {.ep_rank = rank.ep_rank, .ep_size = rank.ep_size});
  LayerTensors whole = layer_tensors(owned, layer);
  const LoadedRange range = loaded_range(backend, options, whole.shape, rank);
  if (rank.tp_size > 1) {
    LayerShape share = whole.shape;
    set_share(share, range, rank);
    make_recipe(backend, share, options);  // the backend's own rules first
    check_cuts(whole, range);
  }
  LayerTensors part = rank.tp_size == 1
                          ? std::move(whole)
                          : layer_tensors(tp_part(owned, range.begin, range.count), layer);
  set_share(part.shape, range, rank);

  PreparedLayer prepared;
  prepared.backend = &backend;
  prepared.options = options;
  prepared.rank = rank;
  prepared.range = range;
  prepared.source = std::make_shared<const LayerTensors>(std::move(part));
  prepared.storage = layer.storage;
  plan_all(prepared);
  return prepared;
}

std::int64_t byte_count(const PreparedTensor& tensor) {
  return tensor.from != nullptr ? tensor.plan.map.experts * tensor.plan.map.out_bytes()
                                : static_cast<std::int64_t>(tensor.values.size() * sizeof(float));
}

void make(const PreparedTensor& tensor, std::span<std::byte> out, int threads) {
  if (tensor.from != nullptr) {
    apply(tensor.plan.map, *tensor.from, tensor.plan.recoders, out, threads);
  } else {
    std::memcpy(out.data(), tensor.values.data(), out.size());
  }
}

Tensor make(const PreparedTensor& tensor, int threads) {
  Tensor made{tensor.name, tensor.dtype, tensor.shape, {}};
  made.bytes.resize(static_cast<std::size_t>(byte_count(tensor)));
  make(tensor, made.bytes, threads);
  return made;
}

}  // namespace moeref
