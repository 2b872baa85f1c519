#include "cli/conform/memory_order.hpp"

#include <algorithm>
#include <numeric>

#include "cli/conform/layout_case.hpp"
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

}  // namespace

Shape memory_order(const Shape& shape, const std::vector<std::int64_t>& strides) {
  if (strides.empty()) return shape;
  std::vector<std::size_t> axes(shape.size());
  std::iota(axes.begin(), axes.end(), std::size_t{0});
  std::stable_sort(axes.begin(), axes.end(), [&](std::size_t left, std::size_t right) {
    return strides[left] > strides[right];
  });
  Shape ordered;
  for (const std::size_t axis : axes) ordered.push_back(shape[axis]);
  return ordered;
}

Tensor in_logical_order(const TensorView& stored, const std::vector<std::int64_t>& strides) {
  const Shape& shape = stored.shape;
  Tensor ordered{stored.name, stored.dtype, shape, {}};
  const auto width = static_cast<std::size_t>(info(stored.dtype).bits / 8);
  ordered.bytes.reserve(stored.bytes.size());
  for (std::int64_t place = 0; place < element_count(shape); ++place) {
    std::int64_t rest = place;
    std::int64_t from = 0;
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      from += rest % shape[axis] * strides[axis];
      rest /= shape[axis];
    }
    const auto element = stored.bytes.subspan(static_cast<std::size_t>(from) * width, width);
    ordered.bytes.insert(ordered.bytes.end(), element.begin(), element.end());
  }
  return ordered;
}

TensorStack matrices(const GoldenCase& golden, std::string_view input, int element_bits) {
  const Shape& shape = shape_of(golden, input);
  TensorView view = golden.input(input);
  const Shape leading(shape.begin(), shape.end() - 2);
  view.shape = {element_count(leading), *(shape.end() - 2), shape.back()};
  return dense_stack(view, GateOrder::separate, element_bits);
}

TensorStack transposed_matrices(const GoldenCase& golden, std::string_view input,
                                int element_bits) {
  return transposed(matrices(golden, input, element_bits));
}

Tensor run_in_memory_order(const GoldenCase& golden, std::string_view input,
                           const TensorStack& stack, const std::vector<Step>& steps,
                           bool keep_first) {
  const Plan plan = make_plan(golden.subject(stack.name), stack, steps, nullptr);
  Tensor made = run_plan(plan, stack);
  made.shape = memory_order(plan.shape, plan.strides);
  if (!keep_first) {
    const Shape& given = shape_of(golden, input);
    made.shape.erase(made.shape.begin());
    made.shape.insert(made.shape.begin(), given.begin(), given.end() - 2);
  }
  return made;
}

}  // namespace moeref::conform
