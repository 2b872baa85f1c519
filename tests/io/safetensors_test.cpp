#include "io/safetensors.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "quant/error.hpp"
#include "tests/io/safetensors_text.hpp"
#include "tests/io/temp_folder.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using testing::f32;
using testing::one;
using testing::refusal;
using testing::refusal_of_bytes;
using testing::safetensors_bytes;
using testing::TempFolder;
using testing::write_bytes;
using testing::zeros;

TEST(SafetensorsFile, ReadsTensorsAndMetadata) {
  const TempFolder folder;
  std::string data(20, '\0');
  const std::array<float, 4> values{1.5f, -2.0f, 3.25f, 1e-40f};
  std::memcpy(data.data() + 4, values.data(), 16);
  data.replace(0, 4, "\x01\x02\xFE\xFF");
  write_bytes(folder / "a.safetensors",
              safetensors_bytes(R"({"__metadata__":{"op":"x","note":"\u00e9\n"},)"
                                R"("b":{"dtype":"F32","shape":[2,2],"data_offsets":[4,20]},)"
                                R"("a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}   )",
                                data));
  const auto file = SafetensorsFile::open(folder / "a.safetensors");
  EXPECT_EQ(file->path(), folder / "a.safetensors");
  EXPECT_EQ(file->metadata(),
            (std::map<std::string, std::string, std::less<>>{{"note", "\u00e9\n"}, {"op", "x"}}));
  ASSERT_EQ(file->tensors().size(), 2U);
  const TensorView& b = file->at("b");
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, DType::f32);
  EXPECT_EQ(b.shape, (Shape{2, 2}));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(b.at<float>(i), values[static_cast<std::size_t>(i)]);
  EXPECT_EQ(file->at("a").at<std::int8_t>(2), -2);
  EXPECT_EQ(file->find("c"), nullptr);
  EXPECT_EQ(file->find("a"), &file->at("a"));
}

TEST(SafetensorsFile, ReadsTensorsAtOddOffsets) {
  const TempFolder folder;
  std::string data = zeros(13);
  const double value = 0.1;
  std::memcpy(data.data() + 1, &value, 8);
  data.replace(9, 4, "\x78\x56\x34\x12");
  write_bytes(folder / "a.safetensors",
              safetensors_bytes(R"({"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},)"
                                R"("b":{"dtype":"F64","shape":[],"data_offsets":[1,9]},)"
                                R"("c":{"dtype":"U32","shape":[1],"data_offsets":[9,13]}})",
                                data));
  const auto file = SafetensorsFile::open(folder / "a.safetensors");
  EXPECT_EQ(file->at("b").at<double>(0), 0.1);
  EXPECT_EQ(file->at("c").at<std::uint32_t>(0), 0x12345678U);
}

TEST(SafetensorsFile, ReadsEveryDtype) {
  for (const DTypeInfo& dtype : all_dtypes()) {
    const TempFolder folder;
    const int bytes = dtype.bits;  // of 8 elements
    write_bytes(folder / "a.safetensors",
                safetensors_bytes(
                    one(fmt::format("\"{}\"", dtype.name), "[2,4]", fmt::format("[0,{}]", bytes)),
                    zeros(static_cast<std::size_t>(bytes))));
    const auto file = SafetensorsFile::open(folder / "a.safetensors");
    EXPECT_EQ(file->at("w").dtype, dtype.dtype) << dtype.name;
    EXPECT_EQ(file->at("w").bytes.size(), static_cast<std::size_t>(bytes)) << dtype.name;
    EXPECT_EQ(parse_dtype(dtype.name), dtype.dtype);
    EXPECT_EQ(&info(dtype.dtype), &dtype);
  }
}

TEST(SafetensorsFile, TakesEmptyTensorsAnywhere) {
  const TempFolder folder;
  const std::string header = "{" + f32("front", "[0]", 0, 0) + "," + f32("x", "[2]", 0, 8) + "," +
                             f32("inside", "[3,0,5]", 5, 5) + "," + f32("between", "[0,2]", 8, 8) +
                             "," + f32("y", "[1]", 8, 12) + "," + f32("end", "[1,0]", 12, 12) + "}";
  write_bytes(folder / "a.safetensors", safetensors_bytes(header, zeros(12)));
  const auto file = SafetensorsFile::open(folder / "a.safetensors");
  for (const char* name : {"front", "inside", "between", "end"}) {
    EXPECT_EQ(file->at(name).size(), 0) << name;
    EXPECT_TRUE(file->at(name).bytes.empty()) << name;
  }
  EXPECT_EQ(file->at("inside").shape, (Shape{3, 0, 5}));
  write_bytes(folder / "b.safetensors",
              safetensors_bytes("{" + f32("only", "[0]", 0, 0) + "}", ""));
  EXPECT_EQ(SafetensorsFile::open(folder / "b.safetensors")->at("only").size(), 0);
}

TEST(SafetensorsFile, TakesFilesWithoutTensors) {
  const TempFolder folder;
  write_bytes(folder / "a.safetensors", safetensors_bytes("{}", ""));
  const auto file = SafetensorsFile::open(folder / "a.safetensors");
  EXPECT_TRUE(file->tensors().empty());
  EXPECT_TRUE(file->metadata().empty());
}

TEST(SafetensorsFile, PassesOverUnknownKeys) {
  const TempFolder folder;
  const std::string header =
      R"({"w":{"extra":[1.5,{"dtype":"no","b":[null,true,-3,1e300]}],"dtype":"U8","more":{},)"
      R"("shape":[2],"data_offsets":[0,2]}})";
  write_bytes(folder / "a.safetensors", safetensors_bytes(header, "ab"));
  EXPECT_EQ(SafetensorsFile::open(folder / "a.safetensors")->at("w").shape, (Shape{2}));
}

TEST(SafetensorsFile, TakesNamesOfAnyText) {
  const TempFolder folder;
  const std::string header = "{" + f32("", "[]", 0, 4) + "," +
                             f32(R"(a\u0000b\"\ud83d\ude00)", "[]", 4, 8) + "," +
                             f32("\u00fc/\u6f22", "[]", 8, 12) + "}";
  write_bytes(folder / "a.safetensors", safetensors_bytes(header, zeros(12)));
  const auto file = SafetensorsFile::open(folder / "a.safetensors");
  EXPECT_NE(file->find(""), nullptr);
  EXPECT_NE(file->find(std::string_view("a\0b\"\U0001F600", 8)), nullptr);
  EXPECT_NE(file->find("\u00fc/\u6f22"), nullptr);
}

TEST(SafetensorsFile, NamesTheNearestNamesOfAMissingTensor) {
  const TempFolder folder;
  const std::string header = "{" + f32("mlp.experts.0.w1.weight", "[]", 0, 4) + "," +
                             f32("mlp.experts.0.w2.weight", "[]", 4, 8) + "," +
                             f32("norm.weight", "[]", 8, 12) + "," + f32("lm_head", "[]", 12, 16) +
                             "}";
  write_bytes(folder / "a.safetensors", safetensors_bytes(header, zeros(16)));
  write_bytes(folder / "empty.safetensors", safetensors_bytes("{}", ""));
  const auto message = [&](const char* file, std::string_view name) -> std::string {
    return error_of([&] { SafetensorsFile::open(folder / file)->at(name); });
  };
  EXPECT_EQ(message("a.safetensors", "mlp.experts.0.w2.weigth"),
            (folder / "a.safetensors").string() +
                ": no tensor 'mlp.experts.0.w2.weigth'; nearest of 4: 'mlp.experts.0.w2.weight', "
                "'mlp.experts.0.w1.weight', 'norm.weight'");
  EXPECT_EQ(
      message("empty.safetensors", "a\nb"),
      (folder / "empty.safetensors").string() + ": no tensor 'a\\x0ab'; the file holds no tensors");
}

TEST(SafetensorsFile, KeepsItsTensorsWhenTheFileIsReplacedOrRemoved) {
  const TempFolder folder;
  const auto path = folder / "a.safetensors";
  write_bytes(path, safetensors_bytes(one("\"U8\"", "[3]", "[0,3]"), "abc"));
  const auto file = SafetensorsFile::open(path);
  const std::string other = "xyz";
  const std::vector<TensorView> tensors{{"w", DType::u8, {3}, std::as_bytes(std::span(other))}};
  write_safetensors(path, tensors, {});
  EXPECT_EQ(file->at("w").at<char>(0), 'a');
  EXPECT_EQ(SafetensorsFile::open(path)->at("w").at<char>(0), 'x');
  std::filesystem::remove(path);
  EXPECT_EQ(file->at("w").at<char>(2), 'c');
}

/// Which pages of the file lie in memory; asked through a mapping of its own that touches none.
std::vector<unsigned char> resident_pages(const std::filesystem::path& path) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t size = std::filesystem::file_size(path);
  std::vector<unsigned char> pages((size + page - 1) / page);
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  EXPECT_EQ(::mincore(address, size, pages.data()), 0);
  ::munmap(address, size);
  ::close(descriptor);
  for (unsigned char& flag : pages) flag &= 1;
  return pages;
}

TEST(SafetensorsFile, LeavesUnusedDataOnDisk) {
  const TempFolder folder;
  const auto path = folder / "a.safetensors";
  constexpr std::size_t kBytes = 16 << 20;
  const std::string data(kBytes, 'x');
  const std::vector<TensorView> tensors{
      {"first", DType::u8, {static_cast<std::int64_t>(kBytes)}, std::as_bytes(std::span(data))},
      {"second", DType::u8, {static_cast<std::int64_t>(kBytes)}, std::as_bytes(std::span(data))}};
  write_safetensors(path, tensors, {});
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  ASSERT_EQ(::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED), 0);
  ::close(descriptor);
  const auto count = [](const std::vector<unsigned char>& pages, std::size_t begin,
                        std::size_t end) {
    return std::count(pages.begin() + static_cast<std::ptrdiff_t>(begin),
                      pages.begin() + static_cast<std::ptrdiff_t>(end), 1);
  };
  std::vector<unsigned char> pages = resident_pages(path);
  if (count(pages, 0, pages.size()) != 0) GTEST_SKIP() << "this file system keeps files in memory";

  const auto file = SafetensorsFile::open(path);
  pages = resident_pages(path);
  EXPECT_EQ(count(pages, 0, pages.size()), 1) << "the page of the header alone";
  EXPECT_EQ(file->at("second").at<char>(kBytes - 1), 'x');
  pages = resident_pages(path);
  EXPECT_GE(count(pages, pages.size() - 1, pages.size()), 1);
  EXPECT_EQ(count(pages, 1, pages.size() / 2), 0) << "'first' was not used";
}

TEST(SafetensorsFile, SaysWhyAFileCannotBeRead) {
  const TempFolder folder;
  EXPECT_EQ(refusal(folder / "none.safetensors"), "no such file; check the path");
  EXPECT_EQ(refusal(folder.path()), "is a folder; name a file on disk");
  write_bytes(folder / "file", "x");
  EXPECT_EQ(refusal(folder / "file" / "a.safetensors"),
            "a part of the path is a file, not a folder; check the path");
  std::filesystem::create_symlink("gone", folder / "link");
  EXPECT_EQ(refusal(folder / "link"),
            "symbolic link to a file that does not exist; restore the file or the link");
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(refusal(folder / "fifo"), "is a FIFO; name a file on disk");
  EXPECT_EQ(refusal("/dev/null"), "is a device; name a file on disk");
  std::filesystem::create_symlink(folder / "loop", folder / "loop");
  EXPECT_TRUE(refusal(folder / "loop").starts_with("cannot be opened: "))
      << refusal(folder / "loop");
  EXPECT_THROW(SafetensorsFile::open(""), Error);
}

TEST(SafetensorsFile, SaysThatAFileIsNotReadable) {
  const TempFolder folder;
  write_bytes(folder / "a.safetensors", safetensors_bytes("{}", ""));
  std::filesystem::permissions(folder / "a.safetensors", std::filesystem::perms::none);
  std::filesystem::permissions(folder.path(), std::filesystem::perms::all);
  const bool is_root = ::geteuid() == 0;  // may read anything
  ASSERT_EQ(is_root ? ::seteuid(65534) : 0, 0);
  const std::string message = refusal(folder / "a.safetensors");
  ASSERT_EQ(is_root ? ::seteuid(0) : 0, 0);
  EXPECT_EQ(message, "not readable (Permission denied); change its permissions or its folder's");
}

TEST(SafetensorsFile, RefusesFilesTooShortForAHeader) {
  EXPECT_EQ(refusal_of_bytes(""), "is empty; copy or download it again");
  EXPECT_EQ(refusal_of_bytes(zeros(7)),
            "has 7 bytes, a safetensors file starts with a header length of 8");
  EXPECT_EQ(refusal_of_bytes(zeros(8)), "header length is 0; an empty header is '{}'");
  EXPECT_EQ(refusal_of_bytes(zeros(100)), "header length is 0; an empty header is '{}'");
  EXPECT_EQ(refusal_of_bytes(std::string("\x03\0\0\0\0\0\0\0{}", 10)),
            "truncated in the header: it needs 3 bytes, the file has 2; copy or download it again");
  EXPECT_EQ(
      refusal_of_bytes(std::string("\x00\xE1\xF5\x05\0\0\0\0{}", 10)),  // 100,000,000: the limit
      "truncated in the header: it needs 100000000 bytes, the file has 2; copy or download it "
      "again");
  EXPECT_EQ(
      refusal_of_bytes(std::string("\x01\xE1\xF5\x05\0\0\0\0{}", 10)),
      "header length 100000001 is above the limit of 100000000 bytes; is this a safetensors file?");
  EXPECT_EQ(refusal_of_bytes(std::string(8, '\xFF') + "{}"),
            "header length 18446744073709551615 is above the limit of 100000000 bytes; is this a "
            "safetensors file?");
}

TEST(SafetensorsFile, KnowsFilesOfOtherFormats) {
  EXPECT_EQ(refusal_of_bytes("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            "is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'");
  EXPECT_EQ(refusal_of_bytes("PK\x03\x04"
                             "........"),
            "is a zip archive (a PyTorch checkpoint?); convert it to safetensors");
  EXPECT_EQ(refusal_of_bytes("GGUF\x03xxxxxxx"), "is a GGUF file; convert it to safetensors");
  EXPECT_EQ(refusal_of_bytes("{\"weight_map\": {}}"), "is JSON text; name the .safetensors file");
  EXPECT_EQ(refusal_of_bytes("<!DOCTYPE html>"),
            "is an HTML or XML page; download the file itself");
}

}  // namespace
}  // namespace moeref
