#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "quant/error.hpp"
#include "tests/io/checkpoint_builder.hpp"
#include "tests/support/error_of.hpp"

namespace moeref::testing {

inline std::string load_message(const CheckpointBuilder& builder, std::int64_t layer = 0) {
  return error_of([&] { builder.open().load_layer(layer); });
}

/// EXPECTs one line that holds every part.
inline void expect_says(const std::string& text, const std::vector<std::string>& parts) {
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  for (const std::string& part : parts) {
    EXPECT_NE(text.find(part), std::string::npos) << "missing \"" << part << "\" in: " << text;
  }
}

/// A sound checkpoint, one change, and what the error must say.
struct Fault {
  const char* name;
  std::function<void(CheckpointBuilder&)> build;
  std::vector<std::string> says;
  std::int64_t layer = 0;
};

inline const Sizes kSmall{32, 48, 4, 2, 1};

inline void qwen(CheckpointBuilder& b, Storage storage) { build_qwen3(b, storage, kSmall); }

inline void v3(CheckpointBuilder& b) { build_deepseek_v3(b, Storage::bf16, kSmall); }

template <typename Value>
std::function<void(CheckpointBuilder&)> v3_with(const char* key, Value value) {
  return [=](CheckpointBuilder& b) {
    v3(b);
    b.config[key] = value;
  };
}

template <typename Value>
std::function<void(CheckpointBuilder&)> qwen_with(const char* key, Value value) {
  return [=](CheckpointBuilder& b) {
    qwen(b, Storage::bf16);
    b.config[key] = value;
  };
}

/// Builds, writes, loads, and EXPECTs one line that names the folder and says what it must.
inline void expect_refused(const Fault& fault) {
  CheckpointBuilder builder;
  fault.build(builder);
  builder.write();
  const std::string text = load_message(builder, fault.layer);
  expect_says(text, fault.says);
  EXPECT_NE(text.find(builder.folder.path().string()), std::string::npos) << text;
}

inline std::string fault_name(const ::testing::TestParamInfo<Fault>& test) {
  return test.param.name;
}

}  // namespace moeref::testing
