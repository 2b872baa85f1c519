#include "tests/quant/quantizer_cases.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <random>

#include "quant/error.hpp"
#include "tests/judge/gpu_numbers.hpp"

namespace moeref {
namespace {

using judge::Numbers;
using Bits = std::vector<std::uint32_t>;

/// Values of an option that tests go through.
std::vector<std::string> values_of(const OptionInfo& option) {
  if (option.is_choice()) return {option.values.begin(), option.values.end()};
  std::string other = "64";
  if (option.name == "block") other = "16";
  if (option.name == "upper_bound") other = "0.37";
  if (option.name == "eps") other = "1e-12";
  return {std::string(option.default_value()), other};
}

/// Makes the bits of numbers of a dtype.
class Maker {
 public:
  Maker(Format dtype, std::uint32_t seed) : dtype_(dtype), random_(seed) {}

  std::uint32_t below(std::uint32_t count) { return next() % count; }
  double uniform() { return static_cast<double>(next()) / 4294967296.0; }
  /// The nearest number of the dtype, the largest where there is none.
  std::uint32_t bits(double x) {
    const double largest = value(largest_bits());
    const auto near = judge::in_dtype(dtype_, static_cast<float>(std::clamp(x, -largest, largest)));
    return judge::bits_in(dtype_, near);
  }
  double value(std::uint32_t bits) const {
    return static_cast<double>(judge::value_of(dtype_, bits));
  }
  std::uint32_t sign() const { return dtype_ == Format::f32 ? 0x8000'0000u : 0x8000u; }
  std::uint32_t infinity() const {
    return dtype_ == Format::f32 ? 0x7F80'0000u : dtype_ == Format::bf16 ? 0x7F80u : 0x7C00u;
  }
  std::uint32_t nan() const { return infinity() | quiet(); }
  std::uint32_t largest_bits() const { return infinity() - 1; }
  std::uint32_t first_normal() const { return infinity() & ~(infinity() << 1); }
  std::uint32_t any() { return dtype_ == Format::f32 ? next() : next() & 0xFFFF; }
  std::uint32_t signed_of(std::uint32_t bits) { return bits | (below(2) == 0 ? 0 : sign()); }
  /// Exponents of finite numbers, subnormals included.
  int lowest() const { return dtype_ == Format::f16 ? -24 : dtype_ == Format::bf16 ? -133 : -149; }
  int highest() const { return dtype_ == Format::f16 ? 15 : 127; }

 private:
  std::uint32_t next() { return static_cast<std::uint32_t>(random_()); }
  std::uint32_t quiet() const {
    return dtype_ == Format::f32 ? 0x40'0000u : dtype_ == Format::bf16 ? 0x40u : 0x200u;
  }
  Format dtype_;
  std::mt19937 random_;
};

struct NamedBlock {
  std::string name;
  Bits bits;
};

Bits random_block(Maker& make, std::size_t size, int exponent) {
  Bits block;
  for (std::size_t i = 0; i < size; ++i) {
    // Sums of uniform numbers, roughly normal.
    const double x = make.uniform() + make.uniform() + make.uniform() - 1.5;
    block.push_back(make.bits(std::ldexp(x, exponent)));
  }
  return block;
}

/// Random numbers below a chosen largest magnitude, which stands somewhere.
Bits block_below(Maker& make, std::size_t size, std::uint32_t largest) {
  Bits block;
  for (std::size_t i = 0; i < size; ++i) {
    block.push_back(make.bits((2 * make.uniform() - 1) * make.value(largest)));
  }
  block[make.below(static_cast<std::uint32_t>(size))] = make.signed_of(largest);
  return block;
}

/// Under a scale of 2^exponent: the codes of the format, what lies halfway between two, and the
/// neighbours.
Bits tie_block(Maker& make, std::size_t size, Format elements, int exponent) {
  const std::vector<double>& values = judge::magnitudes(elements);
  Bits block;
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint32_t at = make.below(static_cast<std::uint32_t>(values.size()) - 1);
    const double middle = std::ldexp((values[at] + values[at + 1]) / 2, exponent);
    const std::uint32_t bits = make.bits(middle);
    const std::uint32_t step = make.below(4);
    block.push_back(make.signed_of(bits == 0   ? 0
                                   : step == 1 ? bits - 1
                                   : step == 2 ? bits + 1
                                               : bits));
  }
  block[0] = make.bits(std::ldexp(values.back(), exponent));
  return block;
}

/// The same under a scale that is amax / largest code, which no format of 24 digits or fewer has
/// exactly: a reciprocal, a product or a quotient off by one unit shows here.
Bits own_tie_block(Maker& make, std::size_t size, Format elements) {
  const std::vector<double>& values = judge::magnitudes(elements);
  const std::uint32_t largest = make.bits(1.0 + make.uniform());
  const double scale = make.value(largest) / values.back();
  Bits block;
  for (std::size_t i = 0; i < size; ++i) {
    const auto half = static_cast<std::uint32_t>(values.size() / 2);
    const std::uint32_t at =
        half + make.below(static_cast<std::uint32_t>(values.size()) - half - 1);
    const std::uint32_t bits = make.bits((values[at] + values[at + 1]) / 2 * scale);
    block.push_back(make.signed_of(bits - 2 + make.below(5)));
  }
  block[0] = largest;
  return block;
}

std::vector<NamedBlock> special_blocks(Maker& make, std::size_t size) {
  const std::uint32_t sign = make.sign();
  const std::uint32_t inf = make.infinity();
  const std::uint32_t nan = make.nan();
  const std::uint32_t most = make.largest_bits();
  const auto last = static_cast<std::uint32_t>(size);
  std::vector<NamedBlock> blocks;
  const auto add = [&](std::string name, Bits bits) {
    blocks.push_back({std::move(name), std::move(bits)});
  };
  const auto with = [&](Bits block, std::initializer_list<std::uint32_t> some) {
    for (const std::uint32_t bits : some) block[make.below(last)] = bits;
    return block;
  };
  const Bits zeros(size, 0);
  const Bits normal = random_block(make, size, 1);
  add("zero", zeros);
  add("minus zero", Bits(size, sign));
  Bits signs = zeros;
  for (std::uint32_t& bits : signs) bits = make.signed_of(bits);
  add("zeros of both signs", signs);
  add("single", with(zeros, {make.bits(3.1)}));
  add("single negative", with(signs, {make.bits(-0.0171)}));
  add("single infinity", with(zeros, {inf}));
  add("single NaN among zeros", with(zeros, {nan}));
  add("infinity", with(normal, {inf}));
  add("minus infinity", with(with(normal, {0, sign}), {inf | sign}));
  add("infinities", Bits(size, inf));
  add("NaN", with(normal, {nan}));
  add("negative NaN", with(with(normal, {0, sign}), {nan | sign}));
  add("NaN first", [&] {
    Bits block = normal;
    block[0] = nan;
    return block;
  }());
  add("NaN last", [&] {
    Bits block = normal;
    block.back() = nan;
    return block;
  }());
  add("NaN, infinity", with(normal, {inf, nan, inf | sign}));
  add("all NaN", Bits(size, nan));
  add("mixed", with(normal, {0, sign, 1, sign | 1, most, sign | most, inf, nan}));
  add("largest", [&] {
    Bits block;
    for (std::size_t i = 0; i < size; ++i) block.push_back(make.signed_of(most));
    return block;
  }());
  add("one largest", with(normal, {most}));
  add("smallest subnormals", [&] {
    Bits block;
    for (std::size_t i = 0; i < size; ++i) block.push_back(make.signed_of(make.below(3)));
    return block;
  }());
  add("subnormals", [&] {
    Bits block;
    for (std::size_t i = 0; i < size; ++i) {
      block.push_back(make.signed_of(make.below(make.first_normal())));
    }
    return block;
  }());
  add("about the first normal", [&] {
    Bits block;
    for (std::size_t i = 0; i < size; ++i) {
      block.push_back(make.signed_of(make.first_normal() - 3 + make.below(6)));
    }
    return block;
  }());
  for (const int exponent : {-9, 0, 5}) {
    add("ties of E2M1", tie_block(make, size, Format::e2m1, exponent));
    add("ties of E4M3", tie_block(make, size, Format::e4m3, std::min(exponent, 0)));
    add("ties of E5M2", tie_block(make, size, Format::e5m2, std::min(exponent, -1)));
  }
  // Numbers of 16 bits are too coarse to come near a tie; an approximate reciprocal differs for one
  // scale in eight.
  for (int i = 0; i < (make.lowest() == -149 ? 48 : 4); ++i) {
    const Format elements = i % 3 == 0 ? Format::e2m1 : Format::e4m3;
    add("ties under its own scale", own_tie_block(make, size, elements));
  }
  // Where rules of powers of two turn.
  for (const double turn : {1.0, 1.5, 1.75, 1.875, 1.9375, 6.0 / 4, 448.0 / 256, 240.0 / 128}) {
    for (const int step : {-1, 0, 1}) {
      const int span = make.highest() - make.lowest() - 12;
      const int exponent =
          make.lowest() + 11 + static_cast<int>(make.below(static_cast<std::uint32_t>(span)));
      const std::uint32_t largest =
          make.bits(std::ldexp(turn, exponent)) + static_cast<std::uint32_t>(step);
      add(fmt::format("amax {} * 2^{} {:+}", turn, exponent, step),
          block_below(make, size, largest));
    }
  }
  if (make.lowest() == -149) {
    // Divided by 2^emax, the last before a normal number is one.
    for (const int emax : {2, 8, 15}) {
      add("just below a normal scale",
          block_below(make, size, make.bits(std::ldexp(1.0, emax - 126)) - 1));
    }
  }
  // The ends of exponents.
  for (int i = 0; i < 10; ++i) {
    const std::uint32_t low = make.first_normal() * (i < 4 ? 1 : 12);
    add("small amax", block_below(make, size, 1 + make.below(low)));
    add("large amax", block_below(make, size, most - make.below(low)));
  }
  return blocks;
}

std::vector<NamedBlock> random_blocks(Maker& make, std::size_t size, int count) {
  std::vector<NamedBlock> blocks;
  const auto span = static_cast<std::uint32_t>(make.highest() - make.lowest());
  for (int i = 0; i < count; ++i) {
    if (i % 4 == 3) {
      const int exponent = make.lowest() + static_cast<int>(make.below(span));
      blocks.push_back({"random of any magnitude", random_block(make, size, exponent)});
    } else if (i % 16 == 2) {
      Bits bits;
      for (std::size_t k = 0; k < size; ++k) bits.push_back(make.any());
      blocks.push_back({"any bits", bits});
    } else {
      const int exponent = static_cast<int>(make.below(24)) - 12;
      blocks.push_back({"random", random_block(make, size, exponent)});
    }
  }
  return blocks;
}

/// Rows of blocks side by side.
Numbers in_rows(Format dtype, const std::vector<const Bits*>& blocks, std::size_t blocks_in_row) {
  Numbers numbers;
  numbers.format = dtype;
  numbers.rows = static_cast<std::int64_t>(blocks.size() / blocks_in_row);
  numbers.cols = static_cast<std::int64_t>(blocks_in_row * blocks.front()->size());
  for (std::size_t i = 0; i < blocks.size() / blocks_in_row * blocks_in_row; ++i) {
    numbers.bits.insert(numbers.bits.end(), blocks[i]->begin(), blocks[i]->end());
  }
  return numbers;
}

std::vector<NamedNumbers> fp8_codes(std::int64_t block_cols, std::uint32_t seed) {
  std::mt19937 numbers_of(seed);
  const auto random = [&] { return static_cast<std::uint32_t>(numbers_of()); };
  const auto size = static_cast<std::size_t>(block_cols);
  Bits all;
  const auto add = [&](auto code) {
    for (std::size_t i = 0; i < size; ++i) all.push_back(code(i));
  };
  for (int i = 0; i < 24; ++i) {
    const std::uint32_t top = 8 + random() % 0x78;
    add([&](std::size_t) { return random() % top | (random() % 2 << 7); });
  }
  add([](std::size_t) { return 0u; });
  add([](std::size_t) { return 0x80u; });
  add([](std::size_t i) { return i == 3 ? 1u : 0u; });
  add([](std::size_t) { return 0x7Fu; });
  add([](std::size_t i) { return i == 5 ? 0xFFu : 0x38u; });
  add([](std::size_t i) { return i % 2 == 0 ? 0x7Eu : 0xFEu; });
  for (std::uint32_t code = 0; code < 256; code += 2 * static_cast<std::uint32_t>(size)) {
    for (std::uint32_t i = 0; i < 2 * size; ++i) all.push_back((code + i) & 0xFF);
  }
  Numbers numbers;
  numbers.format = Format::e4m3;
  numbers.cols = 2 * block_cols;
  numbers.rows = static_cast<std::int64_t>(all.size()) / numbers.cols;
  all.resize(static_cast<std::size_t>(numbers.rows * numbers.cols));
  numbers.bits = all;
  return {{"codes", numbers}};
}

}  // namespace

std::vector<std::string> QuantizerCase::texts() const {
  std::vector<std::string> texts;
  for (const auto& [key, value] : options) texts.push_back(key + "=" + value);
  return texts;
}

std::string QuantizerCase::name() const {
  std::string text(quantizer->name);
  for (const auto& [key, value] : options) text += "__" + key + "_" + value;
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '.' || c == '-'; }, '_');
  return text + "__" + std::string(moeref::name(input));
}

QuantizePlan QuantizerCase::plan() const { return quantizer->plan(Options(options), input); }

std::vector<QuantizerCase> all_quantizer_cases() {
  std::vector<QuantizerCase> cases;
  for (const Quantizer* quantizer : all_quantizers()) {
    std::vector<judge::JudgeOptions> chosen(1);
    for (const OptionInfo& option : quantizer->options) {
      std::vector<judge::JudgeOptions> more;
      for (const judge::JudgeOptions& options : chosen) {
        for (const std::string& value : values_of(option)) {
          more.push_back(options);
          more.back()[std::string(option.name)] = value;
        }
      }
      chosen = more;
    }
    for (const judge::JudgeOptions& options : chosen) {
      for (const Format input : quantizer->inputs) cases.push_back({quantizer, options, input});
    }
  }
  return cases;
}

std::vector<QuantizerCase> offered_quantizer_cases() {
  std::vector<QuantizerCase> cases = all_quantizer_cases();
  std::erase_if(cases, [](const QuantizerCase& one) {
    return !judge::is_offered(one.quantizer->name, one.options, one.input);
  });
  return cases;
}

std::string case_name(const QuantizerCase& quantizer_case) { return quantizer_case.name(); }
void PrintTo(const QuantizerCase& quantizer_case, std::ostream* stream) {
  *stream << quantizer_case.name();
}

std::vector<NamedNumbers> numbers_for(const QuantizePlan& plan, Format input, std::uint32_t seed) {
  const std::int64_t block_cols = plan.form.block_cols;
  if (input == Format::e4m3) return fp8_codes(block_cols, seed);
  Maker make(input, seed);
  const auto size = static_cast<std::size_t>(block_cols == 0 ? 48 : block_cols);
  const std::vector<NamedBlock> special = special_blocks(make, size);
  const std::vector<NamedBlock> random = random_blocks(make, size, size > 64 ? 24 : 64);
  const bool of_tensor = plan.form.global == GlobalScaleOf::tensor || plan.form.block_rows == 0;
  std::vector<NamedNumbers> result;
  if (of_tensor) {
    for (const NamedBlock& block : special) {
      result.push_back({block.name, in_rows(input, {&random[0].bits, &block.bits}, 2)});
      result.push_back({"only " + block.name, in_rows(input, {&block.bits, &block.bits}, 1)});
    }
    for (const NamedBlock& block : random) {
      result.push_back({block.name, in_rows(input,
                                            {&block.bits, &random[1].bits, &random[0].bits,
                                             &random[4].bits, &block.bits, &random[5].bits},
                                            2)});
    }
  } else {
    const std::size_t in_row = block_cols == 0 ? 1 : 2;
    std::vector<const Bits*> blocks;
    for (const NamedBlock& block : random) blocks.push_back(&block.bits);
    for (const NamedBlock& block : special) {
      blocks.push_back(&block.bits);
      if (in_row == 1) continue;
      if (plan.form.global == GlobalScaleOf::row) {
        // A row of its own kind, and one shared with ordinary numbers.
        blocks.push_back(&block.bits);
        blocks.push_back(&block.bits);
      }
      blocks.push_back(&random[make.below(2)].bits);
    }
    result.push_back({"blocks", in_rows(input, blocks, in_row)});
    if (plan.form.block_rows > 1) {
      // Blocks of as many rows: whole in neither direction.
      Numbers tall;
      tall.format = input;
      tall.rows = plan.form.block_rows + 3;
      tall.cols = 2 * block_cols + 8;
      for (std::int64_t i = 0; i < tall.rows * tall.cols; ++i) {
        tall.bits.push_back(make.bits(make.uniform() - 0.5));
      }
      tall.bits[7] = make.infinity();
      tall.bits.back() = make.nan();
      result.push_back({"more than a block of rows", tall});
    }
    if (plan.form.block_rows > 1) {
      for (const NamedBlock& block : special) {
        result.push_back({block.name, in_rows(input, {&block.bits, &random[0].bits}, 2)});
      }
    }
  }
  if (!plan.whole_blocks) {
    // A last block of any width, and of widths that would let the row be cut evenly.
    for (const std::size_t cols : {size + 6, size + 32, size + size / 2, 3 * size + 64}) {
      Numbers ragged;
      ragged.format = input;
      ragged.rows = 5;
      ragged.cols = static_cast<std::int64_t>(cols);
      for (std::int64_t i = 0; i < ragged.rows * ragged.cols; ++i) {
        ragged.bits.push_back(
            make.bits(std::ldexp(make.uniform() - 0.5, 3 * static_cast<int>(i % 5))));
      }
      result.push_back({"ragged", ragged});
    }
  }
  return result;
}

std::vector<std::byte> bytes_of(const Numbers& numbers) {
  const auto width = static_cast<std::size_t>(info(numbers.format).bits / 8);
  std::vector<std::byte> bytes(numbers.bits.size() * width);
  for (std::size_t i = 0; i < numbers.bits.size(); ++i) {
    for (std::size_t k = 0; k < width; ++k) {
      bytes[i * width + k] = static_cast<std::byte>(numbers.bits[i] >> (8 * k));
    }
  }
  return bytes;
}

ValueMatrix matrix_of(const std::string& name, const Numbers& numbers,
                      const std::vector<std::byte>& bytes) {
  return {name, numbers.format, numbers.rows, numbers.cols, bytes};
}

std::uint32_t code_at(const Quantized& quantized, std::size_t i) {
  if (quantized.form.codes != Format::e2m1)
    return std::to_integer<std::uint32_t>(quantized.codes[i]);
  return std::to_integer<std::uint32_t>(quantized.codes[i / 2]) >> (4 * (i % 2)) & 15;
}

std::uint32_t scale_at(const Quantized& quantized, std::size_t i) {
  const auto width = static_cast<std::size_t>(info(quantized.form.scales).bits / 8);
  std::uint32_t bits = 0;
  for (std::size_t k = 0; k < width; ++k) {
    bits |= std::to_integer<std::uint32_t>(quantized.scales[i * width + k]) << (8 * k);
  }
  return bits;
}

}  // namespace moeref
