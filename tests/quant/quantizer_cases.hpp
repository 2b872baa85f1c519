#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "quant/quantize.hpp"
#include "tests/judge/quantizer_judge.hpp"

namespace moeref {

/// A quantizer with every option chosen, and a dtype of its numbers.
struct QuantizerCase {
  const Quantizer* quantizer = nullptr;
  judge::JudgeOptions options;
  Format input = Format::bf16;

  std::vector<std::string> texts() const;  ///< "key=value"
  std::string name() const;                ///< of a test: quantizer, options and dtype
  QuantizePlan plan() const;
};

/// Every quantizer with every combination of option values (of an integer option: the default and
/// one other) and every dtype that it takes, also those that it refuses.
std::vector<QuantizerCase> all_quantizer_cases();
/// Those that it does not refuse.
std::vector<QuantizerCase> offered_quantizer_cases();
std::string case_name(const QuantizerCase& quantizer_case);
void PrintTo(const QuantizerCase& quantizer_case, std::ostream* stream);

/// Numbers of a test, with a name that says what they are.
struct NamedNumbers {
  std::string name;
  judge::Numbers numbers;
};

/// Matrices for a form: random rows of many magnitudes, and blocks of zeros, single elements, ties,
/// subnormals, the largest numbers, infinities, NaN and mixtures; ragged where the plan takes it.
/// Forms whose scales see the whole tensor get one matrix for each kind.
std::vector<NamedNumbers> numbers_for(const QuantizePlan& plan, Format input, std::uint32_t seed);

/// The bytes of the numbers, for a ValueMatrix.
std::vector<std::byte> bytes_of(const judge::Numbers& numbers);
ValueMatrix matrix_of(const std::string& name, const judge::Numbers& numbers,
                      const std::vector<std::byte>& bytes);
/// The code of number i of a row-major matrix; FP4 from the low nibble first.
std::uint32_t code_at(const Quantized& quantized, std::size_t i);
/// The bits of scale i.
std::uint32_t scale_at(const Quantized& quantized, std::size_t i);

}  // namespace moeref
