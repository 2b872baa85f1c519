// Runs every golden operation case in the data folder. A new case is a new file here and no code.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "cli/conform/ops.hpp"
#include "cli/conform/runner.hpp"

namespace moeref::conform {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(MOEREF_DATA_DIR) / "golden";

/// Operations that stored cases have and conform does not carry out.
struct UnjudgedOperation {
  std::string_view op;
  std::string_view reason;
};
constexpr std::string_view kOwnOrder =
    "an MoE block in f32 GEMMs whose order of sums is not stated";
constexpr std::array kUnjudged{
    UnjudgedOperation{"aiter.torch_moe", kOwnOrder},
    UnjudgedOperation{"aiter.torch_moe_2stage", kOwnOrder},
    UnjudgedOperation{"aiter.torch_moe_stage1", kOwnOrder},
};

const UnjudgedOperation* find_unjudged(std::string_view op) {
  const auto found = std::find_if(kUnjudged.begin(), kUnjudged.end(),
                                  [&](const UnjudgedOperation& entry) { return entry.op == op; });
  return found == kUnjudged.end() ? nullptr : &*found;
}

struct CaseFile {
  fs::path path;
};

void PrintTo(const CaseFile& file, std::ostream* out) { *out << file.path.string(); }

std::vector<CaseFile> case_files() {
  std::vector<CaseFile> files;
  const std::vector<fs::path> roots{kGolden};
  for (const GoldenCase& golden : find_cases(roots)) files.push_back({golden.path});
  return files;
}

/// "models_moe_block_gpt_oss_mxfp4_h128_i192_e8_l0_t7"
std::string test_name(const ::testing::TestParamInfo<CaseFile>& info) {
  std::string name = fs::relative(info.param.path, kGolden).replace_extension().string();
  for (char& letter : name) {
    if (std::isalnum(static_cast<unsigned char>(letter)) == 0) letter = '_';
  }
  return name;
}

class Golden : public ::testing::TestWithParam<CaseFile> {};

TEST_P(Golden, Matches) {
  const CaseResult result = run_case(read_golden_case(GetParam().path));
  if (result.verdict == Verdict::skipped) {
    const UnjudgedOperation* unjudged = find_unjudged(result.op);
    ASSERT_NE(unjudged, nullptr) << describe(result);
    GTEST_SKIP() << unjudged->op << ": " << unjudged->reason;
  }
  EXPECT_EQ(result.verdict, Verdict::passed) << describe(result);
  EXPECT_FALSE(result.findings.empty());
}

INSTANTIATE_TEST_SUITE_P(Data, Golden, ::testing::ValuesIn(case_files()), test_name);

TEST(GoldenFolder, HoldsCasesOfEveryKnownOperation) {
  const std::vector<fs::path> roots{kGolden};
  const std::vector<GoldenCase> cases = find_cases(roots);
  for (const NamedOperation& known : all_operations()) {
    const bool found = std::any_of(cases.begin(), cases.end(),
                                   [&](const GoldenCase& golden) { return golden.op == known.op; });
    EXPECT_TRUE(found) << known.op;
  }
}

TEST(GoldenFolder, LeavesUnjudgedOnlyWhatIsUnknown) {
  const std::vector<fs::path> roots{kGolden};
  const std::vector<GoldenCase> cases = find_cases(roots);
  for (const UnjudgedOperation& unjudged : kUnjudged) {
    EXPECT_EQ(find_operation(unjudged.op), nullptr) << unjudged.op << " can be judged now";
    const bool found = std::any_of(cases.begin(), cases.end(), [&](const GoldenCase& golden) {
      return golden.op == unjudged.op;
    });
    EXPECT_TRUE(found) << "no case has the operation " << unjudged.op;
  }
}

}  // namespace
}  // namespace moeref::conform
