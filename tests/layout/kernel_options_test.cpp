#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "layout/backend.hpp"
#include "tests/layout/usual_numerics.hpp"
#include "tests/support/error_of.hpp"

// What each kernel option makes of a backend's numerics.

namespace moeref {
namespace {

using testing::of;
using testing::usual;
using testing::with_kernel;

/// What a value of an option makes of the numerics.
using Holds = std::function<bool(const Numerics&)>;

std::map<std::string, Holds> judged_values() {
  std::map<std::string, Holds> all;
  const auto atomic = [](const Numerics& n) {
    return n.combine.form == CombineForm::atomic_add && n.router_weight == WeightPoint::gemm2;
  };
  const auto unfused = [](const Numerics& n) {
    return n.combine.form == CombineForm::weighted_fma && n.router_weight == WeightPoint::combine;
  };
  for (const std::string backend :
       {"flashinfer_cutlass_fp8", "flashinfer_cutlass_nvfp4", "flashinfer_cutlass_mxfp8",
        "flashinfer_cutlass_bf16", "flashinfer_cutedsl_v2"}) {
    all[backend + " finalize=fused"] = atomic;
    all[backend + " finalize=unfused"] = unfused;
  }
  for (const std::string math : {"precise", "fast"}) {
    all["flashinfer_cutlass_fp8 input_math=" + math] = {[math](const Numerics& n) {
      return n.input.options == std::vector<std::string>{"math=" + math};
    }};
  }
  all["flashinfer_cutlass_fp8_block gemm=deepgemm"] = {
      [](const Numerics& n) { return !n.gemm1.mainloop.flushes && !n.gemm2.mainloop.flushes; }};
  all["flashinfer_cutlass_fp8_block gemm=builtin"] = {
      [](const Numerics& n) { return n.gemm1.mainloop.flushes && n.gemm2.mainloop.flushes; }};
  for (const std::string backend :
       {"flashinfer_trtllm_fp8", "flashinfer_trtllm_fp8_block", "flashinfer_trtllm_mxfp8",
        "flashinfer_trtllm_nvfp4", "flashinfer_trtllm_mxfp4", "flashinfer_trtllm_mxfp4_dsv4",
        "flashinfer_trtllm_bf16"}) {
    all[backend + " router_weights=bf16"] = {
        [](const Numerics& n) { return n.weights == Format::bf16; }};
    all[backend + " router_weights=f32"] = {
        [](const Numerics& n) { return n.weights == Format::f32; }};
  }
  for (const std::string backend : {"flashinfer_trtllm_mxfp4", "flashinfer_trtllm_mxfp4_dsv4"}) {
    all[backend + " activations=mxfp8"] = {[](const Numerics& n) {
      return n.input.quantizer == "flashinfer_mxfp8" &&
             n.intermediate.quantizer == n.input.quantizer;
    }};
    all[backend + " activations=bf16"] = {[](const Numerics& n) {
      return !n.input && !n.intermediate && n.activation.output == Format::bf16;
    }};
  }
  for (const std::string backend : {"flashinfer_sm90_mxfp4", "flashinfer_sm90_mxfp4_dsv4"}) {
    // K = 1024, which both divide: the same bits.
    for (const std::string tile : {"128", "256"}) {
      all[backend + " tile_k=" + tile] = {
          [](const Numerics& n) { return n.gemm1.mainloop.chain == 32; }};
    }
  }
  for (const std::string backend : {"deepgemm_fp8", "deepgemm_fp8_ue8m0", "deepgemm_fp4"}) {
    all[backend + " layout=masked"] = {[](const Numerics& n) { return n.activation.rounds_silu; }};
    all[backend + " layout=contiguous"] = {[](const Numerics& n) {
      return !n.activation.rounds_silu && n.intermediate.quantizer == "sglang_fp8_group";
    }};
    all[backend + " combine=post_reorder"] = {[](const Numerics& n) {
      return n.combine.form == CombineForm::running && n.weights == Format::bf16;
    }};
    all[backend + " combine=deepep"] = {[](const Numerics& n) {
      return n.combine.form == CombineForm::weighted_fma && n.weights == Format::f32;
    }};
  }
  for (const std::string backend :
       {"aiter_fp8_tensor", "aiter_fp8_channel", "aiter_fp8_block", "aiter_mxfp4", "aiter_a16w4"}) {
    all[backend + " doweight_stage1=false"] = {
        [](const Numerics& n) { return n.router_weight == WeightPoint::combine; }};
    // The open reference multiplies the dot product, then adds the bias.
    all[backend + " doweight_stage1=true"] = {[](const Numerics& n) {
      return n.router_weight == WeightPoint::input && n.combine.form == CombineForm::sum;
    }};
  }
  return all;
}

/// The options of SGLang's Triton path, judged below.
bool is_triton(const Backend& backend) {
  return backend.family == "Triton" && !backend.kernel_options.empty();
}

TEST(KernelOptions, MakeWhatTheirSummariesSay) {
  std::map<std::string, Holds> expected = judged_values();
  for (const Backend* backend : all_backends()) {
    if (is_triton(*backend)) continue;
    for (const OptionInfo& option : backend->kernel_options) {
      ASSERT_TRUE(option.is_choice()) << option.name;
      for (const std::string_view value : option.values) {
        const std::string text = std::string(option.name) + "=" + std::string(value);
        const std::string key = std::string(backend->name) + " " + text;
        ASSERT_TRUE(expected.contains(key)) << key << " is not judged";
        EXPECT_TRUE(expected.at(key)(of(backend->name, {text}))) << key;
        expected.erase(key);
      }
    }
  }
  EXPECT_TRUE(expected.empty()) << expected.begin()->first << " is no option";
}

TEST(KernelOptions, AreRefusedWhereTheKernelHasNone) {
  for (const Backend* backend : all_backends()) {
    const std::string message =
        error_of([&] { parse_kernel_options(*backend, std::vector<std::string>{"warp=9"}); });
    EXPECT_NE(message.find(backend->name), std::string::npos) << message;
    EXPECT_NE(message.find("--kernel"), std::string::npos) << message;
    EXPECT_NE(message.find("warp"), std::string::npos) << message;
    for (const OptionInfo& option : backend->kernel_options) {
      EXPECT_FALSE(option.summary.empty()) << option.name;
      const std::string other =
          error_of([&] { of(backend->name, {std::string(option.name) + "=frobnicate"}); });
      EXPECT_NE(other, "no error") << backend->name << " " << option.name;
      EXPECT_NE(other.find("frobnicate"), std::string::npos) << other;
    }
  }
}

TEST(Replay, IsRefusedForActivationsThatWereNotMeasured) {
  for (const Backend* backend : all_backends()) {
    if (backend->replay.evidence == ReplayEvidence::none) continue;
    NumericsRequest request = usual(*backend);
    for (const ActivationForm form :
         {ActivationForm::geglu_erf, ActivationForm::geglu_tanh, ActivationForm::silu,
          ActivationForm::gelu_erf, ActivationForm::gelu_tanh}) {
      request.activation.form = form;
      request.level = NumericsLevel::replay;
      const std::string message = error_of([&] { numerics_for(*backend, request); });
      EXPECT_EQ(message.find(std::string(backend->name) + ": cannot be replayed: the kernel of"),
                0u)
          << message;
      EXPECT_NE(message.find("take --numerics backend"), std::string::npos) << message;
      request.level = NumericsLevel::backend;
      EXPECT_EQ(error_of([&] { numerics_for(*backend, request); }), "no error");
    }
  }
}

TEST(Numerics, AreRefusedForF16Weights) {
  const Backend& backend = find_backend("triton_bf16");
  NumericsRequest request = usual(backend);
  for (const NumericsLevel level : {NumericsLevel::backend, NumericsLevel::replay}) {
    request.level = level;
    request.shape.weight_format = "bf16";
    EXPECT_EQ(error_of([&] { numerics_for(backend, request); }), "no error");
    request.shape.weight_format = "f16";
    EXPECT_NE(error_of([&] {
                numerics_for(backend, request);
              }).find("take bf16 weights or --numerics reference"),
              std::string::npos);
  }
}

TEST(Numerics, OfMarlinAreRefusedForF16Activations) {
  for (const std::string_view name :
       {"marlin_mxfp4", "marlin_nvfp4", "marlin_fp8", "marlin_mxfp8"}) {
    const Backend& backend = find_backend(name);
    NumericsRequest request = usual(backend);
    EXPECT_EQ(error_of([&] { numerics_for(backend, request); }), "no error");
    const std::vector<std::string> half{"params=f16"};
    request.options = parse_options(backend, half);
    EXPECT_NE(error_of([&] { numerics_for(backend, request); }).find("take params=bf16"),
              std::string::npos);
  }
}

TEST(KernelOptions, RefuseAFusedFinalizeOfMoreThanTwoSlotsInReplay) {
  for (const std::string_view name : {"flashinfer_cutlass_fp8", "flashinfer_cutlass_bf16"}) {
    const Backend& backend = find_backend(name);
    NumericsRequest request = with_kernel(backend, {"finalize=fused"});
    for (const std::int64_t top_k : {1, 2, 3, 4}) {
      request.top_k = top_k;
      request.level = NumericsLevel::replay;
      const std::string message = error_of([&] { numerics_for(backend, request); });
      if (top_k <= 2) {
        EXPECT_EQ(message, "no error");
      } else {
        EXPECT_NE(message.find("finalize=unfused or --numerics backend"), std::string::npos)
            << message;
      }
      request.level = NumericsLevel::backend;
      EXPECT_EQ(error_of([&] { numerics_for(backend, request); }), "no error");
    }
  }
}

TEST(KernelOptions, RefuseATileThatDoesNotDivide) {
  for (const auto& [name, size] :
       {std::pair{"flashinfer_sm90_mxfp4", 2880}, std::pair{"flashinfer_sm90_mxfp4_dsv4", 384}}) {
    const Backend& backend = find_backend(name);
    for (const bool hidden : {false, true}) {
      NumericsRequest request = with_kernel(backend, {"tile_k=256"});
      (hidden ? request.shape.hidden : request.shape.stride) = size;
      for (const NumericsLevel level : {NumericsLevel::backend, NumericsLevel::replay}) {
        request.level = level;
        const std::string message = error_of([&] { numerics_for(backend, request); });
        EXPECT_NE(message.find("tile_k=256 does not divide K = "), std::string::npos) << message;
        EXPECT_NE(message.find("take a tile of 128"), std::string::npos) << message;
      }
      request.kernel = parse_kernel_options(backend, std::vector<std::string>{"tile_k=128"});
      EXPECT_EQ(error_of([&] { numerics_for(backend, request); }), "no error");
    }
  }
}

}  // namespace
}  // namespace moeref
