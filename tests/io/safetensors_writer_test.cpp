#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "tests/io/safetensors_text.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

using testing::read_bytes;
using testing::refusal_of;
using testing::TempFolder;
using testing::write_bytes;
namespace fs = std::filesystem;

using Strings = std::vector<std::string>;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

std::string refusal_to_write(const fs::path& path, std::vector<TensorSpec> tensors,
                             SafetensorsWriter::Metadata metadata = {}) {
  return refusal_of(path,
                    [&] { SafetensorsWriter(path, std::move(tensors), std::move(metadata)); });
}

/// The bytes that write_safetensors makes.
std::string written(const std::vector<TensorView>& tensors,
                    const SafetensorsWriter::Metadata& metadata) {
  const TempFolder folder;
  write_safetensors(folder / "a.safetensors", tensors, metadata);
  EXPECT_EQ(folder.names(), Strings{"a.safetensors"});
  return read_bytes(folder / "a.safetensors");
}

Tensor six_floats(std::string name, Shape shape) {
  const std::array<float, 6> values{0, 1, 2, 3, 4, 5};
  return make_tensor<float>(std::move(name), DType::f32, std::move(shape), values);
}

// The four vectors are those of the reference implementation's own tests:
// huggingface/safetensors@24b0b28 safetensors/src/tensor.rs test_serialization, test_empty,
// test_serialization_forced_alignment.
TEST(SafetensorsWriter, GivesTheBytesOfTheReference) {
  const Tensor attn_0 = six_floats("attn.0", {1, 2, 3});
  const std::string data(reinterpret_cast<const char*>(attn_0.bytes.data()), attn_0.bytes.size());
  EXPECT_EQ(written({attn_0.view()}, {}),
            std::string("\x40\0\0\0\0\0\0\0", 8) +
                R"({"attn.0":{"dtype":"F32","shape":[1,2,3],"data_offsets":[0,24]}})" + data);
  const Tensor attn0 = six_floats("attn0", {1, 1, 2, 3});
  EXPECT_EQ(written({attn0.view()}, {}),
            std::string("\x48\0\0\0\0\0\0\0", 8) +
                R"({"attn0":{"dtype":"F32","shape":[1,1,2,3],"data_offsets":[0,24]}}       )" +
                data);
  EXPECT_EQ(written({}, {}), std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  EXPECT_EQ(written({}, {{"framework", "pt"}}),
            std::string("\x28\0\0\0\0\0\0\0", 8) + R"({"__metadata__":{"framework":"pt"}}     )");
}

TEST(SafetensorsWriter, OrdersByAlignmentThenNameAndEscapesText) {
  const Tensor pair{"pair", DType::f4, {2, 2}, std::vector<std::byte>(2, std::byte{0x21})};
  const Tensor b{"b", DType::u8, {1}, {std::byte{1}}};
  const Tensor a{"a", DType::u8, {1}, {std::byte{2}}};
  const Tensor flag{"A", DType::boolean, {}, {std::byte{1}}};
  const Tensor half{"z", DType::bf16, {1}, {std::byte{3}, std::byte{4}}};
  const Tensor none{"n", DType::f64, {0, 3}, {}};
  const Tensor odd{"\x01\"\u00e9", DType::i8, {1}, {std::byte{5}}};
  const std::string bytes =
      written({pair.view(), b.view(), flag.view(), a.view(), half.view(), none.view(), odd.view()},
              {{"op", "x\n"}, {"note", "\u00e9\\"}});
  const std::string header =
      "{\"__metadata__\":{\"note\":\"\u00e9\\\\\",\"op\":\"x\\n\"},"
      R"("n":{"dtype":"F64","shape":[0,3],"data_offsets":[0,0]},)"
      R"("z":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},)"
      "\"\\u0001\\\"\u00e9\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[2,3]},"
      R"("a":{"dtype":"U8","shape":[1],"data_offsets":[3,4]},)"
      R"("b":{"dtype":"U8","shape":[1],"data_offsets":[4,5]},)"
      R"("pair":{"dtype":"F4","shape":[2,2],"data_offsets":[5,7]},)"
      R"("A":{"dtype":"BOOL","shape":[],"data_offsets":[7,8]}})";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  EXPECT_EQ(bytes, testing::safetensors_bytes(padded, "\x03\x04\x05\x02\x01\x21\x21\x01"));
}

TEST(SafetensorsWriter, KeepsEveryDtypeAndAlignsItsData) {
  std::vector<Tensor> tensors;
  for (const DTypeInfo& dtype : all_dtypes()) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(dtype.bits), std::byte{1});  // 8 elements
    tensors.push_back({std::string(dtype.name), dtype.dtype, {4, 2}, std::move(bytes)});
  }
  std::vector<TensorView> views;
  for (const Tensor& tensor : tensors) views.push_back(tensor.view());
  const TempFolder folder;
  write_safetensors(folder / "a", views, {});
  const auto file = SafetensorsFile::open(folder / "a");
  ASSERT_EQ(file->tensors().size(), all_dtypes().size());
  const std::byte* begin = file->at("U64").bytes.data();  // the first of the file
  for (const DTypeInfo& dtype : all_dtypes()) {
    const TensorView& tensor = file->at(dtype.name);
    EXPECT_EQ(tensor.dtype, dtype.dtype);
    const std::int64_t element_bytes = std::max(1, dtype.bits / 8);
    EXPECT_EQ((tensor.bytes.data() - begin) % element_bytes, 0) << dtype.name;
  }
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(begin) % 8, 0U);
}

TEST(SafetensorsWriter, TakesBytesCutAnywhere) {
  const TempFolder folder;
  std::string data(300'007, '\0');
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 31 >> 3);
  const std::vector<TensorSpec> specs{{"b", DType::u8, {100'000}}, {"a", DType::u8, {200'007}}};
  for (const std::size_t piece : {1UL, 7UL, 65'535UL, 65'536UL, 65'537UL, 300'007UL}) {
    SafetensorsWriter writer(folder / "a.safetensors", specs, {{"k", "v"}});
    ASSERT_EQ(writer.order()[0].name, "a");
    for (std::size_t at = 0; at < data.size(); at += piece) {
      writer.append(bytes_of(std::string_view(data).substr(at, piece)));
    }
    writer.append({});
    writer.commit();
    const auto file = SafetensorsFile::open(folder / "a.safetensors");
    EXPECT_EQ(std::memcmp(file->at("a").bytes.data(), data.data(), 200'007), 0) << piece;
    EXPECT_EQ(std::memcmp(file->at("b").bytes.data(), data.data() + 200'007, 100'000), 0) << piece;
  }
  EXPECT_EQ(folder.names(), Strings{"a.safetensors"});
}

TEST(SafetensorsWriter, LeavesTheOldFileUntilCommit) {
  const TempFolder folder;
  const fs::path path = folder / "a.safetensors";
  write_bytes(path, "old");
  {
    SafetensorsWriter writer(path, {{"w", DType::u8, {4}}}, {});
    writer.append(bytes_of("data"));
    EXPECT_EQ(read_bytes(path), "old");
    EXPECT_EQ(folder.names().size(), 2U);
  }
  EXPECT_EQ(folder.names(), Strings{"a.safetensors"});
  EXPECT_EQ(read_bytes(path), "old");
  SafetensorsWriter writer(path, {{"w", DType::u8, {4}}}, {});
  writer.append(bytes_of("data"));
  writer.commit();
  EXPECT_EQ(folder.names(), Strings{"a.safetensors"});
  EXPECT_EQ(SafetensorsFile::open(path)->at("w").at<char>(0), 'd');
}

TEST(SafetensorsWriter, RefusesMissingAndSurplusBytes) {
  const TempFolder folder;
  const fs::path path = folder / "a";
  const std::vector<TensorSpec> specs{
      {"x", DType::u8, {4}}, {"empty", DType::u8, {0}}, {"y", DType::u8, {2, 2}}};
  const auto after = [&](std::string_view data) {
    return refusal_of(path, [&] {
      SafetensorsWriter writer(path, specs, {});
      EXPECT_EQ(writer.order()[0].name, "empty");
      writer.append(bytes_of(data));
      writer.commit();
    });
  };
  EXPECT_EQ(
      after(""),
      "'x': not complete: 0 of 8 bytes of data were appended; append all tensors before commit");
  EXPECT_EQ(
      after("abcd"),
      "'y': not complete: 4 of 8 bytes of data were appended; append all tensors before commit");
  EXPECT_EQ(after("abcdefghi"),
            "1 bytes more than the 3 tensors take (8 bytes); append what was declared");
  EXPECT_EQ(folder.names(), Strings{});
  EXPECT_EQ(after("abcdefgh"), "");
}

TEST(SafetensorsWriter, StaysFailedAfterAFailure) {
  const TempFolder folder;
  const fs::path path = folder / "a";
  SafetensorsWriter writer(path, {{"x", DType::u8, {4}}}, {});
  writer.append(bytes_of("abcd"));
  EXPECT_NE(refusal_of(path, [&] { writer.append(bytes_of("e")); }), "");
  EXPECT_EQ(folder.names(), Strings{});
  EXPECT_EQ(refusal_of(path, [&] { writer.commit(); }),
            "nothing can be committed after a failure or commit");
  EXPECT_EQ(refusal_of(path, [&] { writer.append({}); }),
            "nothing can be appended after a failure or commit");
  SafetensorsWriter done(path, {}, {});
  done.commit();
  EXPECT_EQ(refusal_of(path, [&] { done.commit(); }),
            "nothing can be committed after a failure or commit");
  EXPECT_EQ(folder.names(), Strings{"a"});
}

TEST(SafetensorsWriter, RefusesTensorsThatTheFormatCannotHold) {
  const TempFolder folder;
  const fs::path path = folder / "a";
  EXPECT_EQ(refusal_to_write(
                path, {{"x", DType::u8, {1}}, {"y", DType::u8, {1}}, {"x", DType::f32, {1}}}),
            "two tensors are named 'x'; give each its own name");
  EXPECT_EQ(refusal_to_write(path, {{"__metadata__", DType::u8, {1}}}),
            "a tensor cannot be named '__metadata__'; the format keeps that name for metadata");
  EXPECT_EQ(refusal_to_write(path, {{"a\xff", DType::u8, {1}}}),
            "tensor name 'a\\xff' is not UTF-8 at its byte 1");
  EXPECT_EQ(refusal_to_write(path, {}, {{"k\xff", "v"}}),
            "metadata key 'k\\xff' is not UTF-8 at its byte 1");
  EXPECT_EQ(refusal_to_write(path, {}, {{"k", "\xff"}}),
            "metadata value '\\xff' is not UTF-8 at its byte 0");
  EXPECT_EQ(refusal_to_write(path, {{"x", DType::u8, {2, -1}}}),
            "'x': shape [2, -1] has a negative size");
  EXPECT_EQ(refusal_to_write(path, {{"x", DType::f4, {3}}}),
            "'x': F4 [3] takes 12 bits, which make no whole bytes");
  EXPECT_EQ(refusal_to_write(path, {{"x", DType::f64, {1LL << 40, 1LL << 30}}}),
            "'x': F64 [1099511627776, 1073741824] overflows: more than 2^63 - 1 bits");
  std::vector<TensorSpec> many;
  for (int i = 0; i < 8; ++i) many.push_back({std::to_string(i), DType::u8, {1LL << 59}});
  many.push_back({"last", DType::u8, {1}});
  EXPECT_EQ(refusal_to_write(path, many), "the tensors take more than 2^62 bytes");
  EXPECT_EQ(refusal_to_write(path, {}, {{"k", std::string(100'000'000, 'x')}}),
            "header takes 100000032 bytes, the format's limit is 100000000; write fewer tensors or "
            "less metadata");
  const std::string data = "abc";
  const std::vector<TensorView> views{{"x", DType::f32, {1}, bytes_of(data)}};
  EXPECT_EQ(refusal_of(path, [&] { write_safetensors(path, views, {}); }),
            "'x': has 3 bytes, F32 [1] needs 4");
  EXPECT_EQ(folder.names(), Strings{});
}

/// All safetensors files of the project's data.
std::vector<fs::path> golden_files() {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(MOEREF_DATA_DIR "/golden")) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(SafetensorsRoundTrip, KeepsEveryGoldenFile) {
  const TempFolder folder;
  const std::vector<fs::path> files = golden_files();
  ASSERT_GT(files.size(), 50U);
  for (const fs::path& path : files) {
    SCOPED_TRACE(path.string());
    const auto original = SafetensorsFile::open(path);
    std::vector<TensorView> tensors;
    for (const auto& [name, tensor] : original->tensors()) tensors.push_back(tensor);
    write_safetensors(folder / "first", tensors, original->metadata());
    std::reverse(tensors.begin(),
                 tensors.end());  // the order in which they are given does not matter
    write_safetensors(folder / "second", tensors, original->metadata());
    EXPECT_EQ(read_bytes(folder / "first"), read_bytes(folder / "second"));

    const auto copy = SafetensorsFile::open(folder / "first");
    EXPECT_EQ(copy->metadata(), original->metadata());
    ASSERT_EQ(copy->tensors().size(), original->tensors().size());
    for (const auto& [name, tensor] : original->tensors()) {
      const TensorView& other = copy->at(name);
      EXPECT_EQ(other.dtype, tensor.dtype) << name;
      EXPECT_EQ(other.shape, tensor.shape) << name;
      EXPECT_TRUE(std::ranges::equal(other.bytes, tensor.bytes)) << name;
    }
  }
}

}  // namespace
}  // namespace moeref
