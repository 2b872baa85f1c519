// Runs every golden operation case in the data folder. A new case is a new file here and no code.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "cli/conform/ops.hpp"
#include "cli/conform/runner.hpp"

namespace moeref::conform {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(MOEREF_DATA_DIR) / "golden";

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

}  // namespace
}  // namespace moeref::conform
