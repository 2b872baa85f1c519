#include "cli/conform/memory_order.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "quant/error.hpp"

namespace moeref::conform {
namespace {

const Shape& shape_of(const GoldenCase& golden, std::string_view input) {
  const TensorView& view = golden.input(input);
  if (view.shape.size() < 2) {
    fail(golden.subject(view.name), "has shape {}; [.., rows, columns] is needed",
         to_string(view.shape));
  }
  return view.shape;
}

/// Sizes by falling stride.
Shape memory_order(const Plan& plan) {
  if (plan.strides.empty()) return plan.shape;
  std::vector<std::size_t> axes(plan.shape.size());
  std::iota(axes.begin(), axes.end(), std::size_t{0});
  std::stable_sort(axes.begin(), axes.end(), [&plan](std::size_t left, std::size_t right) {
    return plan.strides[left] > plan.strides[right];
  });
  Shape ordered;
  for (const std::size_t axis : axes) ordered.push_back(plan.shape[axis]);
  return ordered;
}

}  // namespace

TensorStack matrices(const GoldenCase& golden, std::string_view input, int element_bits) {
  const Shape& shape = shape_of(golden, input);
  TensorView view = golden.input(input);
  const Shape leading(shape.begin(), shape.end() - 2);
  view.shape = {element_count(leading), *(shape.end() - 2), shape.back()};
  return dense_stack(view, GateOrder::separate, element_bits);
}

TensorStack transposed_matrices(const GoldenCase& golden, std::string_view input,
                                int element_bits) {
  TensorStack stack = matrices(golden, input, element_bits);
  std::swap(stack.half_rows, stack.cols);
  for (Plane& plane : stack.planes) std::swap(plane.row_stride, plane.col_stride);
  return stack;
}

Tensor run_in_memory_order(const GoldenCase& golden, std::string_view input,
                           const TensorStack& stack, const std::vector<Step>& steps,
                           bool keep_first) {
  const Plan plan = make_plan(golden.subject(stack.name), stack, steps, nullptr);
  Shape shape = memory_order(plan);
  if (!keep_first) {
    const Shape& given = shape_of(golden, input);
    shape.erase(shape.begin());
    shape.insert(shape.begin(), given.begin(), given.end() - 2);
  }
  Tensor made{stack.name, plan.dtype, std::move(shape), {}};
  made.bytes.resize(static_cast<std::size_t>(plan.map.experts * plan.map.out_bytes()));
  apply(plan.map, stack, plan.recoders, made.bytes, 1);
  return made;
}

}  // namespace moeref::conform
