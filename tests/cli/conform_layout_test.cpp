// Layout operations at sizes that no bundled case has, against the index formulas of their
// originals.
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cli/conform/ops.hpp"
#include "cli/conform/runner.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref::conform {
namespace {

using Json = nlohmann::json;
using moeref::testing::EditableFile;
using moeref::testing::TempFolder;

/// Numbers that differ from their neighbours.
template <typename T>
std::vector<T> numbers(std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(i * 7 + i / 251 + 1);
  return values;
}

/// out[i] = in[source(i)]
template <typename T>
std::vector<T> gathered(const std::vector<T>& in,
                        const std::function<std::int64_t(std::int64_t)>& source) {
  std::vector<T> out(in.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = in[static_cast<std::size_t>(source(static_cast<std::int64_t>(i)))];
  }
  return out;
}

/// out[place(i)] = in[i]
template <typename T>
std::vector<T> scattered(const std::vector<T>& in,
                         const std::function<std::int64_t(std::int64_t)>& place) {
  std::vector<T> out(in.size());
  for (std::size_t i = 0; i < in.size(); ++i) {
    out[static_cast<std::size_t>(place(static_cast<std::int64_t>(i)))] = in[i];
  }
  return out;
}

/// A case of one input and one output. It must pass, and fail if the first, the middle or the last
/// element is another.
template <typename T>
void expect_conforms(const std::string& op, const Json& params, Tensor in, Tensor out) {
  SCOPED_TRACE(op + " " + params.dump());
  const TempFolder folder;
  EditableFile file;
  file.metadata = {{"op", op}, {"params", params.dump()}, {"source", "formula"}};
  const std::string name = out.name;
  file.tensors = {{in.name, std::move(in)}, {name, std::move(out)}};
  const auto passes = [&] {
    file.write(folder / "case");
    return run_case(read_golden_case(folder / "case")).verdict == Verdict::passed;
  };
  EXPECT_TRUE(passes());
  const std::size_t count = file[name].bytes.size() / sizeof(T);
  for (const std::size_t at : {std::size_t{0}, count / 2, count - 1}) {
    const T right = file.get<T>(name, at);
    file.set<T>(name, at, static_cast<T>(right + 1));
    EXPECT_FALSE(passes()) << at;
    file.set<T>(name, at, right);
  }
}

template <typename T>
Tensor tensor_of(const std::string& name, DType dtype, Shape shape, const std::vector<T>& values) {
  return make_tensor<T>(name, dtype, std::move(shape), std::span<const T>(values));
}

TEST(ConformLayouts, MarlinScalesAreCutIntoRunsAcrossGroups) {
  // A row of 96 holds one and a half runs of 64: the original reshapes the whole tensor.
  const auto scales = numbers<std::uint16_t>(4 * 96);
  const auto permuted = gathered(scales, [](std::int64_t i) {
    const std::int64_t in_run = i % 64;
    return i / 64 * 64 + in_run / 8 + 8 * (in_run % 8);
  });
  expect_conforms<std::uint16_t>(
      "marlin.permute_scales",
      {{"size_k", 128}, {"size_n", 96}, {"group_size", 32}, {"is_a_8bit", false}},
      tensor_of("in.s", DType::bf16, {4, 96}, scales),
      tensor_of("out.s", DType::bf16, {4, 96}, permuted));
}

TEST(ConformLayouts, AiterN32K4ScalesAreBytes) {
  constexpr std::int64_t kExperts = 2;
  constexpr std::int64_t kRows = 64;
  constexpr std::int64_t kBytes = 12;  // six elements of two bytes
  const auto scales = numbers<std::uint8_t>(kExperts * kRows * kBytes);
  const auto shuffled = scattered(scales, [](std::int64_t i) {
    const std::int64_t expert = i / (kRows * kBytes);
    const std::int64_t n = i / kBytes % kRows;
    const std::int64_t c = i % kBytes;
    return (expert * (kRows / 32) + n / 32) * 32 * kBytes + c / 4 * 128 + n % 32 * 4 + c % 4;
  });
  Tensor in = tensor_of("in.s", DType::u8, {kExperts, kRows, kBytes}, scales);
  in.dtype = DType::i16;
  in.shape.back() /= 2;
  expect_conforms<std::uint8_t>(
      "aiter.shuffle_scale_n32k4", Json::object(), std::move(in),
      tensor_of("out.y", DType::u8, {kExperts, kRows / 32, 32 * kBytes}, shuffled));
}

TEST(ConformLayouts, AiterMoeScalesTakeSeveralBatchDimensions) {
  constexpr std::int64_t kBatch = 6;
  constexpr std::int64_t kRows = 64;
  constexpr std::int64_t kCols = 16;
  const auto scales = numbers<std::uint8_t>(kBatch * kCols * kRows);
  // In: [batch, columns, rows]. The result is a view [32 columns, rows / 32] of these bytes.
  const auto shuffled = scattered(scales, [](std::int64_t i) {
    const std::int64_t batch = i / (kCols * kRows);
    const std::int64_t c = i / kRows % kCols;
    const std::int64_t r = i % kRows;
    return batch * kCols * kRows + r / 32 * 32 * kCols + c / 8 * 256 + c % 4 * 64 + r % 16 * 4 +
           c / 4 % 2 * 2 + r / 16 % 2;
  });
  const auto in_rows_order = gathered(shuffled, [](std::int64_t i) {
    const std::int64_t batch = i / (kCols * kRows);
    const std::int64_t col = i / (kRows / 32) % (32 * kCols);
    const std::int64_t row = i % (kRows / 32);
    return batch * kCols * kRows + row * 32 * kCols + col;
  });
  expect_conforms<std::uint8_t>(
      "aiter.triton.shuffle_scale_moe", {{"arch", "gfx950"}},
      tensor_of("in.s", DType::u8, {2, 3, kCols, kRows}, scales),
      tensor_of("out.y", DType::u8, {2, 3, 32 * kCols, kRows / 32}, in_rows_order));
}

TEST(ConformLayouts, DeepGemmKeepsScalesOfOneRowBlock) {
  const auto scales = numbers<float>(3 * 1 * 32);
  for (const Shape& storage : {Shape{3, 1, 32}, Shape{3, 32, 1}}) {
    expect_conforms<std::uint32_t>(
        "deepgemm.transform_sf",
        {{"arch", 9}, {"mn", 128}, {"k", 4096}, {"gran_mn", 128}, {"gran_k", 128}, {"groups", 3}},
        tensor_of("in.sf", DType::f32, {3, 1, 32}, scales),
        tensor_of("out.storage", DType::f32, storage, scales));
  }
}

}  // namespace
}  // namespace moeref::conform
