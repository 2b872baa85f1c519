#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <optional>
#include <string>

#include "layout/backend.hpp"
#include "quant/error.hpp"
#include "tests/judge/slow_numerics.hpp"
#include "tests/support/backend_case.hpp"
#include "tests/support/error_of.hpp"

// A layer at level `backend` against the judge, for the tests of every backend.

namespace moeref::testing {

inline void expect_same_stage(const Tensor& actual, const Tensor& expected,
                              const std::string& what) {
  EXPECT_EQ(actual.dtype, expected.dtype) << what;
  EXPECT_EQ(actual.shape, expected.shape) << what;
  ASSERT_EQ(actual.bytes.size(), expected.bytes.size()) << what;
  for (std::size_t i = 0; i < actual.bytes.size(); ++i) {
    ASSERT_EQ(actual.bytes[i], expected.bytes[i])
        << what << " byte " << i << " of " << actual.bytes.size() << ", "
        << to_string(actual.shape);
  }
}

/// Every stage and the output, bit for bit.
inline void expect_judged(const BackendCase& made, const std::string& what) {
  const ForwardResult result = made.run();
  const judge::SlowResult expected = judge::slow_numerics(
      made.kernel, made.hidden.matrix(), made.route, made.numerics(), made.options);
  ASSERT_EQ(result.stages.size(), expected.stages.size()) << what;
  for (std::size_t i = 0; i < result.stages.size(); ++i) {
    ASSERT_EQ(result.stages[i].name, expected.stages[i].name) << what;
    expect_same_stage(result.stages[i].tensor, expected.stages[i].tensor,
                      what + ": " + result.stages[i].name);
  }
  ASSERT_EQ(result.output.size(), expected.output.size()) << what;
  for (std::size_t i = 0; i < result.output.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(result.output[i]),
              std::bit_cast<std::uint32_t>(expected.output[i]))
        << what << ": output " << i << ": " << result.output[i] << " instead of "
        << expected.output[i];
  }
}

/// A test with a backend as its parameter.
class BackendNumerics : public ::testing::TestWithParam<const Backend*> {
 protected:
  const Backend& backend() const { return *GetParam(); }
  LayerRequest usual() const { return usual_layer(backend()); }
  /// Runs the case if the backend takes it; a refusal is one line that names a subject.
  bool judged(const LayerRequest& wanted) const {
    std::optional<BackendCase> made;
    const std::string refusal = error_of([&] { made = make_case(backend(), wanted); });
    if (!made) {
      EXPECT_EQ(refusal.find('\n'), std::string::npos) << refusal;
      EXPECT_NE(refusal.find(": "), std::string::npos) << refusal;
      return false;
    }
    expect_judged(*made, std::string(backend().name) + " " + describe(wanted));
    return true;
  }
  /// The same, but the backend must take it.
  void expect_taken(const LayerRequest& wanted) const {
    const std::string refusal = error_of([&] { make_case(backend(), wanted); });
    ASSERT_EQ(refusal, "no error") << describe(wanted);
    judged(wanted);
  }
};

inline std::string backend_name(const ::testing::TestParamInfo<const Backend*>& tested) {
  return std::string(tested.param->name);
}

}  // namespace moeref::testing
