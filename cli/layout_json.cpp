#include "cli/layout_json.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "cli/layout_formats.hpp"
#include "cli/selection.hpp"
#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

constexpr std::int64_t kMostSize = std::int64_t{1} << 31;
constexpr std::int64_t kMostEmpty = 1 << 16;  ///< sizes of a rank that may have no elements
constexpr std::int64_t kMostBytes = std::int64_t{1} << 40;

/// The vectors of ExpertScalars by name, and how many numbers each has if it is there.
struct ScalarField {
  const char* name;
  std::vector<float> ExpertScalars::*values;
  std::int64_t (*count)(const LayerShape& shape);
  bool (*needed)(const LayerShape& shape);
};

bool with_global_scales(const LayerShape& shape) { return has_global_scales(shape.weight_format); }
bool always(const LayerShape&) { return true; }
bool if_stored(const LayerShape&) { return false; }

constexpr std::array kScalarFields{
    ScalarField{"w13_scale", &ExpertScalars::w13_scale,
                [](const LayerShape& shape) { return shape.experts * shape.halves(); },
                with_global_scales},
    ScalarField{"w2_scale", &ExpertScalars::w2_scale,
                [](const LayerShape& shape) { return shape.experts; }, with_global_scales},
    ScalarField{"w13_input_scale", &ExpertScalars::w13_input_scale,
                [](const LayerShape& shape) { return shape.total_experts * shape.halves(); },
                if_stored},
    ScalarField{"w2_input_scale", &ExpertScalars::w2_input_scale,
                [](const LayerShape& shape) { return shape.total_experts; }, if_stored},
    ScalarField{"alpha", &ExpertScalars::alpha,
                [](const LayerShape& shape) { return shape.experts; }, always},
    ScalarField{"beta", &ExpertScalars::beta, [](const LayerShape& shape) { return shape.experts; },
                always},
    ScalarField{"limit", &ExpertScalars::limit,
                [](const LayerShape& shape) { return shape.experts; }, always},
};

json to_json(const LayerShape& shape) {
  return {{"model", shape.model},
          {"weight_format", shape.weight_format},
          {"experts", shape.experts},
          {"total_experts", shape.total_experts},
          {"first_expert", shape.first_expert},
          {"hidden", shape.hidden},
          {"intermediate", shape.intermediate},
          {"stride", shape.stride},
          {"full_intermediate", shape.full_intermediate},
          {"gated", shape.gated},
          {"bias", shape.bias},
          {"tp_rank", shape.tp_rank},
          {"tp_size", shape.tp_size}};
}

/// Whether a * b * c <= most, all at least 0.
bool fits(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t most) {
  if (a == 0 || b == 0 || c == 0) return true;
  return a <= most && b <= most / a && c <= most / a / b;
}

LayerShape shape_from_json(const Fields& fields, std::int64_t most) {
  LayerShape shape;
  shape.model = one_line(fields.string("model"));
  shape.weight_format = fields.string("weight_format");
  const std::int64_t most_size = std::max(most, kMostEmpty);
  shape.experts = fields.integer("experts", 1, most_size);
  shape.total_experts = fields.integer("total_experts", shape.experts, most_size);
  shape.first_expert = fields.integer("first_expert", 0, shape.total_experts - shape.experts);
  shape.hidden = fields.integer("hidden", 1, most_size);
  shape.intermediate = fields.integer("intermediate", 0, most_size);
  shape.stride = fields.integer("stride", std::max<std::int64_t>(shape.intermediate, 1), most_size);
  shape.full_intermediate = fields.integer("full_intermediate", shape.intermediate, kMostSize);
  shape.gated = fields.boolean("gated");
  shape.bias = fields.boolean("bias");
  shape.tp_size = fields.integer("tp_size", 1, kMostSize);
  shape.tp_rank = fields.integer("tp_rank", 0, shape.tp_size - 1);
  if (!fits(shape.experts * shape.halves(), shape.intermediate, shape.hidden, most)) {
    fail(fields.subject(),
         "says {} experts of [{}, {}], more than the file holds; the metadata belong to another "
         "file",
         shape.experts, shape.halves() * shape.intermediate, shape.hidden);
  }
  return shape;
}

/// How a block is written: 0 is the whole axis.
std::int64_t block_to_json(std::int64_t block) { return block == kWholeAxis ? 0 : block; }
std::int64_t block_from_json(const Fields& fields, const char* key) {
  const std::int64_t block = fields.integer(key, 0, kMostSize);
  return block == 0 ? kWholeAxis : block;
}

void check_stack(const Fields& fields, const TensorStack& stack, const LayerShape& shape,
                 Slot slot) {
  const bool w13 = is_w13(slot);
  const bool bias = is_bias(slot);
  const std::int64_t rows = w13 ? shape.intermediate : shape.hidden;
  const std::int64_t cols = bias ? 1 : w13 ? shape.hidden : shape.intermediate;
  const std::int64_t want_rows = block_count(rows, stack.block_rows);
  const std::int64_t want_cols = block_count(cols, stack.block_cols);
  const int halves = w13 ? shape.halves() : 1;
  if (stack.halves != halves || stack.half_rows != want_rows || stack.cols != want_cols) {
    fail(fields.subject(), "is {} x [{}, {}]; the layer's shape needs {} x [{}, {}]", stack.halves,
         stack.half_rows, stack.cols, halves, want_rows, want_cols);
  }
}

std::vector<float> floats_from_json(const Fields& fields, const char* key) {
  std::vector<float> values;
  const json& list = fields.at(key);
  if (!list.is_array()) fail(fields.subject(), "{} is no list", key);
  for (const json& bits : list) {
    if (!bits.is_number_unsigned() || bits.get<std::uint64_t>() > 0xFFFF'FFFFu) {
      fail(fields.subject(), "{} holds {}, needs f32 bit patterns", key, shown(bits));
    }
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits.get<std::uint64_t>())));
  }
  return values;
}

json to_json(const ExpertScalars& scalars) {
  json object = json::object();
  for (const ScalarField& field : kScalarFields) {
    json bits = json::array();
    for (const float value : scalars.*field.values) {
      bits.push_back(std::bit_cast<std::uint32_t>(value));
    }
    if (!bits.empty()) object[field.name] = std::move(bits);
  }
  return object;
}

ExpertScalars scalars_from_json(const Fields& fields, const LayerShape& shape) {
  ExpertScalars scalars;
  for (const ScalarField& field : kScalarFields) {
    if (!fields.has(field.name) && !field.needed(shape)) continue;
    std::vector<float>& values = scalars.*field.values;
    values = floats_from_json(fields, field.name);
    const std::int64_t needed = field.count(shape);
    if (static_cast<std::int64_t>(values.size()) != needed) {
      fail(fields.subject(), "{} has {} numbers, needs {}", field.name, values.size(), needed);
    }
  }
  return scalars;
}

}  // namespace

Fields::Fields(std::string subject, const json& object)
    : subject_(std::move(subject)), object_(&object) {
  if (!object.is_object()) fail(subject_, "holds {}, needs a JSON object", shown(object));
}

const json& Fields::at(const char* key) const {
  const auto found = object_->find(key);
  if (found == object_->end()) {
    fail(subject_, "has no field '{}'; the file was not written by moeref, or was changed", key);
  }
  return *found;
}

std::int64_t Fields::integer(const char* key, std::int64_t least, std::int64_t most) const {
  const json& value = at(key);
  const bool too_large = value.is_number_unsigned() &&
                         value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX);
  if (!value.is_number_integer() || too_large || value.get<std::int64_t>() < least ||
      value.get<std::int64_t>() > most) {
    fail(subject_, "{} is {}, needs an integer from {} to {}", key, shown(value), least, most);
  }
  return value.get<std::int64_t>();
}

bool Fields::boolean(const char* key) const {
  const json& value = at(key);
  if (!value.is_boolean()) fail(subject_, "{} is {}, needs true or false", key, shown(value));
  return value.get<bool>();
}

std::string Fields::string(const char* key) const {
  const json& value = at(key);
  if (!value.is_string()) fail(subject_, "{} is {}, needs a text", key, shown(value));
  return value.get<std::string>();
}

Fields Fields::object(const char* key) const {
  return Fields(fmt::format("{}.{}", subject_, key), at(key));
}

std::int64_t most_elements(std::int64_t bytes) {
  return std::clamp<std::int64_t>(bytes, 1, kMostBytes) * 2;
}

json to_json(const TensorStack& stack) {
  return {{"dtype", name(stack.dtype)},
          {"bits", stack.element_bits},
          {"halves", stack.halves},
          {"half_rows", stack.half_rows},
          {"cols", stack.cols},
          {"block_rows", block_to_json(stack.block_rows)},
          {"block_cols", block_to_json(stack.block_cols)}};
}

TensorStack stack_from_json(const Fields& fields, std::int64_t experts, std::int64_t most) {
  TensorStack stack;
  const auto dtype = parse_dtype(fields.string("dtype"));
  if (!dtype) fail(fields.subject(), "dtype is unknown: {}", shown(fields.all().at("dtype")));
  stack.dtype = *dtype;
  stack.element_bits = static_cast<int>(fields.integer("bits", 4, 32));
  const int stored = info(stack.dtype).bits;
  const bool packed = stack.element_bits == 4 && stored == 8;
  constexpr std::array kBits{4, 8, 16, 32};
  if (std::find(kBits.begin(), kBits.end(), stack.element_bits) == kBits.end() ||
      !(packed || stored == stack.element_bits)) {
    fail(fields.subject(), "elements of {} bits do not fit dtype {}", stack.element_bits,
         name(stack.dtype));
  }
  stack.experts = experts;
  stack.halves = static_cast<int>(fields.integer("halves", 1, 2));
  stack.half_rows = fields.integer("half_rows", 0, std::max(most, kMostEmpty));
  stack.cols = fields.integer("cols", 0, std::max(most, kMostEmpty));
  stack.block_rows = block_from_json(fields, "block_rows");
  stack.block_cols = block_from_json(fields, "block_cols");
  if (!fits(experts * stack.halves, stack.half_rows, stack.cols, most) ||
      stack.cols * stack.element_bits % 8 != 0) {
    fail(fields.subject(), "is {} x {} x [{}, {}], which no tensor of this file is", experts,
         stack.halves, stack.half_rows, stack.cols);
  }
  stack.planes.assign(static_cast<std::size_t>(experts * stack.halves),
                      Plane{nullptr, 0, stack.cols, 1});
  return stack;
}

json to_json(const LayerTensors& layer) {
  json sources = json::object();
  for (int i = 0; i < kSlotCount; ++i) {
    const auto slot = static_cast<Slot>(i);
    if (const TensorStack* stack = layer.find(slot)) {
      sources[std::string(name(slot))] = to_json(*stack);
    }
  }
  return {{"shape", to_json(layer.shape)},
          {"sources", std::move(sources)},
          {"scalars", to_json(layer.scalars)}};
}

LayerTensors layer_from_json(const Fields& fields, std::int64_t most) {
  LayerTensors layer;
  layer.shape = shape_from_json(fields.object("shape"), most);
  const Fields sources = fields.object("sources");
  for (int i = 0; i < kSlotCount; ++i) {
    const auto slot = static_cast<Slot>(i);
    const std::string key(name(slot));
    if (!sources.has(key.c_str())) continue;
    const Fields source = sources.object(key.c_str());
    TensorStack stack = stack_from_json(source, layer.shape.experts, most);
    stack.name = key;
    check_stack(source, stack, layer.shape, slot);
    layer.stacks[static_cast<std::size_t>(i)] = std::move(stack);
  }
  for (const Slot slot : {Slot::w13, Slot::w2}) {
    if (layer.find(slot) == nullptr) fail(sources.subject(), "has no field '{}'", name(slot));
  }
  describe_scales(layer);
  layer.scalars = scalars_from_json(fields.object("scalars"), layer.shape);
  return layer;
}

void add_rank(json& params, const Shard& rank, const LoadedRange& range) {
  params["tp"] = fmt::format("{}/{}", rank.tp_rank, rank.tp_size);
  params["ep"] = fmt::format("{}/{}", rank.ep_rank, rank.ep_size);
  params["range"] = {{"begin", range.begin}, {"count", range.count}, {"stride", range.stride}};
}

StoredRank rank_from_json(const Fields& fields, const LayerShape& shape) {
  StoredRank stored;
  parse_rank(fields.subject() + ".tp", fields.string("tp"), stored.rank.tp_rank,
             stored.rank.tp_size);
  parse_rank(fields.subject() + ".ep", fields.string("ep"), stored.rank.ep_rank,
             stored.rank.ep_size);
  const bool same_tp = stored.rank.tp_rank == shape.tp_rank && stored.rank.tp_size == shape.tp_size;
  if (!same_tp || stored.rank.ep_rank >= stored.rank.ep_size) {
    fail(fields.subject(), "says tp {}, ep {}, which is no rank of shape.tp_rank {} of {}",
         fields.string("tp"), fields.string("ep"), shape.tp_rank, shape.tp_size);
  }
  const Fields range = fields.object("range");
  stored.range.count = range.integer("count", shape.intermediate, shape.intermediate);
  stored.range.stride = range.integer("stride", shape.stride, shape.stride);
  stored.range.begin = range.integer("begin", 0, shape.full_intermediate - shape.intermediate);
  return stored;
}

}  // namespace moeref::cli
