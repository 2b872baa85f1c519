#include "engine/activation_rows.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "engine/gpu_activation.hpp"
#include "engine/kernel_rounding.hpp"
#include "quant/gpu/approx_tables.hpp"
#include "quant/gpu/functions.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr std::size_t kChunk = 64;
using Chunk = std::array<float, kChunk>;

gpu::MoeActivation flashinfer_kind(const ActivationNumerics& numerics,
                                   const ActivationParameters& parameters) {
  switch (parameters.form) {
    case ActivationForm::relu2:
      return gpu::MoeActivation::relu2;
    case ActivationForm::silu_clamp_after:
      return gpu::MoeActivation::swiglu_step;
    default:
      return numerics.is_parametric ? gpu::MoeActivation::swiglu_bias : gpu::MoeActivation::swiglu;
  }
}

/// The coefficients as the loops want them: 32 bits each.
struct WideTables {
  std::array<std::vector<std::int32_t>, 3> reciprocal;
  std::array<std::vector<std::int32_t>, 3> exp2;
  std::vector<std::int32_t> squares;
  simd::ApproxTables view{};

  WideTables() {
    const auto widen = [](const auto& table, auto& columns) {
      for (const gpu::Quadratic& piece : table) {
        columns[0].push_back(static_cast<std::int32_t>(piece.c0));
        columns[1].push_back(piece.c1);
        columns[2].push_back(piece.c2);
      }
    };
    widen(gpu::kReciprocal, reciprocal);
    widen(gpu::kExp2, exp2);
    squares.assign(gpu::kTruncatedSquares.begin(), gpu::kTruncatedSquares.end());
    for (std::size_t i = 0; i < 3; ++i) {
      view.reciprocal[i] = reciprocal[i].data();
      view.exp2[i] = exp2[i].data();
    }
    view.squares = squares.data();
    view.reciprocal_bias = static_cast<std::int32_t>(gpu::kReciprocalBias);
    view.exp2_bias = static_cast<std::int32_t>(gpu::kExp2Bias);
  }
};

const simd::ApproxTables& tables() {
  static const WideTables wide;
  return wide.view;
}

/// Up to 64 pairs by array operations. Where a product needs the slow rounding, `exact` is false
/// and the results mean nothing.
class ChunkOfPairs {
 public:
  ChunkOfPairs(const float* gate, const float* up, std::size_t count)
      : gate_(gate), up_(up), count_(count), loops_(*simd::active_kernels()->approx) {}

  bool exact() const { return !doubt_; }

  /// (g sig(g)) u
  void swiglu(float* out) {
    sigmoid(gate_, s_.data());
    times(gate_, s_.data(), s_.data());
    times(s_.data(), up_, out);
  }

  void swiglu_bias(const ActivationParameters& p, float* out) {
    for (std::size_t i = 0; i < count_; ++i) g_[i] = gpu::min_ftz(gate_[i], p.limit);
    doubt_ |= loops_.mul_ftz_by(g_.data(), p.alpha, count_, t_.data());
    sigmoid(t_.data(), s_.data());
    times(g_.data(), s_.data(), s_.data());
    clamp_up(p.limit);
    loops_.add_ftz_to(u_.data(), p.beta, count_, u_.data());
    times(s_.data(), u_.data(), out);
  }

  void swiglu_step(const ActivationParameters& p, float* out) {
    sigmoid(gate_, s_.data());
    times(gate_, s_.data(), s_.data());
    for (std::size_t i = 0; i < count_; ++i) s_[i] = gpu::min_ftz(s_[i], p.limit);
    clamp_up(p.limit);
    times(s_.data(), u_.data(), out);
  }

  /// silu rounded to `output`, times up.
  void triton(Format output, float* out) {
    for (std::size_t i = 0; i < count_; ++i) t_[i] = gpu::mul(0.0f - gate_[i], gpu::kLog2E);
    reciprocal_of_one_plus_exp2();
    for (std::size_t i = 0; i < count_; ++i) {
      out[i] = gpu::mul(kernel_rounded(output, gpu::mul(s_[i], gate_[i])), up_[i]);
    }
  }

  void gptoss(const ActivationParameters& p, float* out) {
    for (std::size_t i = 0; i < count_; ++i) {
      const float g = gate_[i] != gate_[i] ? gpu::nan() : gpu::min_num(gate_[i], p.limit);
      g_[i] = g;
      t_[i] = gpu::mul(gpu::mul(g, -p.alpha), gpu::kLog2E);
    }
    reciprocal_of_one_plus_exp2();
    for (std::size_t i = 0; i < count_; ++i) {
      const float u =
          up_[i] != up_[i] ? gpu::nan() : gpu::min_num(gpu::max_num(up_[i], -p.limit), p.limit);
      out[i] = gpu::mul(gpu::mul(g_[i], s_[i]), gpu::canonical(u + p.beta));
    }
  }

 private:
  void times(const float* x, const float* y, float* out) {
    doubt_ |= loops_.mul_ftz(x, y, count_, out);
  }

  /// rcp(1 + ex2(-log2(e) x)), .ftz
  void sigmoid(const float* x, float* out) {
    doubt_ |= loops_.mul_ftz_by(x, -gpu::kLog2E, count_, out);
    loops_.ex2(tables(), out, count_, out);
    loops_.add_ftz_to(out, 1.0f, count_, out);
    loops_.rcp(tables(), out, count_, out);
  }

  /// s = 1 div.full (1 + ex2.approx(t)), nothing flushed.
  void reciprocal_of_one_plus_exp2() {
    for (std::size_t i = 0; i < count_; ++i) s_[i] = t_[i] < -126.0f ? t_[i] * 0.5f : t_[i];
    loops_.ex2(tables(), s_.data(), count_, s_.data());
    for (std::size_t i = 0; i < count_; ++i) {
      const float power = t_[i] < -126.0f ? s_[i] * s_[i] : s_[i];
      const float d = gpu::canonical(power + 1.0f);
      u_[i] = d > 0x1p126f ? 0.25f : 1.0f;  // d >= 1
      s_[i] = d * u_[i];
    }
    loops_.rcp(tables(), s_.data(), count_, s_.data());
    for (std::size_t i = 0; i < count_; ++i) s_[i] = gpu::canonical(u_[i] * s_[i]);
  }

  void clamp_up(float limit) {
    for (std::size_t i = 0; i < count_; ++i) {
      u_[i] = gpu::max_ftz(gpu::min_ftz(up_[i], limit), -limit);
    }
  }

  const float* gate_;
  const float* up_;
  std::size_t count_;
  const simd::ApproxKernels& loops_;
  bool doubt_ = false;
  Chunk g_{};
  Chunk u_{};
  Chunk t_{};
  Chunk s_{};
};

/// Whether the chunk was done; else every pair is for the definition.
bool run_chunk(const ActivationNumerics& numerics, const ActivationParameters& p,
               ChunkOfPairs& pairs, float* out) {
  switch (numerics.kernel) {
    case ActivationKernel::flashinfer_cutlass:
      switch (flashinfer_kind(numerics, p)) {
        case gpu::MoeActivation::swiglu:
          pairs.swiglu(out);
          return pairs.exact();
        case gpu::MoeActivation::swiglu_bias:
          pairs.swiglu_bias(p, out);
          return pairs.exact();
        case gpu::MoeActivation::swiglu_step:
          pairs.swiglu_step(p, out);
          return pairs.exact();
        default:
          return false;
      }
    case ActivationKernel::sgl_fast:
      pairs.swiglu(out);
      return pairs.exact();
    case ActivationKernel::triton:
      pairs.triton(numerics.output, out);
      return true;
    case ActivationKernel::compiled:
      if (p.form == ActivationForm::silu_clamp_after) return false;
      pairs.gptoss(p, out);
      return true;
    case ActivationKernel::sgl_precise:
    case ActivationKernel::plain:
      break;
  }
  return false;
}

}  // namespace

float kernel_activation(const ActivationNumerics& numerics, const ActivationParameters& p,
                        float gate, float up) {
  const gpu::ActivationParameters parameters{p.alpha, p.beta, p.limit};
  switch (numerics.kernel) {
    case ActivationKernel::flashinfer_cutlass: {
      const gpu::MoeActivation kind = flashinfer_kind(numerics, p);
      const float first = kind == gpu::MoeActivation::relu2 ? up : gate;
      return gpu::flashinfer_moe_activation(kind, first, up, parameters);
    }
    case ActivationKernel::sgl_fast:
      return gpu::silu_and_mul_fast(gate, up);
    case ActivationKernel::sgl_precise:
      return gpu::silu_and_mul_precise(gate, up);
    case ActivationKernel::triton:
      return gpu::mul(kernel_rounded(numerics.output, gpu::silu_triton(gate)), up);
    case ActivationKernel::compiled:
      return p.form == ActivationForm::silu_clamp_after
                 ? gpu::silu_clamp_after_compiled(gate, up, p.limit)
                 : gpu::gptoss_compiled(gate, up, parameters);
    case ActivationKernel::plain:
      break;
  }
  return gpu::relu2_plain(up);
}

void kernel_activations(const ActivationNumerics& numerics, const ActivationParameters& parameters,
                        std::span<const float> gate, std::span<const float> up,
                        std::span<float> out) {
  for (std::size_t first = 0; first < up.size(); first += kChunk) {
    const std::size_t count = std::min(kChunk, up.size() - first);
    float* values = out.data() + first;
    bool done = false;
    if (!gate.empty()) {
      ChunkOfPairs pairs(gate.data() + first, up.data() + first, count);
      done = run_chunk(numerics, parameters, pairs, values);
    }
    for (std::size_t i = 0; i < count; ++i) {
      const float value =
          done ? values[i]
               : kernel_activation(numerics, parameters, gate.empty() ? 0.0f : gate[first + i],
                                   up[first + i]);
      values[i] = kernel_rounded(numerics.output, value);
    }
  }
}

}  // namespace moeref
