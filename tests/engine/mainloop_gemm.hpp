#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "quant/mainloop.hpp"
#include "quant/scaled_matrix.hpp"
#include "tests/judge/matrix_judge.hpp"
#include "tests/support/unit_inputs.hpp"

// GEMMs of main loops, and what the judge says of them.

namespace moeref::testing {

/// Rows of codes and f32 scales, stored. Its global scale is 3, which no main loop reads.
struct StoredMatrix {
  std::vector<judge::UnitCodes> rows;
  std::vector<std::byte> bytes;
  std::vector<float> scales;
  ScaledMatrix view;  ///< into the vectors: do not copy

  StoredMatrix() = default;
  StoredMatrix(const StoredMatrix&) = delete;
  StoredMatrix(StoredMatrix&&) = default;
  StoredMatrix& operator=(StoredMatrix&&) = default;
};

StoredMatrix store(const char* name, Format format, std::int64_t cols,
                   const std::vector<CodeRow>& rows);

/// Around 1; or among them zeros, subnormals, huge ones, infinity and NaN.
enum class Scales : std::uint8_t { none, tame, wild };
/// A scale for every `block_rows` x `block_cols` elements.
void add_scales(Scales kind, std::int64_t block_rows, std::int64_t block_cols, StoredMatrix& matrix,
                std::mt19937_64& random);

/// A unit and its operands.
struct Form {
  std::string name;
  FusedDot unit;
  Format left;
  Format right;
};
/// Units of kernels, and of others that the vector loops do not take.
const std::vector<Form>& forms();
/// Operands converted to `operand`, 16 terms a step.
FusedDot converted(Format operand, TermOrder order);
/// What a chain must be a multiple of.
std::int64_t chunk_of(const FusedDot& unit);

/// Rows of x (some twice, some not at all) by a weight.
struct Gemm {
  Mainloop mainloop;
  StoredMatrix x;
  StoredMatrix weight;
  std::vector<std::int64_t> rows;
};

struct GemmSize {
  std::int64_t rows, cols, k;
};
Gemm make_gemm(const Mainloop& mainloop, const Form& form, UnitInputs inputs, Scales scales,
               const GemmSize& size, std::mt19937_64& random);

/// What is in the gaps between the rows of sums.
inline constexpr float kUntouched = 123.0f;
/// Sums [rows, cols + 3], the gaps as they were.
std::vector<float> run(const Gemm& gemm, int threads);
std::vector<std::uint32_t> bits_of(const std::vector<float>& values);

/// Every sum is the judge's, bit for bit, by 1 and by 3 threads.
void expect_as_judged(const Gemm& gemm, const std::string& what);

}  // namespace moeref::testing
