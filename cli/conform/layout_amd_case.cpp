#include "cli/conform/layout_amd_case.hpp"

#include <algorithm>

#include "cli/conform/memory_order.hpp"
#include "quant/error.hpp"

namespace moeref::conform::amd {
namespace {

using Steps = std::vector<Step>;

/// So that products of three sizes cannot overflow.
constexpr std::int64_t kMostSize = std::int64_t{1} << 20;

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

TensorStack one_row(const TensorView& view) {
  TensorView row = view;
  row.shape = {1, 1, view.size()};
  return dense_stack(row, GateOrder::separate, info(view.dtype).bits);
}

Tensor run(const GoldenCase& golden, const TensorStack& stack, const Steps& steps) {
  const Plan plan = make_plan(golden.subject(stack.name), stack, steps, nullptr);
  Tensor made = run_plan(plan, stack);
  if (!plan.strides.empty()) return in_logical_order(made.view(), plan.strides);
  return made;
}

Tensor run_matrices(const GoldenCase& golden, std::string_view input, const TensorStack& stack,
                    const Steps& steps) {
  Tensor made = run(golden, stack, steps);
  const Shape& given = golden.input(input).shape;
  made.shape.erase(made.shape.begin());
  made.shape.insert(made.shape.begin(), given.begin(), given.end() - 2);
  return made;
}

Tensor run(const GoldenCase& golden, std::string_view input, const Steps& steps, GateOrder order) {
  const TensorView view = as_matrices(golden, input);
  return run_matrices(golden, input, dense_stack(view, order, info(view.dtype).bits), steps);
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

std::int64_t bounded_param(const GoldenCase& golden, std::string_view name, std::int64_t fallback) {
  const auto found = golden.params.find(name);
  if (found != golden.params.end() && found->is_null()) return fallback;
  const std::int64_t value = integer_param(golden, name, fallback);
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
  const std::int64_t size = bounded_param(golden, name, fallback);
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
