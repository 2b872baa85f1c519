// --numerics and --kernel of golden, run and check, and what backends tells of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "layout/backend.hpp"
#include "tests/cli/layout_command.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using ::testing::EndsWith;
using testing::expect_refused;
using ::testing::HasSubstr;
using testing::json;
using testing::json_of;
using testing::kGptOss;
using testing::kModels;
using testing::moeref_with;
using testing::Outcome;
using testing::TempFolder;

const std::string kDeepSeek = kModels + "deepseek_v3_fp8_h256_i128_e8";
const std::string kNemotron = kModels + "nemotron_h_modelopt_fp8_h128_i248_e8";
const std::string kSm90 = " --backend flashinfer_sm90_mxfp4 ";
const std::string kTriton = " --backend triton_fp8_block ";

struct Made {
  fs::path file;
  json params;
  std::string note;
};

/// The one file that a golden command writes.
Made golden(const TempFolder& folder, const std::string& arguments) {
  const std::string out = (folder / "golden").string();
  fs::remove_all(out);
  const bool any = arguments.find("--threads") == std::string::npos;
  const Outcome outcome =
      moeref_with("golden " + arguments + (any ? " --threads 1 -o " : " -o ") + out);
  EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.error;
  if (outcome.code != 0) return {};
  Made made;
  made.file = fs::directory_iterator(out)->path();
  const auto file = SafetensorsFile::open(made.file);
  made.params = json::parse(file->metadata().at("params"));
  made.note = file->metadata().at("note");
  return made;
}

TEST(GoldenNumerics, NamesFilesByLevelAndKernel) {
  const TempFolder folder;
  const auto name = [&](const std::string& arguments) {
    return golden(folder, kGptOss + " --tokens 2 " + arguments).file.filename().string();
  };
  const std::string model = "gpt_oss_mxfp4_h128_i192_e8_l0_";
  EXPECT_EQ(name(""), model + "reference_t2_s0.safetensors");
  EXPECT_EQ(name(kSm90), model + "flashinfer_sm90_mxfp4_t2_s0.safetensors");
  EXPECT_EQ(name(kSm90 + "--numerics backend"),
            model + "flashinfer_sm90_mxfp4_t2_s0_backend.safetensors");
  EXPECT_EQ(name(kSm90 + "--numerics replay"),
            model + "flashinfer_sm90_mxfp4_t2_s0_replay.safetensors");
  // What a name leaves out is the default, however it was given.
  EXPECT_EQ(name(kSm90 + "--numerics replay --kernel tile_k=128 --scale-in-combine --ep 1/2"),
            model + "flashinfer_sm90_mxfp4_t2_s0_replay_scaled_ep1of2.safetensors");
  EXPECT_EQ(name("--scale-in-combine"), model + "reference_t2_s0_scaled.safetensors");
  EXPECT_EQ(name(kSm90 + "--numerics backend --option layout=v1"),
            model + "flashinfer_sm90_mxfp4_layout=v1_t2_s0_backend.safetensors");
  EXPECT_EQ(name(kSm90 + "--option layout=v1 --output f32"),
            model + "flashinfer_sm90_mxfp4_layout=v1_t2_s0_f32.safetensors");
  const auto triton = [&](const std::string& kernel) {
    return golden(folder, kDeepSeek + kTriton + "--layer 1 --tokens 2 --numerics replay" + kernel)
        .file.filename()
        .string();
  };
  const std::string sizes = "_BLOCK_SIZE_M=16_path=sgl100.safetensors";
  EXPECT_THAT(triton(" --kernel path=sgl100 --kernel BLOCK_SIZE_M=16"), EndsWith(sizes));
  EXPECT_EQ(triton(" --kernel BLOCK_SIZE_M=016 --kernel path=sgl100"),
            triton(" --kernel path=sgl100 --kernel BLOCK_SIZE_M=16"));
}

TEST(GoldenNumerics, StoresAllThatTheyDependOn) {
  const TempFolder folder;
  const Made reference = golden(folder, kGptOss + " --tokens 2");
  EXPECT_EQ(reference.params["numerics"], "reference");
  for (const char* absent : {"options", "kernel", "replay_evidence", "rows", "scales_in_combine"}) {
    EXPECT_FALSE(reference.params.contains(absent)) << absent;
  }
  const Made replay = golden(folder, kGptOss + kSm90 + "--tokens 2 --numerics replay");
  EXPECT_EQ(replay.params["numerics"], "replay");
  EXPECT_EQ(replay.params["backend"], "flashinfer_sm90_mxfp4");
  EXPECT_EQ(replay.params["kernel"], (json{{"tile_k", "128"}}));
  EXPECT_EQ(replay.params["options"],
            (json{{"layout", "v2"}, {"max_range", "11"}, {"variant", "w4a16"}}));
  EXPECT_EQ(replay.params["replay_evidence"], "measured");
  EXPECT_EQ(replay.params["rows"], "by_expert");
  EXPECT_THAT(replay.note, HasSubstr("the bits of the backend's kernel"));
  const Made triton =
      golden(folder, kDeepSeek + kTriton +
                         "--layer 1 --tokens 2 --numerics backend --scale-in-combine --kernel "
                         "path=sgl100 --kernel combine=eager_sum");
  EXPECT_EQ(triton.params["kernel"]["path"], "sgl100");
  EXPECT_EQ(triton.params["kernel"]["combine"], "eager_sum");
  EXPECT_EQ(triton.params["kernel"]["BLOCK_SIZE_M"], "0");
  EXPECT_EQ(triton.params["scales_in_combine"], true);
  EXPECT_FALSE(triton.params.contains("rows"));
  EXPECT_THAT(triton.note, HasSubstr("rounding points and quantizers of the backend"));
  const Made marlin =
      golden(folder, kGptOss + " --backend marlin_mxfp4 --tokens 2 --numerics backend");
  EXPECT_EQ(marlin.params["replay_evidence"], "none");
}

TEST(GoldenNumerics, DifferWhereTheKernelsDo) {
  const TempFolder folder;
  const auto digest = [&](const std::string& arguments) {
    return json_of("golden " + kDeepSeek + kTriton + "--layer 1 --tokens 7 --threads 1 " +
                   arguments + " -o " + (folder / "g").string())[0]["final_sha256"]
        .get<std::string>();
  };
  const std::string reference = digest("");
  const std::string backend = digest("--numerics backend");
  const std::string replay = digest("--numerics replay");
  EXPECT_NE(reference, backend);
  EXPECT_NE(backend, replay);
  EXPECT_NE(digest("--numerics replay --kernel path=sgl100"), replay);
  EXPECT_NE(digest("--numerics replay --scale-in-combine"), replay);
  // Said or not, the default is the default.
  EXPECT_EQ(digest("--numerics replay --kernel path=sgl90"), replay);
}

TEST(RunNumerics, RunGoldenFilesAgain) {
  const TempFolder folder;
  for (const std::string& arguments :
       {kGptOss + " --tokens 3", kGptOss + kSm90 + "--tokens 3 --numerics replay",
        kGptOss + kSm90 + "--tokens 3 --numerics backend --tp 0/1 --ep 1/2",
        kGptOss + " --backend flashinfer_trtllm_mxfp4 --tokens 3 --numerics backend --kernel "
                  "activations=bf16 --option align=128",
        kDeepSeek + kTriton +
            "--layer 1 --tokens 3 --numerics replay --scale-in-combine --kernel path=triton "
            "--kernel BLOCK_SIZE_M=16",
        kNemotron + " --backend flashinfer_cutlass_fp8 --layer 1 --tokens 3 --numerics replay"}) {
    const std::string checkpoint = arguments.substr(0, arguments.find(' '));
    const Made made = golden(folder, arguments);
    const std::string again =
        "run " + made.file.string() + " --threads 1 --checkpoint " + checkpoint;
    const Outcome outcome = moeref_with(again);
    EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.error;
    EXPECT_THAT(outcome.out, HasSubstr(", equal to the golden file"));
    EXPECT_THAT(outcome.out, HasSubstr(made.params["numerics"].get<std::string>() + " numerics"));
    const json report = json_of(again);
    EXPECT_EQ(report["equals_golden"], true);
    for (const char* key : {"backend", "numerics", "kernel", "options", "rows", "replay_evidence",
                            "scales_in_combine"}) {
      EXPECT_EQ(report["params"].value(key, json()), made.params.value(key, json())) << key;
    }
    EXPECT_EQ(moeref_with("check " + made.file.string() + " " + made.file.string()).code, 0);
  }
}

TEST(RunNumerics, SaysWhenAGoldenFileIsNotReproduced) {
  const TempFolder folder;
  const Made made = golden(folder, kGptOss + kSm90 + "--tokens 3 --numerics replay");
  // Another final: as if another build had made it.
  const auto file = SafetensorsFile::open(made.file);
  std::vector<std::byte> bytes(file->at("out.final").bytes.begin(),
                               file->at("out.final").bytes.end());
  bytes[0] ^= std::byte{1};
  std::vector<TensorView> views;
  for (const auto& [name, view] : file->tensors()) {
    views.push_back(view);
    if (name == "out.final") views.back().bytes = bytes;
  }
  const std::string other = (folder / "other.safetensors").string();
  write_safetensors(other, views, file->metadata());
  const Outcome outcome = moeref_with("run " + other + " --checkpoint " + kGptOss);
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.out, HasSubstr("NOT the golden file's"));
  EXPECT_EQ(json_of("run " + other + " --checkpoint " + kGptOss, 1)["equals_golden"], false);
}

TEST(RunNumerics, RefusesAGoldenFileOfNumericsThatThereAreNot) {
  const TempFolder folder;
  const Made made = golden(folder, kGptOss + kSm90 + "--tokens 1 --numerics replay");
  const auto file = SafetensorsFile::open(made.file);
  std::vector<TensorView> views;
  for (const auto& [name, view] : file->tensors()) views.push_back(view);
  const auto with = [&](const char* key, const json& value) {
    json params = made.params;
    params[key] = value;
    auto metadata = file->metadata();
    metadata["params"] = params.dump();
    const std::string other = (folder / "other.safetensors").string();
    write_safetensors(other, views, metadata);
    return "run " + other + " --checkpoint " + kGptOss;
  };
  expect_refused(with("numerics", "emulated"), {"--numerics", "emulated", "replay"});
  expect_refused(with("backend", "marlin_mxfp4"), {"marlin_mxfp4", "layout"});
  expect_refused(with("kernel", json{{"warps", "4"}}), {"flashinfer_sm90_mxfp4", "warps"});
  expect_refused(with("kernel", json{{"tile_k", 128}}), {"other.safetensors", "'kernel'"});
  expect_refused(with("options", json{{"layout", "v9"}}), {"layout", "v9"});
}

TEST(Numerics, RefuseWhatDoesNotGoTogether) {
  const std::string run = "run " + kGptOss + " --tokens 1 ";
  expect_refused(run + "--numerics exact",
                 {"--numerics", "'exact'", "reference, backend or replay"});
  expect_refused(run + kSm90 + "--numerics backend --kernel BLOCK_SIZE_M=16",
                 {"flashinfer_sm90_mxfp4 --kernel", "BLOCK_SIZE_M=16", "tile_k"});
  expect_refused(run + kSm90 + "--numerics backend --output f32",
                 {"--output", "f32", "--numerics reference"});
  expect_refused(run + kSm90 + "--numerics backend --kernel tile_k=64", {"tile_k", "64", "128"});
  expect_refused(run + " --backend marlin_mxfp4 --numerics backend --kernel tile_k=128",
                 {"marlin_mxfp4 --kernel", "tile_k=128"});
  expect_refused(run + kSm90 + "--kernel tile_k=128",
                 {"--kernel", "tile_k=128", "--numerics backend or replay"});
  expect_refused(run + kSm90 + "--numerics reference --kernel tile_k=128", {"--kernel"});
  // K is 128 and 256 after padding.
  expect_refused(run + kSm90 + "--numerics replay --kernel tile_k=256",
                 {"tile_k=256 does not divide K = 128", "take a tile of 128"});
  expect_refused(run + kSm90 + "--numerics backend --option variant=humming",
                 {"variant=humming", "variant=w4a16"});
  expect_refused(run + " --backend triton_bf16 --numerics backend", {"triton_bf16", "mxfp4"});
  expect_refused(run + " --backend triton_bf16", {"triton_bf16", "mxfp4"});
  expect_refused(run + "--routing ''", {"--routing"});
  expect_refused("golden " + kGptOss + " --routing '' -o nowhere", {"--routing"});
  expect_refused("run " + kNemotron +
                     " --tokens 1 --backend flashinfer_cutlass_fp8 --numerics replay --kernel "
                     "finalize=fused",
                 {"finalize=fused adds 3 slots", "finalize=unfused or --numerics backend"});
  EXPECT_EQ(moeref_with("run " + kNemotron +
                        " --tokens 1 --backend flashinfer_cutlass_fp8 --numerics backend --kernel "
                        "finalize=fused")
                .code,
            0);
}

TEST(GoldenNumerics, LeaveNoEmptyFolderBehindARefusal) {
  const TempFolder folder;
  const std::string golden =
      "golden " + kNemotron + " --tokens 1 --backend flashinfer_cutlass_fp8 --numerics replay ";
  expect_refused(golden + "--kernel finalize=fused -o " + (folder / "a/b").string(),
                 {"finalize=fused adds 3 slots"});
  EXPECT_THAT(folder.names(), ::testing::IsEmpty());
  fs::create_directory(folder / "mine");
  expect_refused(golden + "--kernel finalize=fused -o " + (folder / "mine").string(),
                 {"finalize=fused adds 3 slots"});
  EXPECT_THAT(folder.names(), ::testing::ElementsAre("mine"));
}

TEST(Numerics, RefuseAFusedFinalizeOfFourSlots) {
  const TempFolder folder;
  const std::vector<std::uint16_t> zeros(2 * 128, 0x3F80);
  const std::vector<std::int32_t> ids{0, 1, 2, 3, 4, 5, 6, 7};
  const std::vector<float> weights(8, 0.25f);
  const auto save = [&](std::int64_t top_k, const std::string& name) {
    const std::int64_t tokens = 8 / top_k;
    const Tensor hidden = make_tensor<std::uint16_t>(
        "hidden_states", DType::bf16, {tokens, 128},
        std::vector<std::uint16_t>(static_cast<std::size_t>(tokens * 128), 0x3F80));
    const Tensor id = make_tensor<std::int32_t>("topk_ids", DType::i32, {tokens, top_k}, ids);
    const Tensor weight = make_tensor<float>("topk_weights", DType::f32, {tokens, top_k}, weights);
    const std::vector<TensorView> views{hidden.view(), id.view(), weight.view()};
    const std::string path = (folder / name).string();
    write_safetensors(path, views, {});
    return "run " + kNemotron + " --hidden " + path +
           " --backend flashinfer_cutlass_fp8 --kernel finalize=fused --numerics ";
  };
  expect_refused(save(4, "four.safetensors") + "replay", {"finalize=fused adds 4 slots"});
  EXPECT_EQ(moeref_with(save(4, "four.safetensors") + "backend").code, 0);
  EXPECT_EQ(moeref_with(save(2, "two.safetensors") + "replay").code, 0);
}

TEST(Numerics, RefuseReplayWithTheReasonAndTheWayOut) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  for (const Backend* backend : all_backends()) {
    if (backend->replay.evidence != ReplayEvidence::none) continue;
    expect_refused("golden " + kGptOss + " --backend " + std::string(backend->name) +
                       " --numerics replay -o " + out,
                   {std::string(backend->name) + ": cannot be replayed: ",
                    std::string(backend->replay.note), "take --numerics backend"});
  }
  EXPECT_FALSE(fs::exists(out));
}

TEST(Numerics, RefuseBoundsThatAreNotTheirs) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  for (const std::string level : {"backend", "replay"}) {
    expect_refused("golden " + kGptOss + kSm90 + "--bounds --numerics " + level + " -o " + out,
                   {"--bounds", "--numerics reference"});
  }
  expect_refused("golden " + kDeepSeek + " --layer 1 --bounds --scale-in-combine -o " + out,
                 {"--bounds", "--scale-in-combine"});
  EXPECT_FALSE(fs::exists(out));
}

TEST(Numerics, OfAllBackendsLeaveOutThoseThatHaveNone) {
  const TempFolder folder;
  const auto names = [&](const std::string& arguments) {
    const std::string out = (folder / "out").string();
    fs::remove_all(out);
    std::vector<std::string> backends;
    for (const json& report :
         json_of("golden " + arguments + " --tokens 1 --threads 1 --backend '*' -o " + out)) {
      backends.push_back(report["params"]["backend"]);
    }
    return backends;
  };
  EXPECT_EQ(names(kGptOss + " --numerics replay"),
            std::vector<std::string>{"flashinfer_sm90_mxfp4"});
  EXPECT_EQ(names(kDeepSeek + " --layer 1 --numerics replay"),
            (std::vector<std::string>{"flashinfer_cutlass_fp8_block", "triton_fp8_block"}));
  // deepgemm_fp4, flashinfer_sm90_mxfp4_dsv4 and others do not take biases or this activation.
  EXPECT_EQ(names(kGptOss + " --numerics backend"),
            (std::vector<std::string>{"reference", "flashinfer_cutlass_mxfp8",
                                      "flashinfer_trtllm_mxfp4", "flashinfer_sm90_mxfp4",
                                      "marlin_mxfp4", "triton_kernels_mxfp4", "aiter_a16w4"}));
  expect_refused("golden " + kGptOss + " --backend '*' --numerics replay --kernel tile_k=128 -o " +
                     (folder / "x").string(),
                 {"--kernel", "tile_k=128", "backends by name"});
}

TEST(Numerics, AreTheSameBytesOnAnyThreadsAndInstructionSet) {
  const TempFolder folder;
  for (const std::string& arguments :
       {kGptOss + kSm90 + "--numerics replay", kDeepSeek + kTriton + "--layer 1 --numerics replay",
        kDeepSeek + " --backend flashinfer_trtllm_fp8_block --layer 1 --numerics backend"}) {
    const auto bytes = [&](const std::string& how) {
      return testing::read_bytes(golden(folder, arguments + " --tokens 5 --stages " + how).file);
    };
    const std::string usual = bytes("");
    EXPECT_EQ(bytes("--threads 1 --isa scalar"), usual);
    EXPECT_EQ(bytes("--threads 3"), usual);
  }
}

// What backends tells.

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(BackendsCommand, PrintsAMarkdownTableWithARowForEveryBackend) {
  const Outcome outcome = moeref_with("backends --numerics");
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  const std::vector<std::string> lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), all_backends().size() + 2);
  for (const std::string& line : lines) {
    EXPECT_TRUE(line.starts_with("|") && line.ends_with("|")) << line;
    EXPECT_EQ(std::count(line.begin(), line.end(), '|'), 5) << line;
  }
  EXPECT_EQ(lines[1], "|---|---|---|---|");
  for (std::size_t i = 0; i < all_backends().size(); ++i) {
    const Backend& backend = *all_backends()[i];
    EXPECT_EQ(lines[i + 2].rfind("| `" + std::string(backend.name) + "` | ", 0), 0u)
        << lines[i + 2];
    const bool measured = backend.replay.evidence == ReplayEvidence::measured;
    EXPECT_THAT(lines[i + 2],
                HasSubstr(measured ? "| measured bit-exact on hardware |" : "| not replayable |"));
    EXPECT_THAT(lines[i + 2], HasSubstr(backend.replay.note));
  }
}

TEST(BackendsCommand, PrintsTheTableOfTheReadme) {
  const std::string readme =
      testing::read_bytes(fs::path(MOEREF_DATA_DIR).parent_path() / "README.md");
  const std::string begin = "<!-- numerics table -->\n";
  const std::string end = "<!-- end of numerics table -->";
  const std::size_t from = readme.find(begin);
  const std::size_t to = readme.find(end);
  ASSERT_NE(from, std::string::npos);
  ASSERT_NE(to, std::string::npos);
  EXPECT_EQ(readme.substr(from + begin.size(), to - from - begin.size()),
            moeref_with("backends --numerics").out)
      << "put what `moeref backends --numerics` prints between the two lines";
}

TEST(LayoutListCommand, TellsKernelOptionsAndQuantizers) {
  const Outcome triton = moeref_with("layout list triton_fp8_block");
  EXPECT_THAT(triton.out, HasSubstr("Kernel (--kernel of golden and run"));
  for (const OptionInfo& option : find_backend("triton_fp8_block").kernel_options) {
    EXPECT_THAT(triton.out, HasSubstr(std::string(option.name)));
  }
  EXPECT_THAT(triton.out, HasSubstr("sglang_fp8_group version=v0 math=fast"));
  const json report = json_of("layout list triton_fp8_block");
  EXPECT_FALSE(report.is_discarded());
}

}  // namespace
}  // namespace moeref
