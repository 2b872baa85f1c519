#include "cli/layout_single.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "quant/error.hpp"

namespace moeref::cli {
namespace {

/// "8,512,256" or "512,256": experts, rows, columns in elements.
Shape parse_shape(const std::string& text) {
  constexpr std::int64_t kMost = std::int64_t{1} << 27;
  Shape shape;
  std::size_t at = 0;
  while (at <= text.size()) {
    const std::size_t end = std::min(text.find_first_of(",x", at), text.size());
    shape.push_back(parse_size("--shape", text.substr(at, end - at), 1, kMost));
    at = end + 1;
  }
  if (shape.size() == 2) shape.insert(shape.begin(), 1);
  if (shape.size() != 3) {
    fail("--shape", "'{}' has {} sizes; give experts,rows,columns of the logical tensor", text,
         shape.size());
  }
  return shape;
}

}  // namespace

void add_single_options(CLI::App& command, SingleTensor& single) {
  command.add_option("--steps", single.steps,
                     "steps for one tensor, as in \"swap_halves shuffle_rows(128)\"");
  command.add_option("--order", single.order,
                     "of the two halves of the rows in the file: gate_up, up_gate, interleaved, "
                     "none (default: of a layer what the file says; with --steps none)");
  command.add_option("--bits", single.bits, "bits of an element, 4 for packed FP4 codes");
  command.add_option("--block", single.block,
                     "weight rows and columns that an element stands for, as in 128x128, if the "
                     "tensor holds scales (steps count weight rows)");
}

void refuse_single(const SingleTensor& single, const std::string& dtype, std::string_view instead) {
  const std::pair<std::string_view, bool> given[] = {{"--order", !single.order.empty()},
                                                     {"--bits", single.bits != 0},
                                                     {"--block", !single.block.empty()},
                                                     {"--dtype", !dtype.empty()}};
  for (const auto& [option, is_given] : given) {
    if (is_given) fail(option, "goes with --steps; {}", instead);
  }
}

int element_bits(const SingleTensor& single, const std::string& subject, DType dtype) {
  const int stored = info(dtype).bits;
  const bool packed = single.bits == 4 && stored == 8;
  const int bits = packed || single.bits == 0 ? (packed ? 4 : stored) : single.bits;
  constexpr std::array kBits{4, 8, 16, 32};
  const bool known = std::find(kBits.begin(), kBits.end(), bits) != kBits.end();
  if (known && (packed || bits == stored)) return bits;
  fail(subject, "is {} with elements of {} bits; steps move 4 (two a byte), 8, 16 or 32 bits",
       name(dtype), bits);
}

void need_order(const SingleTensor& single) {
  if (!single.order.empty()) return;
  for (const Step& step : parse_steps("--steps", single.steps)) {
    if (std::holds_alternative<SwapHalves>(step) || std::holds_alternative<SwapPairs>(step) ||
        std::holds_alternative<PadHalves>(step) || std::holds_alternative<InterleaveHalves>(step)) {
      fail("--order",
           "is needed: {} depends on the halves of the rows; give gate_up, up_gate, "
           "interleaved, or none for a tensor without halves",
           describe(step));
    }
  }
}

void set_block(const SingleTensor& single, TensorStack& stack) {
  if (single.block.empty()) return;
  constexpr std::int64_t kMost = 1 << 20;
  const std::size_t cross = single.block.find('x');
  if (cross == std::string::npos) {
    fail("--block", "'{}' is not understood; write rows x columns, as in 1x32", single.block);
  }
  stack.block_rows = parse_size("--block", single.block.substr(0, cross), 1, kMost);
  stack.block_cols = parse_size("--block", single.block.substr(cross + 1), 1, kMost);
}

PreparedFile open_foreign(const ForeignTensor& foreign, const SingleTensor& single) {
  if (foreign.tensor.empty() || foreign.shape.empty()) {
    fail("--steps", "takes a file, a tensor's name and --shape, that of the logical tensor");
  }
  need_order(single);
  PreparedFile opened;
  opened.file = SafetensorsFile::open(foreign.file);
  const TensorView& view = opened.file->at(foreign.tensor);
  const Shape shape = parse_shape(foreign.shape);
  TensorStack stack;
  stack.name = view.name;
  stack.dtype = view.dtype;
  if (!foreign.dtype.empty()) {
    const auto dtype = parse_dtype(foreign.dtype);
    if (!dtype) fail("--dtype", "'{}' is no dtype; give one as U8 or F8_E4M3", foreign.dtype);
    stack.dtype = *dtype;
  }
  stack.element_bits = element_bits(single, opened.subject(view.name), stack.dtype);
  stack.experts = shape[0];
  const std::string order = single.order.empty() ? "none" : single.order;
  stack.halves = parse_order(order) == GateOrder::none ? 1 : 2;
  if (shape[1] % stack.halves != 0 || shape[2] * stack.element_bits % 8 != 0) {
    fail("--shape", "{} has no even number of rows, or columns that fill no bytes",
         to_string(shape));
  }
  stack.half_rows = shape[1] / stack.halves;
  stack.cols = shape[2];
  set_block(single, stack);
  opened.layer = plan_single(foreign.tensor, std::move(stack), parse_steps("--steps", single.steps),
                             kMostElements);
  opened.layer.tensors.front().dtype = view.dtype;  // a dump may name the same bytes otherwise
  return opened;
}

}  // namespace moeref::cli
