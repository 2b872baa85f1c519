#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "cli/conform/ops.hpp"
#include "cli/conform/sha256.hpp"
#include "engine/gpu_activation.hpp"
#include "engine/kernel_rounding.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/gpu/functions.hpp"

// Approximate instructions and functions of NVIDIA GPUs: in: f32_bits (and f32_bits_b), out:
// f32_bits.

namespace moeref::conform {
namespace {

using Unary = float (*)(float);
using Binary = float (*)(float, float);

std::span<const std::byte> words(const GoldenCase& golden, std::string_view input) {
  const TensorView& view = golden.input(input);
  if (view.dtype != DType::u32) {
    fail(golden.subject(view.name), "is {}; U32 words are needed", name(view.dtype));
  }
  return view.bytes;
}

OpResult result_of(const GoldenCase& golden, const std::vector<std::uint32_t>& results) {
  OpResult result;
  result.outputs.emplace(
      "f32_bits",
      make_tensor<std::uint32_t>("f32_bits", DType::u32, golden.input("f32_bits").shape, results));
  return result;
}

template <Unary kFunction>
OpResult unary(const GoldenCase& golden) {
  const auto x = words(golden, "f32_bits");
  std::vector<std::uint32_t> results;
  for (std::size_t at = 0; at < x.size(); at += 4) {
    results.push_back(gpu::bits_of(kFunction(load<float>(x.data() + at))));
  }
  return result_of(golden, results);
}

template <Binary kFunction>
OpResult binary(const GoldenCase& golden) {
  const auto a = words(golden, "f32_bits");
  const auto b = words(golden, "f32_bits_b");
  if (a.size() != b.size()) {
    fail(golden.subject("in.f32_bits_b"), "has {} bytes, in.f32_bits {}; both must be of one size",
         b.size(), a.size());
  }
  std::vector<std::uint32_t> results;
  for (std::size_t at = 0; at < a.size(); at += 4) {
    results.push_back(
        gpu::bits_of(kFunction(load<float>(a.data() + at), load<float>(b.data() + at))));
  }
  return result_of(golden, results);
}

/// Whether the stored coefficients are the ones that moeref computes with.
template <std::size_t kRows>
Finding same_table(const GoldenCase& golden, const std::array<gpu::Quadratic, kRows>& table) {
  const auto column = [&](std::string_view name, DType dtype) -> const TensorView* {
    const TensorView* found = golden.file->find(name);
    const bool fits = found != nullptr && found->dtype == dtype &&
                      found->size() == static_cast<std::int64_t>(kRows);
    return fits ? found : nullptr;
  };
  const TensorView* c0 = column("table.c0", DType::u32);
  const TensorView* c1 = column("table.c1", DType::u16);
  const TensorView* c2 = column("table.c2", DType::u16);
  if (c0 == nullptr || c1 == nullptr || c2 == nullptr) {
    return statement("table", "coefficients", false,
                     fmt::format("needs table.c0 U32, table.c1 and table.c2 U16 of {}", kRows));
  }
  for (std::size_t row = 0; row < kRows; ++row) {
    const auto i = static_cast<std::int64_t>(row);
    if (c0->at<std::uint32_t>(i) != table[row].c0 || c1->at<std::uint16_t>(i) != table[row].c1 ||
        c2->at<std::uint16_t>(i) != table[row].c2) {
      return statement("table", "coefficients", false, fmt::format("row {} differs", row));
    }
  }
  return statement("table", "coefficients", true, "equal");
}

/// The SHA-256 of the results for the 2^23 inputs from `first` on, as little-endian words.
Finding same_hash(const GoldenCase& golden, const std::string& param, Unary function,
                  std::uint32_t first) {
  constexpr std::uint32_t kCount = 1u << 23;
  std::vector<std::uint8_t> bytes(std::size_t{4} * kCount);
  for (std::uint32_t i = 0; i < kCount; ++i) {
    const std::uint32_t result = gpu::bits_of(function(gpu::from_bits(first + i)));
    for (unsigned byte = 0; byte < 4; ++byte) {
      bytes[std::size_t{4} * i + byte] = static_cast<std::uint8_t>(result >> (8 * byte));
    }
  }
  const std::string stored = golden.text_param(param).value_or("");
  Sha256 hash;
  hash.update(std::as_bytes(std::span(bytes)));
  const std::string computed = hash.hex_digest();
  return statement("params." + param, "sha256", stored == computed, computed);
}

/// The coefficients of rcp.approx.ftz and every result of [1, 2).
OpResult reciprocal_table(const GoldenCase& golden) {
  OpResult result;
  result.statements = {same_table(golden, gpu::kReciprocal),
                       same_hash(golden, "sha256_all_results_exponent127_le_u32",
                                 gpu::rcp_approx_ftz, 0x3F80'0000u)};
  return result;
}

/// The coefficients of ex2.approx.ftz and every result of [1, 2) and (-1, -0.5].
OpResult exp2_table(const GoldenCase& golden) {
  OpResult result;
  result.statements = {
      same_table(golden, gpu::kExp2),
      same_hash(golden, "sha256_results_1_to_2_le_u32", gpu::ex2_approx_ftz, 0x3F80'0000u),
      same_hash(golden, "sha256_results_minus1_to_minus0.5_le_u32", gpu::ex2_approx_ftz,
                0xBF00'0000u)};
  return result;
}

struct ActivationName {
  std::string_view name;
  gpu::MoeActivation kind;
};
constexpr std::array kActivations{
    ActivationName{"swiglu", gpu::MoeActivation::swiglu},
    ActivationName{"swiglubias", gpu::MoeActivation::swiglu_bias},
    ActivationName{"step", gpu::MoeActivation::swiglu_step},
    ActivationName{"relu2", gpu::MoeActivation::relu2},
};

/// params.alpha_beta_limit: three numbers, or null for the kernel's defaults.
gpu::ActivationParameters activation_parameters(const GoldenCase& golden, gpu::MoeActivation kind) {
  gpu::ActivationParameters parameters;
  parameters.limit =
      kind == gpu::MoeActivation::swiglu_step ? 7.0f : std::numeric_limits<float>::infinity();
  const auto given = golden.params.find("alpha_beta_limit");
  if (given == golden.params.end() || given->is_null()) return parameters;
  const bool numbers = given->is_array() && given->size() == 3 &&
                       std::all_of(given->begin(), given->end(),
                                   [](const nlohmann::json& entry) { return entry.is_number(); });
  if (!numbers) {
    fail(golden.subject("params.alpha_beta_limit"), "must be three numbers or null");
  }
  return {(*given)[0].get<float>(), (*given)[1].get<float>(), (*given)[2].get<float>()};
}

/// params: kind, alpha_beta_limit, out. in: gate, up. out: act.
OpResult moe_activation(const GoldenCase& golden) {
  const std::string name = golden.text_param("kind").value_or("");
  const auto found = std::find_if(kActivations.begin(), kActivations.end(),
                                  [&](const ActivationName& entry) { return entry.name == name; });
  if (found == kActivations.end()) {
    fail(golden.subject("params.kind"), "is '{}'; known: swiglu, swiglubias, step, relu2", name);
  }
  const std::optional<Format> type = parse_format(golden.text_param("out").value_or("bf16"));
  const bool known = type && (*type == Format::bf16 || *type == Format::f16 ||
                              *type == Format::f32 || *type == Format::e4m3);
  if (!known) fail(golden.subject("params.out"), "must be bf16, f16, f32 or e4m3");
  const gpu::ActivationParameters parameters = activation_parameters(golden, found->kind);
  const TensorView& gate = golden.input("gate");
  const std::vector<double> gates = to_doubles(gate);
  const std::vector<double> ups =
      golden.find_input("up") != nullptr ? to_doubles(golden.input("up")) : gates;
  if (ups.size() != gates.size()) {
    fail(golden.subject("in.up"), "has {} numbers, in.gate {}", ups.size(), gates.size());
  }
  const EncodePolicy policy =
      *type == Format::e4m3 ? EncodePolicy::cuda_satfinite : EncodePolicy::cuda_nosat;
  Tensor act{"act", *type == Format::e4m3 ? DType::u8 : stored_dtype(*type), gate.shape, {}};
  for (std::size_t i = 0; i < gates.size(); ++i) {
    const float value = gpu::flashinfer_moe_activation(found->kind, static_cast<float>(gates[i]),
                                                       static_cast<float>(ups[i]), parameters);
    const std::uint32_t code = encode(*type, value, policy);
    for (int byte = 0; byte < info(*type).bits / 8; ++byte) {
      act.bytes.push_back(static_cast<std::byte>(code >> (8 * byte)));
    }
  }
  OpResult result;
  result.outputs.emplace("act", std::move(act));
  return result;
}

/// One of the activations of SGLang's fused MoE: the f32 value and what the kernel stores.
struct SglangActivation {
  std::string_view form;
  float (*value)(float gate, float up, const gpu::ActivationParameters& parameters);
  bool rounds_silu = false;  ///< the kernel rounds silu to bf16 before it multiplies
};

constexpr std::array kSglangActivations{
    SglangActivation{"silu_sgl90",
                     [](float g, float u, const gpu::ActivationParameters&) {
                       return gpu::silu_and_mul_fast(g, u);
                     }},
    SglangActivation{"silu_sgl100",
                     [](float g, float u, const gpu::ActivationParameters&) {
                       return gpu::silu_and_mul_precise(g, u);
                     }},
    SglangActivation{"silu_triton",
                     [](float g, float u, const gpu::ActivationParameters&) {
                       return gpu::mul(gpu::silu_triton(g), u);
                     },
                     true},
    SglangActivation{"silu_clamp_after",
                     [](float g, float u, const gpu::ActivationParameters& parameters) {
                       return gpu::silu_clamp_after_compiled(g, u, parameters.limit);
                     }},
    SglangActivation{"gptoss", gpu::gptoss_compiled},
};

struct SglangCase {
  const SglangActivation* activation;
  gpu::ActivationParameters parameters;
  std::vector<double> gates;
  std::vector<double> ups;
};

/// params: form, alpha, limit. in: gate, up.
SglangCase sglang_case(const GoldenCase& golden) {
  const std::string form = golden.text_param("form").value_or("");
  const auto found =
      std::find_if(kSglangActivations.begin(), kSglangActivations.end(),
                   [&](const SglangActivation& entry) { return entry.form == form; });
  if (found == kSglangActivations.end()) {
    fail(golden.subject("params.form"),
         "is '{}'; known: silu_sgl90, silu_sgl100, silu_triton, silu_clamp_after, gptoss", form);
  }
  SglangCase result{&*found, {}, to_doubles(golden.input("gate")), to_doubles(golden.input("up"))};
  if (result.gates.size() != result.ups.size()) {
    fail(golden.subject("in.up"), "has {} numbers, in.gate {}", result.ups.size(),
         result.gates.size());
  }
  if (form == "gptoss") {
    result.parameters.alpha = static_cast<float>(golden.number_param("alpha"));
    result.parameters.beta = 1.0f;
  }
  if (form == "gptoss" || form == "silu_clamp_after") {
    result.parameters.limit = static_cast<float>(golden.number_param("limit"));
  }
  return result;
}

/// The f32 values, and the hash over all 65536 bf16 gates with the one up value of the case.
OpResult activation_table(const GoldenCase& golden) {
  const SglangCase given = sglang_case(golden);
  std::vector<std::uint32_t> values;
  for (std::size_t i = 0; i < given.gates.size(); ++i) {
    values.push_back(gpu::bits_of(given.activation->value(
        static_cast<float>(given.gates[i]), static_cast<float>(given.ups[i]), given.parameters)));
  }
  OpResult result;
  result.outputs.emplace(
      "y", make_tensor<std::uint32_t>("y", DType::f32, golden.input("gate").shape, values));
  const std::optional<std::string> stored = golden.text_param("sha256_all_65536");
  const bool one_up = std::adjacent_find(given.ups.begin(), given.ups.end(),
                                         std::not_equal_to<>()) == given.ups.end();
  if (!stored || !one_up || given.ups.empty()) return result;
  std::vector<std::uint32_t> all;
  for (std::uint32_t gate = 0; gate < 65536; ++gate) {
    all.push_back(gpu::bits_of(given.activation->value(
        gpu::from_bits(gate << 16), static_cast<float>(given.ups.front()), given.parameters)));
  }
  Sha256 hash;
  hash.update(std::as_bytes(std::span(all)));
  const std::string computed = hash.hex_digest();
  result.statements.push_back(
      statement("params.sha256_all_65536", "sha256", *stored == computed, computed));
  return result;
}

/// What the kernel stores, in bf16.
OpResult activation_rows(const GoldenCase& golden) {
  const SglangCase given = sglang_case(golden);
  std::vector<std::uint16_t> codes;
  for (std::size_t i = 0; i < given.gates.size(); ++i) {
    const auto gate = static_cast<float>(given.gates[i]);
    const auto up = static_cast<float>(given.ups[i]);
    const float value = given.activation->rounds_silu
                            ? gpu::mul(kernel_rounded(Format::bf16, gpu::silu_triton(gate)), up)
                            : given.activation->value(gate, up, given.parameters);
    codes.push_back(
        static_cast<std::uint16_t>(gpu::bits_of(kernel_rounded(Format::bf16, value)) >> 16));
  }
  OpResult result;
  result.outputs.emplace(
      "y", make_tensor<std::uint16_t>("y", DType::bf16, golden.input("gate").shape, codes));
  return result;
}

constexpr std::array kOperations{
    NamedOperation{"bf16_activation_table", activation_table},
    NamedOperation{"bf16_activation", activation_rows},
    NamedOperation{"flashinfer_moe_activation", moe_activation},
    NamedOperation{"rcp_approx_ftz_f32", unary<gpu::rcp_approx_ftz>},
    NamedOperation{"rcp_approx_f32", unary<gpu::rcp_approx>},
    NamedOperation{"ex2_approx_ftz_f32", unary<gpu::ex2_approx_ftz>},
    NamedOperation{"ex2_approx_f32", unary<gpu::ex2_approx>},
    NamedOperation{"exp2f_precise_f32", unary<gpu::ex2_approx>},
    NamedOperation{"div_approx_ftz_f32", binary<gpu::div_approx_ftz>},
    NamedOperation{"div_full_f32", binary<gpu::div_full>},
    NamedOperation{"expf_precise_f32", unary<gpu::expf_precise>},
    NamedOperation{"expf_fast_f32", unary<gpu::expf_intrinsic>},
    NamedOperation{"expf_fastmath_f32", unary<gpu::expf_fast>},
    NamedOperation{"sigmoid_fastmath_f32", unary<gpu::sigmoid_fast>},
    NamedOperation{"silu_fastmath_f32", unary<gpu::silu_fast>},
    NamedOperation{"sigmoid_precise_f32", unary<gpu::sigmoid_precise>},
    NamedOperation{"silu_precise_f32", unary<gpu::silu_precise>},
    NamedOperation{"silu_expf_intrinsic_precise_f32", unary<gpu::silu_intrinsic>},
    NamedOperation{"table_rcp_approx_ftz_f32", reciprocal_table},
    NamedOperation{"table_ex2_approx_ftz_f32", exp2_table},
};

}  // namespace

std::span<const NamedOperation> gpu_operations() { return kOperations; }

}  // namespace moeref::conform
