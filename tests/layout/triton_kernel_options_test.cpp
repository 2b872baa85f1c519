#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "layout/backend.hpp"
#include "tests/support/error_of.hpp"

// What the kernel options of SGLang's Triton path make of the numerics: matrix units, promotions,
// quantizers, activations and combines, as they were measured on an H200.

namespace moeref {
namespace {

using Texts = std::vector<std::string>;

struct Launch {
  std::int64_t tokens = 64;
  std::int64_t top_k = 4;
  float scaling = 1.0f;
  bool static_scales = false;
  Activation activation = {};
  NumericsLevel level = NumericsLevel::replay;
};

Numerics of(const std::string& backend, const Texts& kernel, const Launch& launch = {}) {
  const Backend& found = find_backend(backend);
  NumericsRequest request;
  request.shape.hidden = request.shape.intermediate = request.shape.stride = 1024;
  request.shape.experts = request.shape.total_experts = 8;
  request.options = parse_options(found, {});
  request.kernel = parse_kernel_options(found, kernel);
  request.tokens = launch.tokens;
  request.top_k = launch.top_k;
  request.routed_scaling = launch.scaling;
  request.static_scales = launch.static_scales;
  request.activation = launch.activation;
  request.level = launch.level;
  return numerics_for(found, request);
}

std::string refusal(const std::string& backend, const Texts& kernel, const Launch& launch = {}) {
  return error_of([&] { of(backend, kernel, launch); });
}

const Texts kFp8{"triton_fp8_tensor", "triton_fp8_channel", "triton_fp8_block"};
const Texts kAll{"triton_fp8_tensor", "triton_fp8_channel", "triton_fp8_block", "triton_bf16"};

std::string quantizer_of(const Numerics& numerics) {
  std::string text(numerics.input.quantizer);
  for (const std::string& option : numerics.input.options) text += " " + option;
  EXPECT_EQ(numerics.input.quantizer, numerics.intermediate.quantizer);
  EXPECT_EQ(numerics.input.options, numerics.intermediate.options);
  return text;
}

TEST(TritonKernelOptions, AreThose) {
  const std::set<std::string_view> expected{
      "path",    "BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "num_warps",
      "swap_ab", "group_quant",  "token_kernel", "combine",      "combine_order"};
  for (const std::string& backend : kAll) {
    std::set<std::string_view> found;
    for (const OptionInfo& option : find_backend(backend).kernel_options) found.insert(option.name);
    EXPECT_EQ(found, expected) << backend;
  }
}

TEST(TritonPath, ChoosesTheQuantizers) {
  const Launch calibrated{.static_scales = true};
  const auto with = [&](const std::string& backend, const std::string& path,
                        const Launch& launch = {}) {
    return quantizer_of(of(backend, {"path=" + path}, launch));
  };
  EXPECT_EQ(with("triton_fp8_tensor", "sgl90", calibrated), "sglang_fp8_static math=fast");
  EXPECT_EQ(with("triton_fp8_tensor", "sgl100", calibrated), "sglang_fp8_static math=precise");
  EXPECT_EQ(with("triton_fp8_tensor", "triton", calibrated), "sglang_fp8_static math=triton");
  EXPECT_EQ(with("triton_fp8_tensor", "sgl90"), "sglang_fp8_tensor math=fast");
  EXPECT_EQ(with("triton_fp8_tensor", "sgl100"), "sglang_fp8_tensor math=precise");
  EXPECT_EQ(with("triton_fp8_channel", "sgl90"), "sglang_fp8_token math=fast kernel=small_batch");
  EXPECT_EQ(with("triton_fp8_channel", "sgl100"),
            "sglang_fp8_token math=precise kernel=small_batch");
  EXPECT_EQ(with("triton_fp8_block", "sgl90"), "sglang_fp8_group version=v0 math=fast");
  EXPECT_EQ(with("triton_fp8_block", "sgl100"), "sglang_fp8_group version=v1 math=precise");
  EXPECT_EQ(with("triton_fp8_block", "triton"), "sglang_triton_fp8_group form=mulinv");
  EXPECT_EQ(with("triton_bf16", "sgl90"), "");
}

TEST(TritonPath, ChoosesTheActivationAndTheFlushOfTheReduce) {
  for (const std::string& backend : kAll) {
    const auto with = [&](const std::string& path) { return of(backend, {"path=" + path}); };
    EXPECT_EQ(with("sgl90").activation.kernel, ActivationKernel::sgl_fast);
    EXPECT_EQ(with("sgl100").activation.kernel, ActivationKernel::sgl_precise);
    EXPECT_EQ(with("triton").activation.kernel, ActivationKernel::triton);
    EXPECT_FALSE(with("sgl90").activation.rounds_silu);
    EXPECT_FALSE(with("sgl100").activation.rounds_silu);
    EXPECT_TRUE(with("triton").activation.rounds_silu);
    // 64 tokens: moe_sum_reduce.
    EXPECT_TRUE(with("sgl90").combine.flushes);
    EXPECT_FALSE(with("sgl100").combine.flushes);
    EXPECT_FALSE(with("triton").combine.flushes);
  }
}

Activation swiglu(float alpha, float beta, float limit) {
  Activation activation;
  activation.alpha = alpha;
  activation.beta = beta;
  activation.limit = limit;
  return activation;
}

TEST(TritonActivations, AreThoseThatWereMeasured) {
  const auto with = [](const Activation& activation) {
    return of("triton_bf16", {}, {.activation = activation}).activation.kernel;
  };
  Activation activation;
  activation.form = ActivationForm::relu2;
  EXPECT_EQ(with(activation), ActivationKernel::plain);
  activation.form = ActivationForm::silu_clamp_after;
  activation.limit = 7.0f;
  EXPECT_EQ(with(activation), ActivationKernel::compiled);
  activation = swiglu(1.702f, 1.0f, 7.0f);
  EXPECT_EQ(with(activation), ActivationKernel::compiled);
  activation = swiglu(1.0f, 0.0f, 10.0f);  // the EP filter's, not measured
  EXPECT_NE(refusal("triton_bf16", {}, {.activation = activation})
                .find("cannot be replayed: the kernel of this activation"),
            std::string::npos);
  EXPECT_EQ(refusal("triton_bf16", {}, {.activation = activation, .level = NumericsLevel::backend}),
            "no error");
  activation.form = ActivationForm::geglu_erf;
  EXPECT_NE(refusal("triton_bf16", {}, {.activation = activation}), "no error");
}

/// The unit of FP8 operands: the 13-bit one of wgmma, or f16 products of mma.sync.
bool is_wgmma(const Numerics& numerics) {
  const FusedDot& unit = numerics.gemm1.mainloop.unit;
  EXPECT_EQ(unit.terms, numerics.gemm2.mainloop.unit.terms);
  if (unit.output == StepOutput::e8m13_toward_zero) {
    EXPECT_EQ(unit.terms, 32);
    EXPECT_EQ(unit.fraction_bits, 13);
    EXPECT_EQ(unit.order, TermOrder::natural);
    return true;
  }
  EXPECT_EQ(unit.terms, 16);
  EXPECT_EQ(unit.fraction_bits, 25);
  EXPECT_EQ(unit.order, TermOrder::kw4);
  EXPECT_EQ(unit.operand, Format::f16);
  return false;
}

Texts tile(int m, int n, int k, int warps, const std::string& swap = "auto") {
  return {"BLOCK_SIZE_M=" + std::to_string(m), "BLOCK_SIZE_N=" + std::to_string(n),
          "BLOCK_SIZE_K=" + std::to_string(k), "num_warps=" + std::to_string(warps),
          "swap_ab=" + swap};
}

TEST(TritonTiles, ChooseTheMatrixUnitOfFp8) {
  for (const std::string& backend : kFp8) {
    const auto wgmma = [&](int m, int n, int k, int warps, const std::string& swap = "auto") {
      return is_wgmma(of(backend, tile(m, n, k, warps, swap)));
    };
    EXPECT_TRUE(wgmma(64, 128, 128, 4)) << backend;
    EXPECT_TRUE(wgmma(128, 64, 64, 8)) << backend;
    EXPECT_TRUE(wgmma(16, 64, 128, 4)) << backend << ": swapped, M' = BLOCK_N";
    EXPECT_TRUE(wgmma(32, 128, 128, 4)) << backend;
    EXPECT_FALSE(wgmma(16, 128, 128, 4, "false")) << backend;
    EXPECT_FALSE(wgmma(32, 32, 128, 4)) << backend << ": BLOCK_N < 64 is not swapped";
    EXPECT_FALSE(wgmma(64, 128, 128, 2)) << backend << ": no whole warp group";
    EXPECT_FALSE(wgmma(64, 32, 128, 4, "true")) << backend << ": M' = 32";
    EXPECT_TRUE(wgmma(64, 32, 128, 4)) << backend;
  }
}

TEST(TritonTiles, ChangeNoBitOfBf16) {
  for (const Texts& texts : {tile(16, 32, 64, 4), tile(64, 64, 32, 4), tile(128, 256, 64, 8),
                             tile(16, 16, 16, 1), tile(64, 64, 32, 4, "true")}) {
    const Mainloop loop = of("triton_bf16", texts).gemm1.mainloop;
    EXPECT_EQ(loop.unit.terms, 16);
    EXPECT_EQ(loop.unit.fraction_bits, 25);
    EXPECT_EQ(loop.unit.order, TermOrder::natural);
    EXPECT_EQ(loop.chain, 0);
    EXPECT_EQ(loop.promotion, Promotion::none);
  }
}

TEST(TritonTiles, ChooseThePromotionOfTheBlockForm) {
  const auto loop = [](int m, int n, int k, const std::string& swap = "auto") {
    return of("triton_fp8_block", tile(m, n, k, 4, swap)).gemm1.mainloop;
  };
  EXPECT_EQ(loop(64, 128, 128).promotion, Promotion::fma_product);
  EXPECT_EQ(loop(16, 64, 64).promotion, Promotion::fma_product);
  EXPECT_EQ(loop(64, 256, 128).promotion, Promotion::fma_row);
  EXPECT_EQ(loop(16, 256, 128).promotion, Promotion::fma_column);
  EXPECT_EQ(loop(16, 256, 128, "false").promotion, Promotion::fma_row);
  EXPECT_EQ(loop(64, 256, 128, "true").promotion, Promotion::fma_column);
  // The chain is one BLOCK_K, two of 64 for a scale.
  EXPECT_EQ(loop(64, 128, 128).chain, 128);
  EXPECT_EQ(loop(64, 128, 64).chain, 64);
  EXPECT_FALSE(loop(64, 128, 64).flushes);
  for (const std::string backend : {"triton_fp8_tensor", "triton_fp8_channel"}) {
    const GemmNumerics gemm = of(backend, tile(64, 256, 64, 4)).gemm1;
    EXPECT_EQ(gemm.mainloop.chain, 0) << backend;
    EXPECT_EQ(gemm.mainloop.promotion, Promotion::none) << backend;
    EXPECT_EQ(gemm.factor, SumFactor::row_times_column) << backend;
  }
}

TEST(TritonTiles, OfSizeZeroAreSglangsDefaults) {
  // At most as many tokens as experts, and more.
  for (const std::int64_t tokens : {8, 9}) {
    const Launch launch{.tokens = tokens};
    const Mainloop block = of("triton_fp8_block", {}, launch).gemm1.mainloop;
    EXPECT_EQ(block.chain, 128);
    EXPECT_EQ(block.promotion, Promotion::fma_product);
    for (const std::string& backend : kFp8) EXPECT_TRUE(is_wgmma(of(backend, {}, launch)));
  }
}

TEST(TritonTiles, AreRefusedIfNoKernelHasThem) {
  for (const std::string& backend : kAll) {
    for (const std::string text : {"BLOCK_SIZE_M=8", "BLOCK_SIZE_M=48", "BLOCK_SIZE_N=100",
                                   "BLOCK_SIZE_K=24", "num_warps=3", "BLOCK_SIZE_N=-64"}) {
      const std::string message = refusal(backend, {text});
      EXPECT_EQ(message.find(backend), 0u) << message;
      EXPECT_NE(message.find(text.substr(0, text.find('='))), std::string::npos) << message;
    }
  }
  EXPECT_NE(refusal("triton_fp8_block", {"BLOCK_SIZE_K=256"})
                .find("does not divide the 128 columns of a scale"),
            std::string::npos);
  EXPECT_EQ(refusal("triton_fp8_tensor", {"BLOCK_SIZE_K=256"}), "no error");
}

TEST(TritonQuantizers, AreChosenByReleaseAndKernel) {
  const auto group = [](const Texts& texts) { return quantizer_of(of("triton_fp8_block", texts)); };
  EXPECT_EQ(group({"group_quant=mul"}), "sglang_fp8_group version=v1 math=fast");
  EXPECT_EQ(group({"group_quant=div"}), "sglang_fp8_group version=v0 math=fast");
  EXPECT_EQ(group({"path=sgl100", "group_quant=div"}), "sglang_fp8_group version=v0 math=precise");
  EXPECT_EQ(group({"path=sgl100", "group_quant=mul"}), "sglang_fp8_group version=v1 math=precise");
  const auto token = [](const Texts& texts) {
    return quantizer_of(of("triton_fp8_channel", texts));
  };
  EXPECT_EQ(token({"token_kernel=warp"}), "sglang_fp8_token math=fast kernel=warp");
}

TEST(TritonCombines, FollowSlotsTokensAndScaling) {
  const auto combine = [](const Texts& texts, const Launch& launch) {
    return of("triton_bf16", texts, launch).combine;
  };
  const auto is_plain = [](const CombineNumerics& c) {
    return c.form == CombineForm::sum && !c.starts_at_zero && c.scaling == ScalingPoint::in_sum;
  };
  const auto is_reduce = [](const CombineNumerics& c) {
    return c.form == CombineForm::sum && c.starts_at_zero && c.scaling == ScalingPoint::in_sum;
  };
  for (const std::int64_t tokens : {1, 32, 33, 257}) {
    for (const std::int64_t top_k : {1, 2}) {
      EXPECT_TRUE(is_plain(combine({}, {.tokens = tokens, .top_k = top_k})));  // direct, pair_add
      EXPECT_FALSE(combine({}, {.tokens = tokens, .top_k = top_k}).flushes);
    }
    const bool few = tokens <= 32;
    for (const std::int64_t top_k : {1, 2, 3, 7}) {
      const CombineNumerics scaled =
          combine({}, {.tokens = tokens, .top_k = top_k, .scaling = 2.5f});
      EXPECT_EQ(is_plain(scaled), few) << tokens << " " << top_k;
      EXPECT_EQ(is_reduce(scaled), !few) << tokens << " " << top_k;
    }
    for (const std::int64_t top_k : {8, 9, 16}) {
      const CombineNumerics many = combine({}, {.tokens = tokens, .top_k = top_k});
      EXPECT_EQ(many.form == CombineForm::folded_sum, few);
      EXPECT_EQ(is_reduce(many), !few);
      // b = 1, 0, 2 of 8 slots; 2, 1, 0, 3 of 9 to 16.
      EXPECT_EQ(many.fold_from, !few ? 0 : (top_k == 8 ? 2 : 3));
    }
  }
}

TEST(TritonCombines, CanBeNamed) {
  const Launch scaled{.tokens = 64, .top_k = 4, .scaling = 2.5f};
  const auto combine = [&](const Texts& texts, const Launch& launch) {
    return of("triton_bf16", texts, launch).combine;
  };
  EXPECT_FALSE(combine({"combine=compiled_sum"}, scaled).starts_at_zero);
  EXPECT_TRUE(combine({"combine=sum_reduce"}, {.tokens = 1}).starts_at_zero);
  EXPECT_EQ(combine({"combine=eager_sum"}, scaled).scaling, ScalingPoint::after_sum);
  EXPECT_EQ(combine({"combine=eager_sum"}, scaled).form, CombineForm::sum);
  EXPECT_EQ(combine({"combine=pair_add"}, {.top_k = 2}).form, CombineForm::sum);
  EXPECT_NE(refusal("triton_bf16", {"combine=pair_add"}, {.top_k = 3})
                .find("combine=pair_add adds up to 2 slots"),
            std::string::npos);
  EXPECT_NE(refusal("triton_bf16", {"combine=pair_add"}, {.top_k = 2, .scaling = 2.5f})
                .find("combine=pair_add"),
            std::string::npos);
  for (int order = 0; order <= 4; ++order) {
    const Texts texts{"combine=compiled_sum", "combine_order=" + std::to_string(order)};
    EXPECT_EQ(combine(texts, {.top_k = 16}).fold_from, order);
    if (order <= 3) {
      EXPECT_EQ(combine(texts, {.top_k = 8}).fold_from, order);
    } else {
      EXPECT_NE(refusal("triton_bf16", texts, {.top_k = 8}).find("combine_order=4 is above 3"),
                std::string::npos);
    }
  }
}

TEST(TritonNumerics, RefuseWhatWasNotMeasured) {
  for (const std::string& backend : kFp8) {
    const Backend& found = find_backend(backend);
    NumericsRequest request;
    request.shape.hidden = request.shape.intermediate = request.shape.stride = 1024;
    request.options = parse_options(found, Texts{"fnuz=on"});
    request.kernel = parse_kernel_options(found, {});
    request.tokens = request.top_k = 1;
    const std::string message = error_of([&] { numerics_for(found, request); });
    EXPECT_NE(message.find("fnuz=off"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace moeref
