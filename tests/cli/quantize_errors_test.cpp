// What moeref quantize refuses, and what moeref dequantize refuses of files that quantize did not
// write so.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/cli/layout_command.hpp"
#include "tests/cli/number_file.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using namespace testing;

/// A folder with files of numbers; nothing may be added to it.
class QuantizeErrors : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::vector<std::int32_t> ids{1, 2, 3, 4};
    write_tensors(path("in"), {random_numbers("m", Format::bf16, {4, 64}, 1),
                               random_numbers("vector", Format::bf16, {64}, 2),
                               make_tensor<std::int32_t>("ids", DType::i32, {2, 2}, ids)});
    write_tensors(path("odd"), {random_numbers("m", Format::f32, {3, 5}, 3)});
    before_ = folder_.names();
  }
  void TearDown() override { EXPECT_EQ(folder_.names(), before_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  void write(const std::string& name, const std::vector<Tensor>& tensors) {
    write_tensors(path(name), tensors);
    before_ = folder_.names();
  }
  void refuse(const std::string& arguments, const std::vector<std::string>& parts,
              const std::string& file = "in") const {
    expect_refused("quantize " + path(file) + " -o " + path("out") + " " + arguments, parts);
  }

  TempFolder folder_;
  std::vector<std::string> before_;
};

TEST_F(QuantizeErrors, NamesTheNearestQuantizer) {
  refuse("--quantizer vllm_fp8_tokn", {"vllm_fp8_tokn: is no quantizer; is it vllm_fp8_token or"});
  refuse("--quantizer flashinfer_nvpf4", {"flashinfer_nvpf4", "is it flashinfer_nvfp4 or"});
  refuse("--quantizer VLLM_MXFP4", {"VLLM_MXFP4: is no quantizer", "--list"});
  expect_refused("quantize --explain modelopt_mxfp", {"modelopt_mxfp: is no", "modelopt_mxfp4"});
}

TEST_F(QuantizeErrors, NamesTheOptionsThatThereAre) {
  refuse("--quantizer vllm_fp8_token --option a=b",
         {"vllm_fp8_token: 'a=b' is no option", "upper_bound"});
  refuse("--quantizer vllm_fp8_token --option upper_bound", {"'upper_bound'", "key=value"});
  refuse("--quantizer vllm_mxfp4 --option group=32", {"vllm_mxfp4", "'group=32'", "(none)"});
  refuse("--quantizer sglang_fp8_token --option math=slow",
         {"sglang_fp8_token: option math=slow", "fast, precise"});
  for (const char* value : {"x", "-1", "1.5", "", "1048577", "99999999999999999999", "32x"}) {
    refuse(std::string("--quantizer vllm_fp8_group --option group=") + value,
           {std::string("vllm_fp8_group: option group=") + value + " needs an integer from 0"});
  }
  refuse("--quantizer vllm_fp8_group --option group=0", {"--option group=0", "no columns"});
  refuse("--quantizer vllm_fp8_group --option group=32 --option group=64",
         {"group is given twice"});
  refuse("--quantizer sglang_fp8_group --option version=v0 --option scale=ue8m0",
         {"sglang_fp8_group: version=v0", "v1, v2 or v3"});
}

TEST_F(QuantizeErrors, WantsAScaleWhereOneIsCalibrated) {
  refuse("--quantizer flashinfer_nvfp4",
         {"--scale: is needed: flashinfer_nvfp4 takes a calibrated scale", "amax"});
  refuse("--quantizer sglang_fp8_static --scale ''", {"--scale: is needed"});
  for (const std::string scale : {"1", "amax"}) {
    refuse("--quantizer modelopt_nvfp4 --scale " + scale,
           {"--scale: is not for modelopt_nvfp4, which makes its own scales"});
    refuse("--quantizer vllm_fp8_token --scale " + scale, {"--scale: is not for vllm_fp8_token"});
  }
  for (const std::string scale : {"nan", "inf", "-inf", "0", "-0", "0.0", "-1", "text", "1x",
                                  "AMAX", "1e60", "1e-60", "' 1'", "1,5"}) {
    for (const std::string quantizer : {"flashinfer_nvfp4", "sglang_fp8_static"}) {
      refuse("--quantizer " + quantizer + " --scale=" + scale,
             {"--scale: '", scale == "' 1'" ? " 1" : scale, "' is no f32 above 0"});
    }
  }
}

TEST_F(QuantizeErrors, TakesNoFileOfItsOwn) {
  expect_done("quantize " + path("in") + " -q --quantizer ocp_mx -o " + path("own"));
  before_ = folder_.names();
  refuse("--quantizer ocp_mx", {"own", "was written by moeref quantize"}, "own");
}

TEST_F(QuantizeErrors, SaysWhatDequantizeTakes) {
  write("plain.safetensors", {random_numbers("m", Format::bf16, {4, 64}, 1)});
  expect_refused("dequantize " + path("plain.safetensors") + " -o " + path("out"),
                 {"plain.safetensors: has no config.json beside it", "moeref quantize"});
}

TEST_F(QuantizeErrors, MakesNoScaleOfMatricesThatGiveNone) {
  Tensor zero = random_numbers("zero", Format::bf16, {2, 4, 64}, 4);
  std::fill(zero.bytes.begin() + 512, zero.bytes.end(), std::byte{0});
  Tensor infinite = random_numbers("infinite", Format::bf16, {4, 64}, 5);
  infinite.bytes[0] = std::byte{0x80};
  infinite.bytes[1] = std::byte{0x7F};
  write("zero", {zero});
  write("infinite", {infinite});
  for (const std::string quantizer :
       {"flashinfer_nvfp4", "sglang_nvfp4", "sglang_fp8_static", "flashinfer_fp8_static_moe",
        "flashinfer_nvfp4 --option global_scale=inverted"}) {
    const std::string arguments = "--scale amax --quantizer " + quantizer;
    refuse(arguments, {"zero: zero[1]: has the largest magnitude 0", "--scale a number"}, "zero");
    refuse(arguments, {"infinite: infinite: has the largest magnitude inf"}, "infinite");
  }
}

TEST_F(QuantizeErrors, WantsWholeBlocksAndPairs) {
  refuse("--quantizer modelopt_mxfp4", {"odd: m: has 5 columns; blocks of 32 must be whole"},
         "odd");
  refuse("--quantizer vllm_fp8_group", {"in: m: has 64 columns; blocks of 128 must be whole"});
  refuse("--quantizer compressed_tensors_nvfp4", {"odd: m: has 5 columns; blocks of 16"}, "odd");
  // Ragged blocks are taken, half a byte is not.
  refuse("--quantizer deepgemm_fp4_token",
         {"odd: m: has 5 columns; FP4 codes are packed in pairs: pad the columns"}, "odd");
  refuse("--quantizer ocp_mx --option block=5", {"odd: m: has 5 columns; FP4 codes"}, "odd");
  write("ten", {random_numbers("m", Format::f32, {3, 10}, 6)});
  for (const char* quantizer : {"deepgemm_fp4_token --option group=3", "ocp_mx --option block=5"}) {
    refuse(std::string("--quantizer ") + quantizer,
           {"ten: m: is cut into blocks of ", " columns; FP4 codes are packed in pairs", "even"},
           "ten");
  }
}

TEST_F(QuantizeErrors, WantsMatricesOfTheQuantizersNumbers) {
  const std::string start = "--quantizer flashinfer_nvfp4 --scale 1 --tensor ";
  refuse(start + "ids",
         {"in: ids: is I32 [2, 2]; the quantizer flashinfer_nvfp4 takes matrices of bf16, f16"});
  refuse(start + "vector", {"in: vector: is BF16 [64]; the quantizer", "matrices"});
  refuse(start + "n", {"in: no tensor 'n'", "'m'"});
  refuse(start + "m --tensor m", {"--tensor: m is given twice"});
  refuse(start + "m", {"odd: m: is F32 [3, 5]", "bf16, f16"}, "odd");
  refuse("--quantizer flashinfer_nvfp4 --scale 1",
         {"odd: holds no matrix that the quantizer flashinfer_nvfp4 takes: bf16, f16"}, "odd");
  refuse("--quantizer flashinfer_fp8_to_fp4 --scale 1", {"in: holds no matrix", "e4m3"});
  write("clash", {random_numbers("m", Format::f32, {2, 4}, 7),
                  random_numbers("m_scale", Format::f32, {4}, 8)});
  refuse("--quantizer vllm_fp8_token", {"clash: m_scale: is there already"}, "clash");
}

TEST_F(QuantizeErrors, WantsStepsThatFitTheScales) {
  refuse("--quantizer modelopt_mxfp4 --scale-steps swizle_128x4",
         {"--scale-steps: 'swizle_128x4' is no step", "swizzle_128x4"});
  refuse("--quantizer modelopt_mxfp4 --scale-steps 'shuffle_rows(128)'",
         {"m_scale", "shuffle_rows"});
  refuse("--quantizer modelopt_mxfp4 --scale-steps 'repeat_rows(1048576) repeat_rows(1048576)'",
         {"m_scale", "repeat_rows"});
}

TEST_F(QuantizeErrors, WantsAFileThatCanBeReadAndOneToWrite) {
  const std::string rest = " --quantizer modelopt_mxfp4 ";
  expect_refused("quantize " + path("in") + rest,
                 {"quantize: takes a file, --quantizer and --out"});
  expect_refused("quantize " + path("in") + " -o " + path("out"), {"--quantizer"});
  expect_refused("quantize -o " + path("out") + rest, {"takes a file"});
  refuse(rest, {"absent: no such file"}, "absent");
  expect_refused("quantize " + folder_.path().string() + rest + "-o " + path("out"), {"folder"});
  write_bytes(path("text"), "no tensors in here");
  before_ = folder_.names();
  refuse(rest, {"text: ", "is this a safetensors file?"}, "text");
  const std::string whole = read_bytes(path("in"));
  expect_refused("quantize " + path("in") + rest + "-o " + path("in"),
                 {"in: is the input itself; choose another -o"});
  fs::create_symlink(path("in"), path("link"));
  before_ = folder_.names();
  expect_refused("quantize " + path("in") + rest + "-o " + path("link"), {"link: is the input"});
  expect_refused("dequantize " + path("in") + " -o " + path("in"), {"in"});
  EXPECT_TRUE(read_bytes(path("in")) == whole);
  expect_refused("quantize " + path("in") + rest + "-o " + path("nowhere/out"),
                 {"nowhere", "does not exist"});
}

/// A file of moeref quantize, changed and given to moeref dequantize.
class ChangedFile : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  EditableFile quantized(const std::string& arguments) const {
    write_tensors(path("in"), {random_numbers("m", Format::bf16, {6, 64}, 1)});
    expect_done("quantize " + path("in") + " -q -o " + path("q") + " --quantizer " + arguments);
    return EditableFile(path("q"));
  }
  void refuse(const EditableFile& file, const std::vector<std::string>& parts) const {
    file.write(path("q"));
    expect_refused("dequantize " + path("q") + " -o " + path("out"), parts);
    EXPECT_EQ(folder_.names(), (std::vector<std::string>{"in", "q"}));
  }
  /// Sets a field of the tensor in the metadata.
  void refuse(const EditableFile& whole, const std::string& field, const json& value,
              const std::vector<std::string>& parts) const {
    EditableFile file = whole;
    file.edit_json("params", [&](json& params) { params["tensors"][0][field] = value; });
    SCOPED_TRACE(field + " = " + value.dump().substr(0, 80));
    refuse(file, parts);
  }

  TempFolder folder_;
};

TEST_F(ChangedFile, NeedsEveryFieldOfItsMetadata) {
  const EditableFile whole = quantized("compressed_tensors_nvfp4");
  for (const char* field : {"name", "shape", "codes", "scales", "code_format", "scale_format",
                            "block_rows", "block_cols", "global_rule"}) {
    EditableFile file = whole;
    file.edit_json("params", [&](json& params) { params["tensors"][0].erase(field); });
    refuse(file, {"q: ", field, "was not written by moeref, or was changed"});
    refuse(whole, field, json::array({json::object()}), {"q: ", field});
    refuse(whole, field, nullptr, {"q: ", field});
  }
  EditableFile file = whole;
  file.edit_json("params", [&](json& params) { params["tensors"][0].erase("global"); });
  refuse(file, {"q: has no field 'global'"});
}

TEST_F(ChangedFile, NeedsMetadataThatListTensors) {
  const EditableFile whole = quantized("modelopt_mxfp4");
  EditableFile file = whole;
  for (const char* text : {"{}", R"({"tensors": 3})", R"({"tensors": {"a": 1}})"}) {
    file.metadata["params"] = text;
    refuse(file, {"q: has no list of tensors in its metadata", "moeref quantize"});
  }
  for (const char* text : {"", "{", "[]", R"({"tensors": [], "tensors": []})"}) {
    file.metadata["params"] = text;
    refuse(file, {"q: metadata params: "});
  }
  file.metadata.erase("params");
  refuse(file, {"q: has no list of tensors in its metadata"});
  file.metadata["params"] = R"({"tensors": [3]})";
  refuse(file, {"q: holds 3, needs a JSON object"});
  for (const std::string& nested :
       {std::string(200000, '['), R"({"tensors": )" + std::string(200000, '['),
        R"({"tensors": [)" + std::string(200000, '[') + std::string(200000, ']') + "]}"}) {
    file.metadata["params"] = nested;
    refuse(file, {"q: metadata params: ", "nested deeper than 64 levels"});
  }
}

TEST_F(ChangedFile, NeedsSizesThatCanBe) {
  const EditableFile whole = quantized("modelopt_mxfp4");
  const std::int64_t large = std::int64_t{1} << 40;
  for (const json& shape :
       {json(), json("[6, 64]"), json::array(), json::array({6}), json::array({6, "64"}),
        json::array({6, 64.0}), json::array({-6, -64}), json::array({6, -64}),
        json::array({large, large}), json::array({large, 2}), json::array({0, large, large}),
        json::array({large, 0, 64}), json::array({std::numeric_limits<std::uint64_t>::max(), 64}),
        json::array({std::numeric_limits<std::int64_t>::min(), 1}), json::array({1e300, 1})}) {
    refuse(whole, "shape", shape, {"q: metadata 'shape' must be two or more sizes"});
  }
  for (const json& shape :
       {json::array({6, 32}), json::array({3, 128}), json::array({1, 6, 64}), json::array({7, 64}),
        json::array({large, 1, 1}), json::array({1, large / 2, 2}), json::array({0, 64})}) {
    const bool odd = shape.back() == 1;
    refuse(whole, "shape", shape,
           odd ? std::vector<std::string>{"q: ", "m has an odd number of packed columns"}
               : std::vector<std::string>{"q: m: is U8 [6, 32]; the metadata need ["});
  }
  for (const json& block : {json(-1), json(1.5), json("32"), json(large + 1), json(1e30),
                            json(std::numeric_limits<std::uint64_t>::max())}) {
    refuse(whole, "block_cols", block, {"q: block_cols is ", "needs an integer from 0 to"});
    refuse(whole, "block_rows", block, {"q: block_rows is ", "needs an integer from 0 to"});
  }
  for (const json& block : {json(0), json(1), json(31), json(64), json(large)}) {
    refuse(whole, "block_cols", block, {"q: m_scale: is F8_E8M0 [6, 2]; the metadata need [6, "});
  }
  refuse(whole, "block_rows", 0, {"q: m_scale: is F8_E8M0 [6, 2]; the metadata need [1, 2]"});
}

TEST_F(ChangedFile, NeedsFormatsThatCanBe) {
  const EditableFile whole = quantized("modelopt_mxfp4");
  for (const char* format : {"", "e4m4", "E2M1 ", "nvfp4"}) {
    refuse(whole, "code_format", format, {"q: metadata 'code_format' is no number format"});
    refuse(whole, "scale_format", format, {"q: metadata 'scale_format' is no number format"});
  }
  for (const char* format : {"f32", "bf16", "f64"}) {
    refuse(whole, "code_format", format, {"q: ", std::string(format) + " codes with e8m0 scales"});
  }
  for (const char* format : {"e2m1", "f64"}) {
    refuse(whole, "scale_format", format, {"q: ", "e2m1 codes with " + std::string(format)});
  }
  refuse(whole, "scale_format", "e4m3",
         {"q: m_scale: is F8_E8M0 [6, 2]; the metadata need F8_E4M3"});
  refuse(whole, "scale_format", "f32", {"q: m_scale: is F8_E8M0", "F32"});
  refuse(whole, "code_format", "e4m3", {"q: m: is U8 [6, 32]; the metadata need [6, 64]"});
  for (const json& rule : {json("plus"), json("")}) {
    refuse(whole, "global_rule", rule, {"q: ", "must be none, multiply or divide"});
  }
  refuse(whole, "global_rule", "multiply", {"q: has no field 'global'"});
}

TEST_F(ChangedFile, NeedsItsTensorsAsTheyWere) {
  const EditableFile whole = quantized("flashinfer_nvfp4_token");
  const std::vector<std::string> names{"m", "m_scale", "m_global_scale"};
  for (const std::string& name : names) {
    EditableFile file = whole;
    file.tensors.erase(name);
    refuse(file, {"q: no tensor '" + name + "'"});
    for (const DType dtype : {DType::f8_e5m2, DType::i32, DType::f16, DType::boolean}) {
      file = whole;
      Tensor& tensor = file[name];
      const std::int64_t bits = info(tensor.dtype).bits * tensor.view().size();
      tensor.dtype = dtype;
      tensor.shape = {bits / info(dtype).bits};
      refuse(file, {"q: " + name + ": is " + std::string(moeref::name(dtype)) + " ["});
    }
    file = whole;
    file[name].shape = {1, file[name].view().size()};
    if (name != "m_global_scale") refuse(file, {"q: " + name + ": is ", "[1, ", "need [6, "});
    file = whole;
    file[name].shape.front() = 5;
    file[name].bytes.resize(file[name].bytes.size() / 6 * 5);
    refuse(file, {"q: " + name + ": is ", "[5"});
  }
  for (const float global : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    EditableFile file = whole;
    file.set<float>("m_global_scale", 3, global);
    refuse(file, {"q: m: has the global scale", "must be finite"});
  }
  refuse(whole, "scales", "other", {"q: no tensor 'other'"});
  refuse(whole, "codes", "m_scale", {"q: m_scale: is F8_E4M3 [6, 4]"});
  refuse(whole, "scales", std::string("a\nb"), {"q: no tensor 'a"});
  EditableFile zero = quantized("compressed_tensors_nvfp4");
  zero.set<float>("m_global_scale", 0, 0.0f);
  refuse(zero, {"q: m_packed: has the global scale 0", "not zero where it divides"});
}

TEST_F(ChangedFile, NeedsStepsThatMadeItsScales) {
  const EditableFile whole = quantized("modelopt_mxfp4 --scale-steps swizzle_128x4");
  refuse(whole, "scale_steps", "swizle_128x4",
         {"q: m_scale: scale_steps: 'swizle_128x4' is no step", "swizzle_128x4"});
  refuse(whole, "scale_steps", "pad_rows(4)", {"q: m_scale: is F8_E8M0 [1, 128, 4]", "[1, 8, 2]"});
  refuse(whole, "scale_steps", "", {"q: m_scale: is F8_E8M0 [1, 128, 4]", "[6, 2]"});
  refuse(whole, "scale_steps", "pad_rows(99999999999999999999)", {"q: m_scale", "pad_rows"});
  refuse(whole, "scale_steps", "repeat_rows(1048576) repeat_rows(1048576)",
         {"q: m_scale", "repeat_rows"});
  refuse(whole, "scale_steps", std::string(100000, 'x'), {"q: m_scale", "is no step"});
  refuse(whole, "scale_steps", 3, {"q: scale_steps is 3, needs a text"});
  refuse(whole, "shape", json::array({1, std::int64_t{1} << 39, 2}), {"q: m: is U8 [6, 32]"});
  EditableFile file = whole;
  file["m_scale"].dtype = DType::f8_e4m3;
  refuse(file, {"q: m_scale: is F8_E4M3 [1, 128, 4]; the metadata need F8_E8M0"});
}

TEST_F(ChangedFile, HasEachNameOnce) {
  const EditableFile whole = quantized("modelopt_mxfp4");
  EditableFile file = whole;
  file.edit_json("params", [](json& params) { params["tensors"].push_back(params["tensors"][0]); });
  refuse(file, {"two tensors are named 'm'"});
  file = whole;
  file.tensors["bias"] = random_numbers("bias", Format::f32, {3}, 1);
  file.edit_json("params", [](json& params) { params["tensors"][0]["name"] = "bias"; });
  refuse(file, {"two tensors are named 'bias'"});
}

TEST_F(ChangedFile, IsReadByItsFormAlone) {
  // The numbers are codes and scales: who made them does not enter.
  EditableFile file = quantized("modelopt_mxfp4");
  expect_done("dequantize " + path("q") + " -q -o " + path("a"));
  file.edit_json("params", [](json& params) { params["quantizer"] = "of_tomorrow"; });
  file["m_scale"].dtype = DType::u8;
  file.write(path("q"));
  expect_done("dequantize " + path("q") + " -q -o " + path("b"));
  EXPECT_TRUE(EditableFile(path("a"))["m"].bytes == EditableFile(path("b"))["m"].bytes);
  expect_refused("dequantize " + path("q") + " --layer 0 -o " + path("c"), {"q", "--layer"});
  expect_refused("dequantize " + path("q") + " -o " + path("q"), {"q: is the input itself"});
  file.metadata["op"] = "something";
  file.write(path("q"));
  expect_refused("dequantize " + path("q") + " -o " + path("c"), {"config.json"});
  EXPECT_EQ(folder_.names(), (std::vector<std::string>{"a", "b", "in", "q"}));
}

TEST_F(ChangedFile, MayHoldManyMatricesOfNothing) {
  EditableFile file = quantized("modelopt_mxfp4");
  const std::int64_t many = std::int64_t{1} << 34;
  file["m"].shape = {many, 0, 32};
  file["m_scale"].shape = {many, 0, 2};
  for (const char* name : {"m", "m_scale"}) file[name].bytes.clear();
  for (const char* steps : {"", "swizzle_128x4"}) {
    file.edit_json("params", [&](json& params) {
      params["tensors"][0]["shape"] = json::array({many, 0, 64});
      params["tensors"][0]["scale_steps"] = steps;
    });
    file.write(path("q"));
    expect_done("dequantize " + path("q") + " -q -o " + path("out"));
    EXPECT_EQ(EditableFile(path("out"))["m"].shape, (Shape{many, 0, 64}));
  }
}

}  // namespace
}  // namespace moeref
