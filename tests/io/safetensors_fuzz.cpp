/// libFuzzer target for the safetensors reader: clang++ -fsanitize=fuzzer,address,undefined. Built
/// with MOEREF_FUZZ_MAIN (any compiler), it runs once over the files and folders named on the
/// command line.
///
/// Each input is read as a whole file, through the file system as a user would, and as the text of
/// a header. Whatever it is, the reader refuses it with an Error of one line or hands out tensors
/// that lie inside it; the header written anew from these reads back the same.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "quant/nearest_names.hpp"
#include "io/safetensors.hpp"
#include "io/safetensors_header.hpp"
#include "io/utf8.hpp"
#include "quant/error.hpp"

namespace {

using moeref::Error;
using moeref::SafetensorsEntry;
using moeref::SafetensorsHeader;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

/// What `read` gives, or nothing if it throws an Error as it should be.
template <typename Read>
auto attempt(Read read) -> std::optional<decltype(read())> {
  try {
    return read();
  } catch (const Error& error) {
    const std::string_view message = error.what();
    require(message.find('\n') == message.npos, "an error is one line");
    require(moeref::find_invalid_utf8(message) == message.npos, "an error is UTF-8");
    require(message.size() < 2000, "an error is short");
    return std::nullopt;
  }
}

bool is_same(const SafetensorsEntry& left, const SafetensorsEntry& right) {
  return left.name == right.name && left.dtype == right.dtype && left.shape == right.shape &&
         left.begin == right.begin && left.end == right.end;
}

void check_header(const SafetensorsHeader& header, std::uint64_t data_bytes) {
  std::uint64_t total = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    require(entry.begin <= entry.end && entry.end <= data_bytes, "a tensor lies inside the data");
    require(entry.end - entry.begin == moeref::byte_count("t", entry.dtype, entry.shape),
            "a tensor has the bytes that it needs");
    require(moeref::element_count(entry.shape) >= 0, "a shape does not overflow");
    total += entry.end - entry.begin;
  }
  require(total == data_bytes, "the tensors cover the data");
  const std::string again = moeref::format_header(header.entries, header.metadata);
  require(again.size() % 8 == 0, "a header is padded");
  const SafetensorsHeader copy = moeref::parse_header("again", again, data_bytes);
  require(copy.metadata == header.metadata, "metadata reads back");
  require(std::equal(copy.entries.begin(), copy.entries.end(), header.entries.begin(),
                     header.entries.end(), is_same),
          "tensors read back");
}

void read_as_header(std::string_view text) {
  const auto listed = attempt([&] { return moeref::parse_header_json("header", text); });
  if (!listed) return;
  std::uint64_t data_bytes = 0;
  for (const SafetensorsEntry& entry : listed->entries)
    data_bytes = std::max(data_bytes, entry.end);
  const auto header = attempt([&] { return moeref::parse_header("header", text, data_bytes); });
  if (header) check_header(*header, data_bytes);
}

void read_as_file(std::string_view bytes) {
  static const int descriptor = ::memfd_create("fuzz.safetensors", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  require(::ftruncate(descriptor, 0) == 0, "the file can be emptied");
  require(
      ::pwrite(descriptor, bytes.data(), bytes.size(), 0) == static_cast<::ssize_t>(bytes.size()),
      "the file can be written");
  const auto file = attempt([&] { return moeref::SafetensorsFile::open(path); });
  if (!file) return;
  std::uint64_t data_bytes = 0;
  std::uint64_t sum = 0;
  std::vector<std::string> names;
  for (const auto& [name, tensor] : (*file)->tensors()) {
    data_bytes += tensor.bytes.size();
    for (const std::byte byte : tensor.bytes) sum += std::to_integer<std::uint64_t>(byte);
    names.push_back(name);
  }
  require(sum <= 255 * data_bytes, "every byte of a tensor can be read");
  require(data_bytes <= bytes.size(), "the tensors are no larger than the file");
  attempt([&] { return (*file)->at(names.empty() ? "a" : names[0] + ".x").size(); });
  if (!names.empty()) {
    require(moeref::nearest_names(names[0], names, 1).at(0) == names[0],
            "a name is nearest to itself");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  read_as_file(bytes);
  read_as_header(bytes);
  if (size > moeref::kHeaderLengthBytes) read_as_header(bytes.substr(moeref::kHeaderLengthBytes));
  return 0;
}

#ifdef MOEREF_FUZZ_MAIN
int main(int argc, char** argv) {
  std::size_t count = 0;
  const auto run = [&](const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    ++count;
  };
  for (int i = 1; i < argc; ++i) {
    if (!std::filesystem::is_directory(argv[i])) {
      run(argv[i]);
      continue;
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[i])) {
      if (entry.is_regular_file()) run(entry.path());
    }
  }
  std::printf("%zu inputs\n", count);
  return count == 0 ? 2 : 0;
}
#endif
