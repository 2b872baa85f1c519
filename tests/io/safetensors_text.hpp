#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>

#include "io/safetensors.hpp"
#include "quant/error.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref::testing {

/// The message of the Error that `action` throws, without `path` in front; "" if it throws none.
template <typename Action>
std::string refusal_of(const std::filesystem::path& path, Action action) {
  try {
    action();
    return "";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), message.npos) << message;
    EXPECT_TRUE(message.starts_with(path.string() + ": ")) << message;
    return message.substr(std::min(message.size(), path.string().size() + 2));
  }
}

/// The same for opening `path`.
inline std::string refusal(const std::filesystem::path& path) {
  return refusal_of(path, [&] { SafetensorsFile::open(path); });
}

inline std::string refusal_of_bytes(std::string_view bytes) {
  const TempFolder folder;
  write_bytes(folder / "a.safetensors", bytes);
  return refusal(folder / "a.safetensors");
}

inline std::string zeros(std::size_t count) { return std::string(count, '\0'); }

/// A header of one tensor "w".
inline std::string one(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return fmt::format(R"({{"w":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape,
                     offsets);
}

inline std::string f32(std::string_view name, std::string_view shape, int begin, int end) {
  return fmt::format(R"("{}":{{"dtype":"F32","shape":{},"data_offsets":[{},{}]}})", name, shape,
                     begin, end);
}

}  // namespace moeref::testing
