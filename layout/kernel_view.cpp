#include "layout/kernel_view.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "layout/dense_layer.hpp"
#include "quant/error.hpp"
#include "simd/float_environment.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Room for the matrices of `stack`, with the elements that `tensor` is prepared to.
DenseSlot dense_slot(const TensorStack& stack, const PreparedTensor& tensor) {
  DenseSlot dense;
  dense.name = stack.name;
  dense.rows = stack.rows();
  dense.cols = stack.cols;
  dense.element_bits = tensor.plan.map.element_bits;
  dense.dtype = tensor.plan.dtype;
  dense.block_rows = stack.block_rows;
  dense.block_cols = stack.block_cols;
  dense.bytes =
      std::make_shared<std::vector<std::byte>>(to_size(stack.experts * dense.expert_bytes()));
  return dense;
}

/// The first prepared tensor that is made from `slot`, by its place in the recipe, or -1.
std::int64_t tensor_of(const PreparedLayer& prepared, Slot slot) {
  const auto& recipes = prepared.recipe.tensors;
  const auto found =
      std::find_if(recipes.begin(), recipes.end(),
                   [slot](const TensorRecipe& recipe) { return recipe.from == slot; });
  return found == recipes.end() ? -1 : found - recipes.begin();
}

/// Sizes of a slot as the kernel sees it before its own steps.
TensorStack kernel_stack(const PreparedLayer& prepared, Slot slot) {
  const KernelReading& kernel = prepared.recipe.kernel;
  const bool first_gemm = is_w13(slot);
  TensorStack stack;
  stack.experts = prepared.source->shape.experts;
  stack.halves = first_gemm ? prepared.source->shape.halves() : 1;
  const std::int64_t rows = first_gemm ? kernel.intermediate : kernel.hidden;
  const std::int64_t cols = first_gemm ? kernel.hidden : kernel.intermediate;
  stack.half_rows = rows;
  stack.cols = cols;
  if (is_bias(slot)) stack.cols = 1;
  if (is_scale(slot)) {
    stack.block_rows = kernel.block_rows;
    stack.block_cols = kernel.block_cols;
    stack.half_rows = ceil_div(rows, kernel.block_rows);
    stack.cols = ceil_div(cols, kernel.block_cols);
  }
  return stack;
}

/// The kernel's own steps. Codes stay as prepared: it is the kernel that decodes them.
std::vector<Step> kernel_moves(const TensorRecipe& recipe) {
  const auto first = recipe.steps.end() - static_cast<std::ptrdiff_t>(recipe.kernel_steps);
  std::vector<Step> moves(first, recipe.steps.end());
  std::erase_if(moves, [](const Step& step) { return std::holds_alternative<Recode>(step); });
  return moves;
}

/// Columns that a kernel leaves out of its sums: code 0 is the number 0 in every format.
void clear_last_columns(DenseSlot& dense, std::int64_t count) {
  const std::int64_t row_bytes = dense.cols * dense.element_bits / 8;
  const std::int64_t cleared = std::min(count, dense.cols) * dense.element_bits / 8;
  const std::int64_t rows = row_bytes == 0 ? 0 : std::ssize(*dense.bytes) / row_bytes;
  for (std::int64_t row = 0; row < rows; ++row) {
    std::fill_n(dense.bytes->begin() + (row + 1) * row_bytes - cleared, cleared, std::byte{0});
  }
}

/// A prepared tensor with the kernel's order undone.
DenseSlot read_as_kernel(const PreparedLayer& prepared, std::int64_t number, const Tensor& made,
                         int threads) {
  const TensorRecipe& recipe = prepared.recipe.tensors[to_size(number)];
  const PreparedTensor& tensor = prepared.tensors[to_size(number)];
  TensorStack stack = kernel_stack(prepared, recipe.from);
  stack.name = tensor.name;
  stack.element_bits = tensor.plan.map.element_bits;
  stack.dtype = tensor.plan.dtype;
  const Plan plan = make_plan(tensor.name, stack, kernel_moves(recipe), nullptr);
  const std::int64_t expected = plan.map.experts * plan.map.out_bytes();
  if (static_cast<std::int64_t>(made.bytes.size()) != expected) {
    fail(tensor.name,
         "has {} bytes, the kernel of {} reads {}: {} experts of [{}, {}] with {} bits",
         made.bytes.size(), prepared.backend->name, expected, stack.experts, stack.rows(),
         stack.cols, stack.element_bits);
  }
  DenseSlot dense = dense_slot(stack, tensor);
  const UndoReport report = undo(plan.map, made.bytes, {}, *dense.bytes, threads);
  if (is_weight(recipe.from)) {
    clear_last_columns(dense, prepared.recipe.kernel.unread_k);
  }
  if (report.wrong_copies != 0) {
    fail(tensor.name, "holds {} copies that differ from the first, the first of them at element {}",
         report.wrong_copies, report.first_wrong_copy);
  }
  return dense;
}

/// A loaded tensor after the recodings of a prepared one.
DenseSlot recode(const PreparedTensor& tensor, const TensorStack& stack, int threads) {
  DenseSlot dense = dense_slot(stack, tensor);
  if (dense.bytes->empty()) return dense;
  const IndexMap identity(stack.experts, stack.rows(), stack.cols, dense.element_bits);
  apply(identity, stack, tensor.plan.recoders, *dense.bytes, threads);
  return dense;
}

/// One number for each expert of the rank; those of the source if the kernel reads none.
std::vector<float> read_numbers(const ScalarReader& reader, const ScalarValues& scalars,
                                const std::vector<float>& source) {
  if (!reader) return source;
  std::vector<float> numbers;
  for (std::size_t e = 0; e < source.size(); ++e) {
    numbers.push_back(reader(scalars, static_cast<std::int64_t>(e)));
  }
  return numbers;
}

/// What a user can do whose layer has another activation than the kernel.
std::string way_out(const PreparedLayer& prepared) {
  for (const OptionInfo& option : prepared.backend->options) {
    if (option.name != "swiglu") continue;
    return fmt::format("choose another backend; swiglu={} prepares it as upstream does",
                       option.values.back());
  }
  return "choose another backend";
}

/// Error: a kernel that clamps up elsewhere than gate, which no model means.
void check_up_limit(const PreparedLayer& prepared, const ScalarValues& scalars,
                    const std::vector<float>& limits) {
  const std::vector<float> of_up = read_numbers(prepared.recipe.kernel.up_limit, scalars, limits);
  for (std::size_t e = 0; e < limits.size(); ++e) {
    if (of_up[e] == limits[e]) continue;
    fail(prepared.backend->name,
         "clamps up of local expert {} at {}, gate at {}: their global scales differ, the limit is "
         "divided by that of gate; {}",
         e, of_up[e], limits[e], way_out(prepared));
  }
}

/// The parameters of the gated activation as the kernel has them.
void read_activation(Activation& activation, const PreparedLayer& prepared,
                     const ScalarValues& scalars) {
  const KernelReading& kernel = prepared.recipe.kernel;
  const ExpertScalars& source = prepared.source->scalars;
  activation.alphas = read_numbers(kernel.alpha, scalars, source.alpha);
  activation.betas = read_numbers(kernel.beta, scalars, source.beta);
  activation.limits = read_numbers(kernel.limit, scalars, source.limit);
  check_up_limit(prepared, scalars, activation.limits);
}

void check_reading(const PreparedLayer& prepared) {
  const KernelReading& kernel = prepared.recipe.kernel;
  const LayerShape& shape = prepared.source->shape;
  const bool halves = kernel.order == GateOrder::gate_up || kernel.order == GateOrder::up_gate ||
                      kernel.order == GateOrder::interleaved;
  if (kernel.hidden < shape.hidden || kernel.intermediate < shape.intermediate ||
      kernel.intermediate < 1) {
    fail(prepared.backend->name,
         "its kernel reads hidden {}, intermediate {}; the layer has {}, {}", kernel.hidden,
         kernel.intermediate, shape.hidden, shape.intermediate);
  }
  if (shape.gated && !halves) {
    fail(prepared.backend->name, "its kernel's reading does not tell gate and up apart");
  }
  for (const TensorRecipe& recipe : prepared.recipe.tensors) {
    if (is_scale(recipe.from) && (kernel.block_rows < 1 || kernel.block_cols < 1)) {
      fail(recipe.name, "is prepared, but the kernel's reading of {} has no scale blocks",
           prepared.backend->name);
    }
  }
}

/// The order of gate and up among the columns that the kernel's GEMM1 writes.
GateOrder gemm1_order(const PreparedLayer& prepared) {
  const std::int64_t number = tensor_of(prepared, Slot::w13);
  if (number >= 0) {
    const TensorRecipe& recipe = prepared.recipe.tensors[to_size(number)];
    for (std::size_t i = recipe.steps.size() - recipe.kernel_steps; i < recipe.steps.size(); ++i) {
      const auto* interleave = std::get_if<InterleaveHalves>(&recipe.steps[i]);
      if (interleave != nullptr && interleave->block == 1) return GateOrder::interleaved;
    }
  }
  return prepared.recipe.kernel.order;
}

}  // namespace

KernelFactor kernel_factor(const KernelReading& reading, const ScalarValues& scalars,
                           ExpertPart part, std::int64_t expert) {
  const bool first_gemm = part != &Expert::down;
  const auto& factor = !first_gemm             ? reading.down_factor
                       : part == &Expert::gate ? reading.gate_factor
                                               : reading.up_factor;
  const auto& input_scale = first_gemm ? reading.input_scale_13 : reading.input_scale_2;
  return {factor ? factor(scalars, expert) : 1.0f,
          input_scale ? input_scale(scalars, expert) : 1.0f};
}

ScalarValues planned_scalars(const PreparedLayer& prepared) {
  ScalarValues scalars;
  for (const PreparedTensor& tensor : prepared.tensors) {
    if (tensor.from == nullptr) scalars.emplace(tensor.name, tensor.values);
  }
  return scalars;
}

void check_activation(const PreparedLayer& prepared) {
  if (!prepared.source->shape.gated) return;
  const KernelReading& kernel = prepared.recipe.kernel;
  const ExpertScalars& source = prepared.source->scalars;
  const ScalarValues scalars = planned_scalars(prepared);
  const auto compare = [&](std::string_view name, const ScalarReader& reader,
                           const std::vector<float>& model) {
    const std::vector<float> applied = read_numbers(reader, scalars, model);
    for (std::size_t e = 0; e < model.size(); ++e) {
      if (applied[e] == model[e]) continue;
      fail(prepared.backend->name,
           "{} of the activation is {} for local expert {} of {}, the kernel computes with {}; {}",
           name, model[e], e, prepared.source->shape.model, applied[e], way_out(prepared));
    }
  };
  compare("alpha", kernel.alpha, source.alpha);
  compare("beta", kernel.beta, source.beta);
  if (!kernel.limit_is_folded) compare("limit", kernel.limit, source.limit);
  check_up_limit(prepared, scalars, read_numbers(kernel.limit, scalars, source.limit));
}

MoeLayer kernel_layer(const PreparedLayer& prepared, std::span<const Tensor> made, int threads) {
  const simd::DefaultFloatEnvironment environment;
  check_reading(prepared);
  if (made.size() != prepared.tensors.size()) {
    fail(prepared.backend->name, "{} tensors are given, {} are prepared", made.size(),
         prepared.tensors.size());
  }
  DenseSlots slots;
  for (std::size_t slot = 0; slot < slots.size(); ++slot) {
    const std::int64_t number = tensor_of(prepared, static_cast<Slot>(slot));
    if (number >= 0) slots[slot] = read_as_kernel(prepared, number, made[to_size(number)], threads);
  }
  ScalarValues scalars;
  for (std::size_t i = 0; i < made.size(); ++i) {
    if (prepared.tensors[i].from != nullptr) continue;
    std::vector<float> values(made[i].bytes.size() / sizeof(float));
    std::memcpy(values.data(), made[i].bytes.data(), made[i].bytes.size());
    scalars.emplace(prepared.tensors[i].name, std::move(values));
  }
  const KernelReading& kernel = prepared.recipe.kernel;
  MoeLayer layer =
      read_dense_layer(prepared, slots, scalars, kernel.order, kernel.intermediate, kernel.hidden);
  if (prepared.source->shape.gated) read_activation(layer.activation, prepared, scalars);
  return layer;
}

KernelLayer unprepared_layer(const MoeLayer& layer) {
  KernelLayer kernel;
  kernel.layer = layer;
  kernel.width = layer.expert_width();
  kernel.order = layer.gated() ? GateOrder::gate_up : GateOrder::none;
  return kernel;
}

KernelLayer prepared_kernel_layer(const PreparedLayer& prepared, std::span<const Tensor> made,
                                  int threads) {
  const KernelReading& reading = prepared.recipe.kernel;
  KernelLayer kernel;
  kernel.layer = kernel_layer(prepared, made, threads);
  kernel.width = prepared.source->shape.hidden;
  kernel.order = gemm1_order(prepared);
  kernel.scalars = planned_scalars(prepared);
  const auto factors = [&](const ScalarReader& reader) {
    std::vector<float> values;
    for (std::int64_t e = 0; reader && e < kernel.layer.local_experts(); ++e) {
      values.push_back(reader(kernel.scalars, e));
    }
    return values;
  };
  kernel.gate_factors = factors(reading.gate_factor);
  kernel.up_factors = factors(reading.up_factor);
  kernel.down_factors = factors(reading.down_factor);
  return kernel;
}

KernelLayer prepared_kernel_layer(const PreparedLayer& prepared, std::span<const Tensor> made,
                                  const MoeLayer& logical, int threads) {
  KernelLayer kernel = prepared_kernel_layer(prepared, made, threads);
  MoeLayer& layer = kernel.layer;
  if (logical.latent != 0) {
    layer.latent = layer.hidden;
    layer.hidden = logical.hidden;
  }
  layer.model_type = logical.model_type;
  layer.layer = logical.layer;
  layer.first_expert = logical.first_expert;
  layer.total_experts = logical.expert_count();
  layer.activation.form = logical.activation.form;
  layer.shared = logical.shared;
  layer.shared_activation = logical.shared_activation;
  layer.latent_in = logical.latent_in;
  layer.latent_out = logical.latent_out;
  layer.storage.insert(layer.storage.end(), logical.storage.begin(), logical.storage.end());
  return kernel;
}

MoeLayer recoded_layer(const PreparedLayer& prepared, const MoeLayer& loaded, int threads) {
  const simd::DefaultFloatEnvironment environment;
  DenseSlots slots;
  for (std::size_t slot = 0; slot < slots.size(); ++slot) {
    const std::int64_t number = tensor_of(prepared, static_cast<Slot>(slot));
    if (number < 0) continue;
    const PreparedTensor& tensor = prepared.tensors[to_size(number)];
    slots[slot] = recode(tensor, *tensor.from, threads);
  }
  const LayerShape& shape = prepared.source->shape;
  MoeLayer layer = read_dense_layer(prepared, slots, planned_scalars(prepared),
                                    shape.gated ? GateOrder::gate_up : GateOrder::none,
                                    shape.intermediate, shape.hidden);
  layer.activation = loaded.activation;
  const KernelReading& kernel = prepared.recipe.kernel;
  if (shape.gated && kernel.limit_is_folded) {
    layer.activation.limits =
        read_numbers(kernel.limit, planned_scalars(prepared), prepared.source->scalars.limit);
  }
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    for (const ExpertPart bias : {&Expert::gate_bias, &Expert::up_bias, &Expert::down_bias}) {
      if (!(layer.experts[e].*bias)) layer.experts[e].*bias = loaded.experts[e].*bias;
    }
  }
  layer.storage.insert(layer.storage.end(), loaded.storage.begin(), loaded.storage.end());
  return layer;
}

}  // namespace moeref
