#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "tests/io/temp_folder.hpp"

// moeref as a user runs it, for the tests of moeref layout and quantize.

namespace moeref::testing {

using nlohmann::json;

inline const std::string kModels = MOEREF_DATA_DIR "/golden/models/";
inline const std::string kGptOss = kModels + "gpt_oss_mxfp4_h128_i192_e8";
inline const std::string kNvfp4 = kModels + "qwen3_moe_ct_nvfp4_h128_i96_e8";
inline const std::string kTrtllm = "flashinfer_trtllm_nvfp4";

struct Outcome {
  int code = -1;
  std::string out;
  std::string error;
};

/// `before`: environment variables, "NAME=value".
inline Outcome moeref_with(const std::string& arguments, const std::string& before = "") {
  const TempFolder folder;
  const std::string command = before + " " MOEREF_BINARY " " + arguments + " >" +
                              (folder / "out").string() + " 2>" + (folder / "error").string();
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(folder / "out"),
          read_bytes(folder / "error")};
}

inline void expect_done(const std::string& arguments) {
  const Outcome outcome = moeref_with(arguments);
  EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.out << outcome.error;
}

/// Exit code 2, nothing on stdout, one line on stderr that holds every part.
inline void expect_refused(const std::string& arguments, const std::vector<std::string>& parts) {
  const Outcome outcome = moeref_with(arguments);
  EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.out << outcome.error;
  EXPECT_EQ(outcome.out, "") << arguments;
  EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
  for (const std::string& part : parts) {
    EXPECT_NE(outcome.error.find(part), std::string::npos)
        << arguments << "\nlacks: " << part << "\nsays:  " << outcome.error;
  }
}

inline json json_of(const std::string& arguments, int code = 0) {
  const Outcome outcome = moeref_with(arguments + " --json");
  EXPECT_EQ(outcome.code, code) << arguments << "\n" << outcome.error;
  return json::parse(outcome.out, nullptr, false);
}

/// The bytes of every tensor, by name.
inline std::map<std::string, std::vector<std::byte>> tensors_of(const std::string& path) {
  std::map<std::string, std::vector<std::byte>> all;
  const auto file = SafetensorsFile::open(path);
  for (const auto& [name, view] : file->tensors()) {
    all[name] = {view.bytes.begin(), view.bytes.end()};
  }
  return all;
}

}  // namespace moeref::testing
