#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "cli/conform/layout_case.hpp"
#include "cli/conform/memory_order.hpp"
#include "layout/recode/requantize_ue8m0.hpp"
#include "layout/recode/ue8m0.hpp"
#include "layout/tiles/deepgemm.hpp"
#include "quant/error.hpp"
#include "quant/quantize.hpp"
#include "quant/ue8m0.hpp"

namespace moeref::conform {
namespace {

using Steps = std::vector<Step>;

/// F32, BF16 or F16 as f32, exact.
std::vector<float> floats(const GoldenCase& golden, const TensorView& view) {
  const DType dtype = view.dtype;
  if (dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16) {
    std::vector<float> values;
    values.reserve(static_cast<std::size_t>(view.size()));
    for (const double value : to_doubles(view)) values.push_back(static_cast<float>(value));
    return values;
  }
  fail(golden.subject(view.name), "is {}; F32, BF16 or F16 is needed", name(dtype));
}

template <typename T>
Tensor tensor(DType dtype, Shape shape, const std::vector<T>& values) {
  return make_tensor<T>("", dtype, std::move(shape), values);
}

/// The shape with another last size.
Shape with_last(Shape shape, std::int64_t last) {
  shape.back() = last;
  return shape;
}

/// in: x. out: y.
OpResult ceil_to_powers_of_two(const GoldenCase& golden) {
  const TensorView& x = golden.input("x");
  std::vector<float> values = floats(golden, x);
  for (float& value : values) value = ceil_to_ue8m0(value);
  return {{{"y", tensor(DType::f32, x.shape, values)}}, {}};
}

/// Four scales of a row to a word; a row that ends early is filled with 1.
std::vector<std::int32_t> pack_rows(std::span<const float> scales, std::int64_t cols) {
  std::vector<std::int32_t> words;
  for (std::size_t begin = 0; begin < scales.size(); begin += static_cast<std::size_t>(cols)) {
    for (std::int64_t col = 0; col < cols; col += 4) {
      std::uint32_t word = 0;
      for (std::int64_t j = 0; j < 4; ++j) {
        const bool real = col + j < cols;
        const float scale = real ? scales[begin + static_cast<std::size_t>(col + j)] : 1.0f;
        word |= std::uint32_t{exponent_byte(scale)} << 8 * j;
      }
      words.push_back(std::bit_cast<std::int32_t>(word));
    }
  }
  return words;
}

/// params: gran_k, use_ue8m0, packed. in: x [m, n]. out: codes, sf.
OpResult cast_tokens_to_fp4(const GoldenCase& golden) {
  const TensorView& x = golden.input("x");
  if (x.shape.size() != 2) {
    fail(golden.subject(x.name), "has shape {}; [tokens, n] is needed", to_string(x.shape));
  }
  const std::int64_t rows = x.shape[0];
  const std::int64_t cols = x.shape[1];
  const std::int64_t gran_k = golden.positive_param("gran_k");
  const bool ue8m0 = flag_param(golden, "use_ue8m0", false);
  const bool packed = flag_param(golden, "packed", false);
  if (packed && !ue8m0) fail(golden.path.string(), "packed scales need use_ue8m0");
  const std::vector<float> numbers = floats(golden, x);
  const ValueMatrix values{golden.subject(x.name), Format::f32, rows, cols,
                           std::as_bytes(std::span(numbers))};
  const std::vector<std::string> options{"device=cpu", fmt::format("group={}", gran_k),
                                         ue8m0 ? "scale=ue8m0" : "scale=f32"};
  const Quantized cast = quantize("deepgemm_fp4_token", options, values, std::nullopt, 1);
  const std::vector<float> scales = cast.scale_values();
  const std::int64_t groups = ceil_div(cols, gran_k);
  OpResult result;
  result.outputs.emplace("codes", Tensor{"", DType::i8, {rows, cols / 2}, cast.codes});
  result.outputs.emplace(
      "sf", packed ? tensor(DType::i32, {rows, ceil_div(groups, 4)}, pack_rows(scales, groups))
                   : tensor(DType::f32, {rows, groups}, scales));
  return result;
}

/// in: x [.., n], n a multiple of 4, powers of two. out: y [.., n / 4].
OpResult pack_neighbours(const GoldenCase& golden) {
  const TensorView& x = golden.input("x");
  const std::vector<float> values = floats(golden, x);
  if (x.shape.empty() || x.shape.back() % 4 != 0) {
    fail(golden.subject(x.name), "has shape {}; the last size must be a multiple of 4",
         to_string(x.shape));
  }
  const auto bad = std::find_if_not(values.begin(), values.end(), is_exponent);
  if (bad != values.end()) {
    fail(golden.subject(x.name), "number {} is no power of two", bad - values.begin());
  }
  const std::int64_t cols = x.shape.back();
  return {{{"y", tensor(DType::i32, with_last(x.shape, cols / 4), pack_rows(values, cols))}}, {}};
}

/// A scale tensor [mn, k] or [groups, mn, k] through steps.
Tensor run_scales(const GoldenCase& golden, const Steps& steps) {
  return run_in_memory_order(golden, "sf", matrices(golden, "sf", 32), steps);
}

/// Exponents packed, whatever path the original takes. in: sf.
Tensor pack_scales(const GoldenCase& golden) {
  return run_scales(golden, {recode::exponent_bytes(), Tile{tiles::deepgemm_pack_ue8m0()}});
}

/// in: sf. out: packed_storage.
OpResult pack_on_device(const GoldenCase& golden) {
  return {{{"packed_storage", pack_scales(golden)}}, {}};
}

/// in: sf. out: storage.
OpResult pack_on_host(const GoldenCase& golden) { return {{{"storage", pack_scales(golden)}}, {}}; }

std::vector<std::int64_t> integers_param(const GoldenCase& golden, std::string_view name) {
  const auto found = golden.params.find(name);
  if (found == golden.params.end()) return {};
  const bool integers = found->is_array() &&
                        std::all_of(found->begin(), found->end(), [](const nlohmann::json& value) {
                          return value.is_number_integer();
                        });
  if (!integers) fail(golden.path.string(), "params.{} must be a list of integers", name);
  return found->get<std::vector<std::int64_t>>();
}

/// params: arch, mn, k, gran_mn and gran_k (or recipe = [of A, of B, gran_k] with is_sfa), groups
/// (0 = none), disable_ue8m0_cast.
deepgemm::ScaleRequest scale_request(const GoldenCase& golden) {
  deepgemm::ScaleRequest request;
  request.arch = golden.integer_param("arch");
  request.mn = golden.integer_param("mn");
  request.k = golden.integer_param("k");
  const std::vector<std::int64_t> recipe = integers_param(golden, "recipe");
  if (recipe.size() == 3) {
    request.gran_mn = recipe[flag_param(golden, "is_sfa", false) ? 0 : 1];
    request.gran_k = recipe[2];
  } else if (recipe.size() == 2) {
    request.gran_mn = recipe[0];
    request.gran_k = recipe[1];
  } else {
    request.gran_mn = golden.integer_param("gran_mn");
    request.gran_k = golden.positive_param("gran_k");
  }
  const std::int64_t groups = integer_param(golden, "groups", 0);
  if (groups != 0) request.groups = groups;
  request.disable_ue8m0_cast = flag_param(golden, "disable_ue8m0_cast", false);
  return request;
}

/// params: as scale_request; in_strides of sf, whose elements are stored in row-major order.
/// in: sf. out: storage, in the order of memory.
OpResult transform_scales(const GoldenCase& golden) {
  const TensorView& sf = golden.input("sf");
  const deepgemm::ScaleFactors scales{golden.subject(sf.name), sf.dtype, sf.shape,
                                      integers_param(golden, "in_strides")};
  Tensor storage = run_scales(golden, deepgemm::required_layout(scales, scale_request(golden)));
  // The order of memory does not tell that of sizes of 1.
  return {{{"storage", shaped_as(std::move(storage), golden, "storage")}}, {}};
}

/// in: a [m, n / 2]. out: y [n, m / 2].
OpResult transpose_fp4(const GoldenCase& golden) {
  return {{{"y", run_in_memory_order(golden, "a", matrices(golden, "a", 4),
                                     {Tile{tiles::transpose_packed_fp4()}})}},
          {}};
}

constexpr std::array kOperations{
    NamedOperation{"deepgemm.ceil_to_ue8m0", ceil_to_powers_of_two},
    NamedOperation{"deepgemm.pack_ue8m0_to_int", pack_neighbours},
    NamedOperation{"deepgemm.pack_ue8m0_torch", pack_on_host},
    NamedOperation{"deepgemm.per_token_cast_to_fp4", cast_tokens_to_fp4},
    NamedOperation{"deepgemm.sf_pack_ue8m0", pack_on_device},
    NamedOperation{"deepgemm.transform_sf", transform_scales},
    NamedOperation{"deepgemm.transpose_packed_fp4", transpose_fp4},
};

}  // namespace

std::span<const NamedOperation> layout_deepgemm_operations() { return kOperations; }

}  // namespace moeref::conform
