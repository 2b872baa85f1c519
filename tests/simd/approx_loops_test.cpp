// The approximate units of a GPU in loops, against their definitions, on every instruction set; and
// the activations that are built on them.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "engine/activation_rows.hpp"
#include "engine/kernel_rounding.hpp"
#include "quant/gpu/approx.hpp"
#include "quant/gpu/approx_tables.hpp"
#include "simd/kernels.hpp"
#include "tests/support/isas.hpp"

namespace moeref {
namespace {

struct Coefficients {
  std::vector<std::int32_t> reciprocal[3];
  std::vector<std::int32_t> exp2[3];
  std::vector<std::int32_t> squares{gpu::kTruncatedSquares.begin(), gpu::kTruncatedSquares.end()};
  simd::ApproxTables tables{};

  Coefficients() {
    const auto fill = [](const auto& from, std::vector<std::int32_t>* to) {
      for (const gpu::Quadratic& piece : from) {
        to[0].push_back(static_cast<std::int32_t>(piece.c0));
        to[1].push_back(piece.c1);
        to[2].push_back(piece.c2);
      }
    };
    fill(gpu::kReciprocal, reciprocal);
    fill(gpu::kExp2, exp2);
    for (int i = 0; i < 3; ++i) {
      tables.reciprocal[i] = reciprocal[i].data();
      tables.exp2[i] = exp2[i].data();
    }
    tables.squares = squares.data();
    tables.reciprocal_bias = static_cast<std::int32_t>(gpu::kReciprocalBias);
    tables.exp2_bias = static_cast<std::int32_t>(gpu::kExp2Bias);
  }
};

const simd::ApproxTables& tables() {
  static const Coefficients coefficients;
  return coefficients.tables;
}

class ApproxLoops : public ::testing::TestWithParam<std::string> {
 protected:
  const simd::ApproxKernels& loops() const {
    return *simd::find_kernels(GetParam().c_str())->approx;
  }
};

INSTANTIATE_TEST_SUITE_P(Isa, ApproxLoops, ::testing::ValuesIn(moeref::testing::isas()),
                         [](const auto& chosen) { return chosen.param; });

/// Every exponent and sign with the first, last and some mantissas of every piece; words at random.
std::vector<float> inputs() {
  std::vector<float> values;
  std::mt19937 random(7);
  for (std::uint32_t top = 0; top < 512; ++top) {
    for (std::uint32_t piece = 0; piece < 128; ++piece) {
      const std::uint32_t first = top << 23 | piece << 16;
      for (const std::uint32_t low : {0u, 1u, 0xFFFFu, 0x8000u}) {
        values.push_back(gpu::from_bits(first | low));
      }
      values.push_back(gpu::from_bits(first | (static_cast<std::uint32_t>(random()) & 0xFFFFu)));
    }
  }
  for (int i = 0; i < 300'000; ++i) {
    values.push_back(gpu::from_bits(static_cast<std::uint32_t>(random())));
  }
  return values;
}

void expect_bits(float expected, float actual, float x, const char* what) {
  ASSERT_EQ(gpu::bits_of(expected), gpu::bits_of(actual))
      << what << " of " << std::hex << gpu::bits_of(x);
}

TEST_P(ApproxLoops, UnitsHaveTheBitsOfTheirDefinitionsForEveryCount) {
  const std::vector<float> x = inputs();
  std::vector<float> out(x.size());
  loops().rcp(tables(), x.data(), x.size(), out.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    expect_bits(gpu::rcp_approx_ftz(x[i]), out[i], x[i], "rcp");
  }
  loops().ex2(tables(), x.data(), x.size(), out.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    expect_bits(gpu::ex2_approx_ftz(x[i]), out[i], x[i], "ex2");
  }
  for (std::size_t count = 0; count < 40; ++count) {
    std::vector<float> part(count + 1, 7.0f);
    loops().ex2(tables(), x.data() + 1000, count, part.data());
    for (std::size_t i = 0; i < count; ++i) {
      expect_bits(gpu::ex2_approx_ftz(x[1000 + i]), part[i], x[1000 + i], "ex2");
    }
    EXPECT_EQ(part[count], 7.0f) << count;
  }
}

TEST_P(ApproxLoops, ProductsAndSumsAreThoseOfTheInstructionsOrSaidToBeInDoubt) {
  const std::vector<float> x = inputs();
  std::mt19937 random(8);
  std::vector<float> y;
  for (std::size_t i = 0; i < x.size(); ++i) {
    // Half of them so that the product comes near the smallest normal number.
    const auto bits = static_cast<std::uint32_t>(random());
    const std::uint32_t field = (gpu::bits_of(x[i]) >> 23 & 0xFFu);
    const bool near = (bits & 1u) != 0 && field > 1 && field < 128;
    y.push_back(near ? gpu::from_bits((bits & 0x807F'FFFFu) | (128u - field) << 23)
                     : gpu::from_bits(bits));
  }
  std::vector<float> out(16);
  std::int64_t doubtful = 0;
  for (std::size_t first = 0; first + 16 <= x.size(); first += 16) {
    const bool doubt = loops().mul_ftz(x.data() + first, y.data() + first, 16, out.data());
    bool at_smallest = false;
    for (std::size_t i = 0; i < 16; ++i) {
      const float product = gpu::mul_ftz(x[first + i], y[first + i]);
      at_smallest |= std::fabs(product) == gpu::kSmallestNormal;
      if (!doubt) expect_bits(product, out[i], x[first + i], "product");
    }
    EXPECT_TRUE(doubt || !at_smallest);
    doubtful += doubt ? 1 : 0;
    loops().add_ftz_to(x.data() + first, y[first], 16, out.data());
    for (std::size_t i = 0; i < 16; ++i) {
      expect_bits(gpu::add_ftz(x[first + i], y[first]), out[i], x[first + i], "sum");
    }
    if (loops().mul_ftz_by(x.data() + first, y[first], 16, out.data())) continue;
    for (std::size_t i = 0; i < 16; ++i) {
      expect_bits(gpu::mul_ftz(x[first + i], y[first]), out[i], x[first + i], "multiple");
    }
  }
  EXPECT_LT(doubtful, static_cast<std::int64_t>(x.size() / 16 / 10));
}

TEST_P(ApproxLoops, ADoubtfulProductIsReported) {
  // (1 - 2^-24) 2^-126 rounds to 2^-126 with subnormals, and is flushed by the hardware.
  const float x = 1.0f - 0x1p-24f;
  float out = 0.0f;
  EXPECT_TRUE(loops().mul_ftz_by(&x, 0x1p-126f, 1, &out));
  EXPECT_EQ(gpu::mul_ftz(x, 0x1p-126f), 0.0f);
}

TEST_P(ApproxLoops, ActivationsOfEveryGateHaveTheBitsOfTheDefinition) {
  simd::use_kernels(GetParam().c_str());
  std::vector<float> gates;
  std::vector<float> ups;
  std::mt19937 random(9);
  for (std::uint32_t gate = 0; gate < 65536; ++gate) {
    gates.push_back(gpu::from_bits(gate << 16));
    ups.push_back(gpu::from_bits(static_cast<std::uint32_t>(random()) & 0xFFFF'0000u));
  }
  const ActivationParameters plain;
  const ActivationParameters oss{ActivationForm::swiglu, 1.702f, 1.0f, 7.0f};
  const ActivationParameters step{ActivationForm::silu_clamp_after, 1.0f, 0.0f, 7.0f};
  struct Form {
    ActivationKernel kernel;
    bool parametric;
    ActivationParameters parameters;
  };
  for (const Form& form :
       {Form{ActivationKernel::flashinfer_cutlass, false, plain},
        Form{ActivationKernel::flashinfer_cutlass, true, oss},
        Form{ActivationKernel::flashinfer_cutlass, true, plain},
        Form{ActivationKernel::flashinfer_cutlass, false, step},
        Form{ActivationKernel::sgl_fast, false, plain},
        Form{ActivationKernel::sgl_precise, false, plain},
        Form{ActivationKernel::triton, false, plain}, Form{ActivationKernel::compiled, true, oss},
        Form{ActivationKernel::compiled, false, step}}) {
    for (const Format output : {Format::f32, Format::bf16}) {
      ActivationNumerics numerics;
      numerics.kernel = form.kernel;
      numerics.is_parametric = form.parametric;
      numerics.output = output;
      std::vector<float> out(gates.size());
      kernel_activations(numerics, form.parameters, gates, ups, out);
      for (std::size_t i = 0; i < gates.size(); ++i) {
        const float expected =
            kernel_rounded(output, kernel_activation(numerics, form.parameters, gates[i], ups[i]));
        ASSERT_EQ(gpu::bits_of(expected), gpu::bits_of(out[i]))
            << "kernel " << static_cast<int>(form.kernel) << " gate " << std::hex
            << gpu::bits_of(gates[i]) << " up " << gpu::bits_of(ups[i]);
      }
    }
  }
}

}  // namespace
}  // namespace moeref
