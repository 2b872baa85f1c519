#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.hpp"
#include "cli/conform/runner.hpp"
#include "quant/error.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref::conform {
namespace {

namespace fs = std::filesystem;
using moeref::testing::EditableFile;
using moeref::testing::TempFolder;
using Json = nlohmann::json;

const fs::path kGolden = fs::path(MOEREF_DATA_DIR) / "golden";
const fs::path kEncode = kGolden / "formats" / "encode_cuda_e5m2_bf16.safetensors";

CaseResult run_file(const fs::path& path) { return run_case(read_golden_case(path)); }

/// The encode case, changed, in a folder of its own.
struct EncodeCase {
  TempFolder folder;
  EditableFile file{kEncode};

  fs::path write(const std::string& name = "case.safetensors") const {
    file.write(folder / name);
    return folder / name;
  }
  CaseResult run() const { return run_file(write()); }
};

TEST(EncodeCase, NamesTheFirstDifferingCodeInHex) {
  EncodeCase encode;
  encode.file.set<std::uint8_t>("out.e5m2_satfinite", 0x4000, 0x55);  // bf16 2.0 is 0x40
  encode.file.set<std::uint8_t>("out.e5m2_satfinite", 0x4001, 0x56);
  const CaseResult result = encode.run();
  EXPECT_EQ(result.verdict, Verdict::failed);
  EXPECT_EQ(describe(result), (encode.folder / "case.safetensors").string() +
                                  ": out.e5m2_satfinite (bits): 2 of 65536 elements differ, first "
                                  "at [16384]: stored 0x55, moeref 0x40");
}

TEST(EncodeCase, ComparesUnderAMaskOnlyWhereItIsSet) {
  EncodeCase encode;
  const std::string name = "out.e5m2_satfinite";
  Tensor mask = encode.file[name];
  std::fill(mask.bytes.begin(), mask.bytes.end(), std::byte{1});
  mask.bytes[0x4000] = std::byte{0};
  encode.file.tensors["out.defined"] = mask;
  encode.file.metadata["compare"] =
      Json{{name, {{"mask", "out.defined"}}}, {"out.defined", "mask"}}.dump();
  encode.file.set<std::uint8_t>(name, 0x4000, 0x55);
  EXPECT_EQ(encode.run().verdict, Verdict::passed) << describe(encode.run());
  encode.file.set<std::uint8_t>(name, 0x4001, 0x55);
  EXPECT_EQ(encode.run().verdict, Verdict::failed);
}

TEST(EncodeCase, LeavesOutInformationButNotEverything) {
  EncodeCase encode;
  encode.file.set<std::uint8_t>("out.e5m2_satfinite", 1, 0x55);
  encode.file.metadata["compare"] = R"({"out.e5m2_satfinite": "info"})";
  EXPECT_EQ(encode.run().verdict, Verdict::passed);
  encode.file.metadata["compare"] = R"({"out.e5m2_satfinite": "info", "out.e5m2_nosat": "info"})";
  EXPECT_EQ(encode.run().verdict, Verdict::failed) << "nothing was compared";
}

TEST(EncodeCase, FailsForOutputsThatNoEncoderMakes) {
  for (const std::string name :
       {"out.e5m2_stochastic", "out.e9m9_nosat", "out.e5m2_satfinite_extra"}) {
    EncodeCase encode;
    encode.file.tensors[name] = encode.file["out.e5m2_nosat"];
    EXPECT_EQ(encode.run().verdict, Verdict::failed) << name;
  }
  EncodeCase flavour;
  flavour.file.edit_json("params", [](Json& params) { params["flavour"] = "intel"; });
  EXPECT_NE(flavour.run().error, "");
}

TEST(EncodeCase, FailsForAnOutputOfAnotherLengthOrType) {
  EncodeCase shorter;
  shorter.file["out.e5m2_nosat"].bytes.pop_back();
  shorter.file["out.e5m2_nosat"].shape = {65535};
  EXPECT_EQ(shorter.run().verdict, Verdict::failed);
  EncodeCase typed;
  typed.file["out.e5m2_nosat"].dtype = DType::i8;
  EXPECT_EQ(typed.run().verdict, Verdict::failed);
}

TEST(EncodeCase, TakesPartOfTheRange) {
  EncodeCase part;
  part.file.set<std::uint32_t>("in.range", 0, 0x3F80);
  part.file.set<std::uint32_t>("in.range", 1, 0x4080);
  for (const std::string name : {"out.e5m2_satfinite", "out.e5m2_nosat"}) {
    Tensor& codes = part.file[name];
    codes.bytes = {codes.bytes.begin() + 0x3F80, codes.bytes.begin() + 0x4080};
    codes.shape = {0x100};
  }
  EXPECT_EQ(part.run().verdict, Verdict::passed) << describe(part.run());
  part.file.set<std::uint32_t>("in.range", 1, 0x3F00);
  EXPECT_NE(part.run().error, "");
}

TEST(DecodeCase, TakesTheCodesThatAreGiven) {
  TempFolder folder;
  EditableFile file(kGolden / "formats" / "decode_all_mldtypes.safetensors");
  const auto keep = [&](const std::string& name, std::size_t element) {
    Tensor& tensor = file[name];
    tensor.bytes = {tensor.bytes.begin() + static_cast<std::ptrdiff_t>(100 * element),
                    tensor.bytes.begin() + static_cast<std::ptrdiff_t>(140 * element)};
    tensor.shape = {40};
  };
  keep("in.e4m3fn_codes", 1);
  keep("out.e4m3fn_f32_bits", 4);
  keep("out.e4m3fn_bf16_bits", 2);
  keep("out.e4m3fn_f16_bits", 2);
  file.write(folder / "part.safetensors");
  EXPECT_EQ(run_file(folder / "part.safetensors").verdict, Verdict::passed);
  file.tensors["out.e4m3fn_f8_bits"] = file["out.e4m3fn_f16_bits"];
  file.write(folder / "part.safetensors");
  EXPECT_EQ(run_file(folder / "part.safetensors").verdict, Verdict::failed);
}

TEST(FindCases, SkipsCheckpointsAndDataInFoldersOnly) {
  const std::vector<fs::path> folder{kGolden / "models"};
  for (const GoldenCase& golden : find_cases(folder))
    EXPECT_EQ(golden.path.parent_path(), kGolden / "models");
  const std::vector<fs::path> file{kGolden / "models" / "deepseek_v4_mxfp4_h128_i64_e8" /
                                   "model.safetensors"};
  EXPECT_THROW(find_cases(file), Error);
  const std::vector<fs::path> missing{kGolden / "absent.safetensors"};
  EXPECT_THROW(find_cases(missing), Error);

  EncodeCase data;
  data.file.metadata["op"] = "weights";
  data.write("weights.safetensors");
  const std::vector<fs::path> only_unknown{data.folder.path()};
  EXPECT_EQ(find_cases(only_unknown).size(), 1u)
      << "an unknown op with outputs is a case, to be skipped";
  std::erase_if(data.file.tensors,
                [](const auto& entry) { return entry.first.starts_with("out."); });
  data.write("weights.safetensors");
  EXPECT_THROW(find_cases(only_unknown), Error) << "no case at all";
}

TEST(FindCases, RejectsMalformedCases) {
  const auto rejects = [](const std::string& key, const std::string& text) {
    EncodeCase encode;
    encode.file.metadata[key] = text;
    EXPECT_THROW(run_file(encode.write()), Error) << key << " " << text;
  };
  rejects("params", "{");
  rejects("params", "[]");
  rejects("compare", "3");
  rejects("compare", R"({"out.e5m2_nosat": "roughly"})");
  rejects("compare", R"({"out.e5m2_nosat": {"bound": "f16"}})");
  rejects("compare", R"({"out.e5m2_nosat": {"mask": "out.absent"}})");
  rejects("compare", R"({"out.absent": "bits"})");
}

TEST(RunCase, FailsWithTheReasonWhereInputIsMissing) {
  TempFolder folder;
  EditableFile file(kGolden / "models" / "moe_block_gpt_oss_mxfp4_h128_i192_e8_l0_t1.safetensors");
  file.write(folder / "alone.safetensors");
  const CaseResult result = run_file(folder / "alone.safetensors");
  EXPECT_EQ(result.verdict, Verdict::failed);
  EXPECT_NE(result.error.find("gpt_oss_mxfp4_h128_i192_e8"), std::string::npos) << result.error;
}

/// What `moeref conform` prints and its exit code.
struct CommandRun {
  int exit_code = 0;
  std::string output;
};

CommandRun run_command(std::vector<std::string> arguments, bool json = false) {
  CLI::App app{"moeref"};
  cli::GlobalOptions global;
  global.json = json;
  cli::add_conform_command(app, global);
  arguments.insert(arguments.begin(), "conform");
  std::reverse(arguments.begin(), arguments.end());
  CommandRun run;
  ::testing::internal::CaptureStdout();
  try {
    app.parse(arguments);
  } catch (const cli::ExitWith& exit) {
    run.exit_code = exit.code;
  } catch (const Error&) {
    run.exit_code = 2;
  }
  run.output = ::testing::internal::GetCapturedStdout();
  return run;
}

TEST(ConformCommand, ClosesWithTheCounts) {
  EncodeCase encode;
  const std::string good = encode.write("good.safetensors").string();
  encode.file.set<std::uint8_t>("out.e5m2_nosat", 0, 1);
  const std::string bad = encode.write("bad.safetensors").string();
  encode.file.metadata["op"] = "transmogrify";
  const std::string unknown = encode.write("unknown.safetensors").string();

  const CommandRun passed = run_command({good});
  EXPECT_EQ(passed.exit_code, 0);
  EXPECT_EQ(passed.output, "1 passed, 0 failed\n");

  const CommandRun failed = run_command({good, bad});
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_EQ(failed.output, bad +
                               ": out.e5m2_nosat (bits): 1 of 65536 elements differ, first at [0]: "
                               "stored 0x01, moeref 0x00\n"
                               "1 passed, 1 failed\n");

  const CommandRun skipped = run_command({good, unknown});
  EXPECT_EQ(skipped.exit_code, 1);
  EXPECT_EQ(skipped.output, "1 passed, 0 failed, 1 skipped\n");

  const CommandRun folder = run_command({encode.folder.path().string(), "--verbose"});
  EXPECT_EQ(folder.exit_code, 1);
  EXPECT_NE(folder.output.find(good + ": passed (encode)\n"), std::string::npos) << folder.output;
  EXPECT_NE(folder.output.find(unknown + ": skipped: unknown op transmogrify\n"),
            std::string::npos);
  EXPECT_TRUE(folder.output.ends_with("1 passed, 1 failed, 1 skipped\n"));
}

TEST(ConformCommand, ExitsWithTwoForWhatIsNoCase) {
  TempFolder folder;
  moeref::testing::write_bytes(folder / "broken.safetensors", "not a safetensors file");
  EXPECT_EQ(run_command({(folder / "broken.safetensors").string()}).exit_code, 2);
  EXPECT_EQ(run_command({folder.path().string()}).exit_code, 2);
}

TEST(ConformCommand, WritesJson) {
  EncodeCase encode;
  encode.file.set<std::uint8_t>("out.e5m2_nosat", 3, 9);
  const CommandRun run = run_command({encode.write().string()}, /*json=*/true);
  EXPECT_EQ(run.exit_code, 1);
  const Json report = Json::parse(run.output);
  EXPECT_EQ(report["failed"], 1);
  EXPECT_EQ(report["cases"][0]["verdict"], "failed");
  for (const Json& output : report["cases"][0]["outputs"]) {
    EXPECT_EQ(output["passed"], output["name"] != "out.e5m2_nosat");
    if (output["name"] == "out.e5m2_nosat") {
      EXPECT_EQ(output["first_index"], 3);
    }
  }
}

}  // namespace
}  // namespace moeref::conform
