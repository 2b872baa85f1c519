#include "cli/conform/layout_amd_case.hpp"

#include <algorithm>

#include "quant/error.hpp"

namespace moeref::conform::amd {
namespace {

using Steps = std::vector<Step>;

/// So that products of three sizes cannot overflow.
constexpr std::int64_t kMostSize = std::int64_t{1} << 20;

/// Elements of a strided view in row-major order of its shape.
std::vector<std::byte> in_logical_order(const std::vector<std::byte>& stored, const Shape& shape,
                                        const std::vector<std::int64_t>& strides,
                                        std::size_t width) {
  std::vector<std::byte> ordered(stored.size());
  for (std::int64_t place = 0; place < element_count(shape); ++place) {
    std::int64_t rest = place;
    std::int64_t from = 0;
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      from += rest % shape[axis] * strides[axis];
      rest /= shape[axis];
    }
    std::copy_n(stored.begin() + from * static_cast<std::int64_t>(width), width,
                ordered.begin() + place * static_cast<std::int64_t>(width));
  }
  return ordered;
}

}  // namespace

TensorView as_matrices(const GoldenCase& golden, std::string_view input) {
  TensorView view = golden.input(input);
  if (view.shape.size() < 2) {
    fail(golden.subject(view.name), "has shape {}; needed are rows and columns",
         to_string(view.shape));
  }
  const Shape leading(view.shape.begin(), view.shape.end() - 2);
  view.shape = {element_count(leading), *(view.shape.end() - 2), view.shape.back()};
  if (view.shape[1] == 0 || view.shape[2] == 0) {
    fail(golden.subject(view.name), "has shape {}; it holds nothing to move",
         to_string(golden.input(input).shape));
  }
  return view;
}

TensorStack transposed(TensorStack stack) {
  for (Plane& plane : stack.planes) std::swap(plane.row_stride, plane.col_stride);
  std::swap(stack.half_rows, stack.cols);
  return stack;
}

TensorStack one_row(const TensorView& view) {
  TensorView row = view;
  row.shape = {1, 1, view.size()};
  return dense_stack(row, GateOrder::separate, info(view.dtype).bits);
}

Tensor run(const GoldenCase& golden, const TensorStack& stack, const Steps& steps) {
  const Plan plan = make_plan(golden.subject(stack.name), stack, steps, nullptr);
  Tensor made{stack.name, plan.dtype, plan.shape, {}};
  made.bytes.resize(static_cast<std::size_t>(plan.map.experts * plan.map.out_bytes()));
  apply(plan.map, stack, plan.recoders, made.bytes, 1);
  if (!plan.strides.empty()) {
    const auto width = static_cast<std::size_t>(info(plan.dtype).bits) / 8;
    made.bytes = in_logical_order(made.bytes, plan.shape, plan.strides, width);
  }
  return made;
}

Tensor run(const GoldenCase& golden, std::string_view input, const Steps& steps, GateOrder order) {
  const TensorView view = as_matrices(golden, input);
  Tensor made = run(golden, dense_stack(view, order, info(view.dtype).bits), steps);
  const Shape& given = golden.input(input).shape;
  Shape shape(given.begin(), given.end() - 2);
  shape.insert(shape.end(), made.shape.begin() + 1, made.shape.end());
  made.shape = std::move(shape);
  return made;
}

Tensor run_bytes(const GoldenCase& golden, std::string_view input, const Steps& steps) {
  const TensorView view = as_matrices(golden, input);
  Tensor made = run(golden, dense_stack(view, GateOrder::separate, 8), steps);
  const Shape& given = golden.input(input).shape;
  if (given.size() == 2) made.shape.erase(made.shape.begin());
  return made;
}

Tensor unchanged(const GoldenCase& golden, std::string_view input) {
  const TensorView& view = golden.input(input);
  return {view.name, view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}};
}

OpResult only(std::string name, Tensor tensor) {
  OpResult result;
  result.outputs.emplace(std::move(name), std::move(tensor));
  return result;
}

std::string arch_param(const GoldenCase& golden) {
  const auto name = golden.text_param("arch");
  if (!name) fail(golden.op, "params.arch is missing; name the device, as gfx950");
  return *name;
}

std::int64_t integer_param(const GoldenCase& golden, std::string_view name, std::int64_t fallback) {
  const auto found = golden.params.find(name);
  if (found == golden.params.end() || found->is_null()) return fallback;
  const std::int64_t value = golden.integer_param(name);
  if (value < -kMostSize || value > kMostSize) {
    fail(golden.op, "params.{} is {}; at most {} makes sense", name, value, kMostSize);
  }
  return value;
}

std::array<std::int64_t, 2> layout_param(const GoldenCase& golden) {
  const auto found = golden.params.find("layout");
  if (found == golden.params.end()) return {16, 16};
  const bool pair = found->is_array() && found->size() == 2 &&
                    std::all_of(found->begin(), found->end(), [](const nlohmann::json& entry) {
                      return entry.is_number_integer() && entry.get<std::int64_t>() > 0 &&
                             entry.get<std::int64_t>() <= kMostSize;
                    });
  if (!pair) fail(golden.op, "params.layout must be two positive integers");
  return {(*found)[0].get<std::int64_t>(), (*found)[1].get<std::int64_t>()};
}

std::int64_t size_param(const GoldenCase& golden, std::string_view name) {
  golden.integer_param(name);  // it must be there
  return size_param(golden, name, 0);
}

std::int64_t size_param(const GoldenCase& golden, std::string_view name, std::int64_t fallback) {
  const std::int64_t size = integer_param(golden, name, fallback);
  if (size < 1) fail(golden.op, "params.{} is {}; it must be positive", name, size);
  return size;
}

std::vector<std::string> words_param(const GoldenCase& golden, std::string_view name) {
  const auto found = golden.params.find(name);
  const auto is_word = [](const nlohmann::json& entry) { return entry.is_string(); };
  if (found == golden.params.end() || !found->is_array() || found->empty() ||
      !std::all_of(found->begin(), found->end(), is_word)) {
    fail(golden.op, "params.{} must be a list of words", name);
  }
  return found->get<std::vector<std::string>>();
}

}  // namespace moeref::conform::amd
