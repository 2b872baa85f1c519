#include "layout/step.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "quant/error.hpp"

namespace moeref {
namespace {

/// Carries out the steps on a plan, one overload each.
struct Append {
  Plan& plan;
  const LayerTensors* layer;

  std::int64_t rows() const { return plan.map.rows.size(); }

  void need(bool holds, std::string_view step, const std::string& what) const {
    if (!holds) fail(plan.tensor, "{} needs {}", step, what);
  }

  /// A multiple of weight rows or columns in units of this tensor.
  std::int64_t in_blocks(std::int64_t weight_count, std::int64_t block,
                         std::string_view step) const {
    if (weight_count % block == 0) return weight_count / block;
    // A block that is larger than the multiple covers it whole.
    if (block % weight_count == 0) return 1;
    fail(plan.tensor, "{}({}) does not fit the scale blocks of {}; give a multiple of {}", step,
         weight_count, block, block);
  }

  /// Whether a move inside runs of `run` weight rows leaves this tensor as it is, because all rows
  /// of a run have one scale.
  bool inside_a_block(std::int64_t run, std::string_view step) const {
    if (plan.block_rows % run == 0) return true;
    if (plan.block_rows == 1) return false;
    fail(plan.tensor, "{} moves rows inside {} rows, the scale blocks have {}; it cannot be done",
         step, run, plan.block_rows);
  }

  /// Error: a matrix of `rows` and `cols` is larger than a tensor can be. Before any table is made.
  void need_room(std::int64_t rows, std::int64_t cols, std::string_view step) const {
    const std::int64_t experts = std::max<std::int64_t>(plan.map.experts, 1);
    const std::int64_t others = experts * std::max<std::int64_t>(cols, 1);
    if (rows > plan.most_elements / others || cols > plan.most_elements / experts) {
      fail(plan.tensor, "{} makes {} x [{}, {}] elements, more than the tensor can have", step,
           plan.map.experts, rows, cols);
    }
  }

  int pad_step(std::string_view step) const {
    plan.map.pad_steps.emplace_back(step);
    return static_cast<int>(plan.map.pad_steps.size()) - 1;
  }

  /// The size of a part after padding it; `to` and `multiple` count the weight.
  std::int64_t padded(std::int64_t present, std::int64_t multiple, std::int64_t to,
                      std::int64_t block, std::string_view step) const {
    if (block == kWholeAxis) return present;
    if (to == 0) return round_up(present, in_blocks(multiple, block, step));
    const std::int64_t size = ceil_div(to, block);
    need(size >= present, step,
         fmt::format("at most {} rows or columns, got {}; pad to more", to, present * block));
    return size;
  }

  void operator()(const SwapHalves&) const {
    if (plan.halves == 1) return;
    const std::int64_t half = rows() / 2;
    need(rows() % 2 == 0, "swap_halves", fmt::format("an even number of rows, got {}", rows()));
    plan.map.rows.permute(rows(), [half](std::int64_t i) { return (i + half) % (2 * half); });
  }

  void operator()(const SwapPairs&) const {
    if (plan.halves == 1 || inside_a_block(2, "swap_pairs")) return;
    need(rows() % 2 == 0, "swap_pairs", fmt::format("an even number of rows, got {}", rows()));
    plan.map.rows.permute(rows(), [](std::int64_t i) { return i ^ 1; });
  }

  void operator()(const InterleaveHalves& step) const {
    if (plan.halves == 1) return;
    need(step.block % plan.block_rows == 0, "interleave_halves",
         fmt::format("scales of at most {} rows, got blocks of {}; alternate blocks of {} rows",
                     step.block, plan.block_rows, plan.block_rows));
    const std::int64_t block = step.block / plan.block_rows;
    const std::int64_t half = rows() / 2;
    need(
        rows() % 2 == 0 && half % block == 0, "interleave_halves",
        fmt::format("halves that are a multiple of {} rows, got {} rows in all; put pad_halves({}) "
                    "before it",
                    block, rows(), block));
    plan.map.rows.permute(rows(), [block, half](std::int64_t i) {
      const std::int64_t chunk = i / block;
      return chunk % 2 * half + chunk / 2 * block + i % block;
    });
  }

  void operator()(const ShuffleRows& step) const {
    const std::int64_t block = step.epilogue_tile % 128 == 0 ? 32 : 16;
    if (inside_a_block(block, "shuffle_rows")) return;
    need(rows() % block == 0, "shuffle_rows",
         fmt::format("rows that are a multiple of {} (epilogue tile {}), got {}; put a pad before "
                     "it",
                     block, step.epilogue_tile, rows()));
    plan.map.rows.permute(rows(), [block](std::int64_t i) {
      const std::int64_t inside = i % block;
      return i - inside + inside % 8 * (block / 8) + inside / 8;
    });
  }

  void operator()(const PadHalves& step) const {
    const std::int64_t present = rows() / plan.halves;
    const std::int64_t size =
        padded(present, step.multiple, step.to, plan.block_rows, "pad_halves");
    if (size == present) return;
    need_room(size * plan.halves, plan.map.cols.size(), "pad_halves");
    plan.map.rows.pad_parts(plan.halves, size, pad_step("pad_halves"), step.fill);
  }

  void operator()(const PadRows& step) const {
    const std::int64_t size = padded(rows(), step.multiple, step.to, plan.block_rows, "pad_rows");
    if (size == rows()) return;
    need_room(size, plan.map.cols.size(), "pad_rows");
    plan.map.rows.pad_parts(1, size, pad_step("pad_rows"), step.fill);
  }

  void operator()(const PadCols& step) const {
    const std::int64_t present = plan.map.cols.size();
    const std::int64_t size = padded(present, step.multiple, step.to, plan.block_cols, "pad_cols");
    if (size == present) return;
    need(size * plan.map.element_bits % 8 == 0, "pad_cols",
         fmt::format("an even number of FP4 columns, got {}", size));
    need_room(rows(), size, "pad_cols");
    plan.map.cols.pad_parts(1, size, pad_step("pad_cols"), step.fill);
  }

  void operator()(const PermuteRuns& step) const {
    const auto run = static_cast<std::int64_t>(step.source.size());
    need(rows() % run == 0, step.name, fmt::format("a multiple of {} rows, got {}", run, rows()));
    plan.map.rows.permute(rows(), [&step, run](std::int64_t i) {
      return i - i % run + step.source[static_cast<std::size_t>(i % run)];
    });
  }

  void operator()(const RepeatRows& step) const {
    if (rows() > 0) {
      need(step.times <= plan.most_elements / rows(), "repeat_rows",
           fmt::format("at most {} rows, got {} x {}", plan.most_elements, rows(), step.times));
    }
    const std::int64_t all = rows() * step.times;
    need_room(step.rows == 0 ? all : step.rows, plan.map.cols.size(), "repeat_rows");
    need(step.rows <= all, "repeat_rows",
         fmt::format("at least {} rows after repeating, got {}", step.rows, all));
    plan.map.rows.permute(step.rows == 0 ? all : step.rows,
                          [&step](std::int64_t i) { return i / step.times; });
    // A scale of all rows becomes one for each.
    plan.block_rows =
        plan.block_rows == kWholeAxis ? 1 : std::max<std::int64_t>(plan.block_rows / step.times, 1);
  }

  void operator()(const Tile& step) const {
    const TileLayout& tile = step.layout;
    const int bits = plan.map.element_bits;
    need(std::find(tile.bits.begin(), tile.bits.end(), bits) != tile.bits.end(), tile.name,
         fmt::format("elements of {} bits, got {}", fmt::join(tile.bits, ", "), bits));
    need(rows() % tile.need_rows == 0 && plan.map.cols.size() % tile.need_cols == 0, tile.name,
         fmt::format("rows % {} == 0 and columns % {} == 0, got [{}, {}]; put a pad before it",
                     tile.need_rows, tile.need_cols, rows(), plan.map.cols.size()));
    const std::int64_t out_rows = round_up(rows(), tile.pad_rows);
    const std::int64_t out_cols = round_up(plan.map.cols.size(), tile.pad_cols);
    need_room(out_rows, out_cols, tile.name);
    if (out_rows != rows() || out_cols != plan.map.cols.size()) {
      const int number = pad_step(tile.name);
      plan.map.rows.pad_parts(1, out_rows, number, tile.fill);
      plan.map.cols.pad_parts(1, out_cols, number, tile.fill);
    }
    plan.map.place(tile.digits);
    if (tile.dtype != DType::boolean) plan.dtype = tile.dtype;
    const TileExtent extent{plan.map.experts, out_rows, out_cols, bits, info(plan.dtype).bits};
    plan.shape = tile.shape != nullptr ? tile.shape(extent) : matrix_shape();
    plan.tiled = true;
    if (tile.strides != nullptr) plan.strides = tile.strides(extent);
  }

  void operator()(const PermuteBits& step) const {
    need(plan.map.out_bytes() % 4 == 0, step.bits->name(), "whole 32-bit words");
    plan.map.words = step.bits;
  }

  void operator()(const Recode& step) const {
    if (layer != nullptr || !step.needs_layer) {
      std::shared_ptr<const Recoder> recoder =
          step.make(layer != nullptr ? *layer : LayerTensors{});
      need(recoder->in_bits() == plan.map.element_bits, step.name,
           fmt::format("elements of {} bits, got {}", recoder->in_bits(), plan.map.element_bits));
      plan.recoders.push_back(std::move(recoder));
    }
    plan.map.element_bits = step.out_bits;
    plan.dtype = step.dtype;
  }

  Shape matrix_shape() const {
    const std::int64_t stored = info(plan.dtype).bits;
    return {plan.map.experts, rows(), plan.map.cols.size() * plan.map.element_bits / stored};
  }
};

}  // namespace

Plan start_plan(std::string name, const TensorStack& stack, std::int64_t most_elements) {
  if (stack.cols * stack.element_bits % 8 != 0) {
    fail(stack.name,
         "has {} FP4 columns for this rank, which do not fill whole bytes; choose --tp or a loader "
         "that cuts an even number",
         stack.cols);
  }
  Plan plan;
  plan.tensor = std::move(name);
  plan.most_elements = most_elements;
  plan.map.experts = stack.experts;
  const Append visitor{plan, nullptr};
  visitor.need_room(stack.rows(), stack.cols, "it");
  plan.map = IndexMap(stack.experts, stack.rows(), stack.cols, stack.element_bits);
  plan.halves = stack.halves;
  plan.block_rows = stack.block_rows;
  plan.block_cols = stack.block_cols;
  plan.dtype = stack.dtype;
  plan.shape = visitor.matrix_shape();
  return plan;
}

void append(Plan& plan, const Step& step, const LayerTensors* layer) {
  if (plan.map.words != nullptr) {
    fail(plan.tensor, "{} cannot follow {}, which moves the bits of whole words; put it before",
         describe(step), plan.map.words->name());
  }
  if (plan.padded && std::holds_alternative<Recode>(step)) {
    fail(plan.tensor,
         "{} cannot follow a pad, whose bytes it would leave as they are; put it before",
         describe(step));
  }
  if (plan.tiled && !std::holds_alternative<PermuteBits>(step)) {
    fail(plan.tensor, "{} cannot follow the order that is already set; put it before",
         describe(step));
  }
  const Append visitor{plan, layer};
  std::visit(visitor, step);
  plan.padded = plan.padded || kind_of(step) == StepKind::pad;
  if (plan.tiled) return;
  plan.shape = visitor.matrix_shape();
  plan.map.place({{Axis::row, 1}, {Axis::col, 1}});  // row-major, whatever the size is now
}

Plan make_plan(std::string name, const TensorStack& stack, std::span<const Step> steps,
               const LayerTensors* layer, std::int64_t most_elements) {
  Plan plan = start_plan(std::move(name), stack, most_elements);
  for (const Step& step : steps) append(plan, step, layer);
  return plan;
}

}  // namespace moeref
