// Layouts of whole tensors: bytes moved a second, and x_memcpy, the ratio to memcpy of the same
// bytes in the same process on one thread. Both are the best of all iterations and, on one thread,
// CPU time, so that a busy machine tells little. Every row is checked before it is timed.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>

#include "bench/bench_context.hpp"
#include "layout/step.hpp"

namespace moeref {
namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;
using enum Axis;

/// A tensor and how it is prepared.
struct Case {
  std::string name;
  int bits = 8;
  std::int64_t experts = 1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  GateOrder order = GateOrder::gate_up;
  std::vector<Step> steps;
};

Step order_of(std::vector<Digit> digits, std::int64_t pad_rows = 1, std::int64_t pad_cols = 1) {
  return Tile{{.name = "order",
               .digits = std::move(digits),
               .bits = {4, 8, 16, 32},
               .pad_rows = pad_rows,
               .pad_cols = pad_cols}};
}

/// Nibble i of each word to bits 4 (i / 2) + 16 (i mod 2), but for every bit on its own: the worst
/// case of eight distances.
Step spread_nibbles() {
  std::array<int, 32> source{};
  for (int bit = 0; bit < 32; ++bit) {
    const int nibble = bit / 4;
    const int from = nibble < 4 ? 2 * nibble : 2 * (nibble - 4) + 1;
    source[static_cast<std::size_t>(bit)] = 4 * from + bit % 4;
  }
  return PermuteBits{std::make_shared<BitPermutation>("spread_nibbles", source)};
}

/// A prepared case: input, output, and the way back.
class Subject {
 public:
  explicit Subject(const Case& item) : input_(bytes_of(item)) {
    std::mt19937_64 random(7);
    for (std::size_t i = 0; i + 8 <= input_.size(); i += 8) {
      const std::uint64_t word = random();
      std::memcpy(input_.data() + i, &word, 8);
    }
    view_ = {item.name,
             dtype(item.bits),
             {item.experts, item.rows, item.bits == 4 ? item.cols / 2 : item.cols},
             input_};
    stack_ = dense_stack(view_, item.order, item.bits);
    plan_ = make_plan(item.name, stack_, item.steps, nullptr);
    output_.resize(static_cast<std::size_t>(plan_.map.experts * plan_.map.out_bytes()));
    restored_.resize(input_.size());
  }

  void apply(int threads) { moeref::apply(plan_.map, stack_, plan_.recoders, output_, threads); }
  UndoReport undo(int threads) {
    return moeref::undo(plan_.map, output_, plan_.recoders, restored_, threads);
  }
  /// Applies, undoes, and compares some elements with what the map says, and all with the input.
  void check() {
    apply(0);
    const IndexMap& map = plan_.map;
    std::mt19937_64 random(8);
    for (int i = 0; i < 1000 && !map.words; ++i) {
      const auto pick = static_cast<std::int64_t>(
          random() % static_cast<std::uint64_t>(map.experts * map.out_elements()));
      const std::int64_t expert = pick / map.out_elements();
      const Origin origin = map.origin(pick % map.out_elements());
      const auto cols = origin.pad ? 0 : origin.col / pair(map) * pair(map);
      std::array<std::byte, 4> wanted{origin.fill, origin.fill, origin.fill, origin.fill};
      if (!origin.pad) stack_.read(expert, origin.row, cols, pair(map), wanted.data());
      const std::int64_t nibble = map.element_bits == 4 && !origin.pad ? origin.col % 2 : 0;
      if (code(wanted.data(), nibble, map) != code(output_.data(), pick, map)) {
        throw std::logic_error("a wrong element was moved");
      }
    }
    const UndoReport report = undo(0);
    if (report.wrong_pads + report.wrong_copies != 0 || restored_ != dense_input()) {
      throw std::logic_error("undo did not restore the input");
    }
  }
  double memcpy_seconds() {
    source_.resize(output_.size());
    return best([this] { std::memcpy(output_.data(), source_.data(), output_.size()); }, 9);
  }
  std::int64_t bytes() const { return static_cast<std::int64_t>(output_.size()); }

  /// Seconds of the fastest of some runs: of one thread its CPU time, which other processes do not
  /// lengthen, of several the wall time.
  static double best(const std::function<void()>& run, int times, int threads = 1) {
    double least = 1e9;
    for (int i = 0; i < times; ++i) {
      const auto begin = Clock::now();
      const std::clock_t cpu = std::clock();
      run();
      benchmark::ClobberMemory();
      const double wall = std::chrono::duration<double>(Clock::now() - begin).count();
      const double busy = static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC;
      least = std::min(least, threads == 1 ? busy : wall);
    }
    return least;
  }

 private:
  static Bytes bytes_of(const Case& item) {
    return Bytes(static_cast<std::size_t>(item.experts * item.rows * item.cols * item.bits / 8));
  }
  static DType dtype(int bits) {
    return bits == 16 ? DType::bf16 : bits == 32 ? DType::f32 : DType::u8;
  }
  static std::int64_t pair(const IndexMap& map) { return map.element_bits == 4 ? 2 : 1; }
  static std::uint32_t code(const std::byte* data, std::int64_t index, const IndexMap& map) {
    if (map.element_bits == 4) {
      return std::to_integer<std::uint32_t>(data[index / 2]) >> (4 * (index % 2)) & 15u;
    }
    std::uint32_t value = 0;
    const auto width = static_cast<std::size_t>(map.element_bits / 8);
    std::memcpy(&value, data + static_cast<std::size_t>(index) * width, width);
    return value;
  }
  /// The input in the logical order of its rows.
  Bytes dense_input() const {
    Bytes dense(input_.size());
    const std::int64_t row_bytes = stack_.cols * stack_.element_bits / 8;
    for (std::int64_t row = 0; row < stack_.experts * stack_.rows(); ++row) {
      stack_.read(row / stack_.rows(), row % stack_.rows(), 0, stack_.cols,
                  dense.data() + row * row_bytes);
    }
    return dense;
  }

  Bytes input_;
  TensorView view_;
  TensorStack stack_;
  Plan plan_;
  Bytes output_;
  Bytes restored_;
  Bytes source_;
};

void time_case(benchmark::State& state, const Case& item, bool back, int threads) {
  Subject subject(item);
  subject.check();
  double least = subject.memcpy_seconds();
  double best = 1e9;
  for (auto _ : state) {
    best = std::min(best, Subject::best(
                              [&] {
                                if (back) {
                                  benchmark::DoNotOptimize(subject.undo(threads));
                                } else {
                                  subject.apply(threads);
                                }
                              },
                              1, threads));
  }
  least = std::min(least, subject.memcpy_seconds());
  const auto bytes = static_cast<double>(subject.bytes());
  state.counters["x_memcpy"] = least / best;
  state.counters["best_bytes_per_s"] =
      benchmark::Counter(bytes / best, benchmark::Counter::kDefaults, benchmark::Counter::kIs1000);
  state.counters["memcpy_bytes_per_s"] =
      benchmark::Counter(bytes / least, benchmark::Counter::kDefaults, benchmark::Counter::kIs1000);
  state.SetBytesProcessed(state.iterations() * subject.bytes());
}

/// Tensors of GPT-OSS, some experts of them: 66 MB or more, larger than most caches, as layers are.
std::vector<Case> families() {
  constexpr std::int64_t kRows = 5760;
  constexpr std::int64_t kCols = 2880;
  constexpr std::int64_t kScales = 90;
  constexpr std::int64_t kEven = 3072;  ///< kCols, padded as kernels with large tiles want it
  const Step tile16 = order_of({{row, 16}, {col, 16}, {row, 1, 16}, {col, 1, 16}});
  const Step tile128x4 =
      order_of({{row, 128}, {col, 4}, {row, 1, 32}, {row, 32, 4}, {col, 1, 4}}, 128, 4);
  const Step marlin4 = order_of({{col, 16},
                                 {row, 64},
                                 {row, 1, 8},
                                 {col, 2, 4},
                                 {row, 16, 4},
                                 {col, 1, 2},
                                 {row, 8, 2},
                                 {col, 8, 2}});
  const Step marlin8 = order_of({{col, 16},
                                 {row, 64},
                                 {row, 1, 8},
                                 {col, 2, 4},
                                 {row, 16, 4},
                                 {row, 8, 2},
                                 {col, 1, 2},
                                 {col, 8, 2}});
  const Step hopper = order_of({{row, 16},
                                {row, 2, 4},
                                {col, 64},
                                {row, 1, 2},
                                {col, 2, 4},
                                {col, 16, 4},
                                {col, 8, 2},
                                {row, 8, 2},
                                {col, 1, 2}});
  const Step hopper_bytes = order_of({{row, 16},
                                      {row, 2, 4},
                                      {col, 32},
                                      {row, 1, 2},
                                      {col, 1, 4},
                                      {col, 8, 4},
                                      {col, 4, 2},
                                      {row, 8, 2}});
  const Step transposed = order_of({{col, 1}, {row, 1}});
  const GateOrder pairs = GateOrder::interleaved;
  return {
      {"rows/shuffle_rows/fp8", 8, 4, kRows, kCols, pairs, {ShuffleRows{128}}},
      {"rows/shuffle_rows/fp4", 4, 8, kRows, kCols, pairs, {ShuffleRows{128}}},
      {"rows/pad_interleave_shuffle/fp4",
       4,
       8,
       kRows,
       kCols,
       pairs,
       {PadHalves{.multiple = 256}, PadCols{.multiple = 512}, InterleaveHalves{1},
        ShuffleRows{128}}},
      {"swizzle/block_major_k/fp8",
       8,
       4,
       kRows,
       kEven,
       pairs,
       {order_of({{col, 128}, {row, 1}, {col, 1, 128}})}},
      {"swizzle/tile_16x16/fp8", 8, 4, kRows, kCols, pairs, {tile16}},
      {"swizzle/tile_16x16/fp4_32",
       4,
       8,
       kRows,
       kCols,
       pairs,
       {order_of({{row, 16}, {col, 32}, {row, 1, 16}, {col, 1, 32}})}},
      {"swizzle/tile_16x16/fp8_padded",
       8,
       4,
       kRows,
       kCols,
       pairs,
       {PadCols{.multiple = 256}, tile16}},
      {"bytes/swizzle_128x4/scales", 8, 128, kRows, kScales, pairs, {tile128x4}},
      {"bytes/transpose/scales", 8, 128, kRows, kScales, pairs, {transposed}},
      {"bytes/transpose/fp8", 8, 4, kRows, kCols, pairs, {transposed}},
      {"bytes/transpose/bf16", 16, 4, kRows, kCols, pairs, {transposed}},
      {"bytes/transpose/f32", 32, 2, kRows, kCols, pairs, {transposed}},
      {"bytes/marlin/fp8", 8, 4, kRows, kCols, pairs, {marlin8}},
      {"bytes/hopper_value/u8", 8, 4, kRows, kCols, pairs, {hopper_bytes}},
      {"nibbles/marlin/fp4", 4, 8, kRows, kCols, pairs, {marlin4}},
      {"nibbles/transpose/fp4", 4, 8, kRows, kCols, pairs, {transposed}},
      {"nibbles/pairs_of_rows/fp4",
       4,
       8,
       kRows,
       kCols,
       pairs,
       {order_of({{row, 2}, {col, 1}, {row, 1, 2}})}},
      {"nibbles/odd_tiles/fp4",
       4,
       8,
       kRows,
       kCols,
       pairs,
       {order_of({{row, 6}, {col, 90}, {col, 1, 90}, {row, 1, 6}})}},
      {"words/rows/fp4", 4, 8, kRows, kCols, pairs, {spread_nibbles()}},
      {"words/hopper_value/fp4", 4, 8, kRows, kEven, pairs, {hopper, spread_nibbles()}},
      {"words/marlin/fp4", 4, 8, kRows, kCols, pairs, {marlin4, spread_nibbles()}},
      {"layer/w13/shuffle_rows",
       4,
       32,
       kRows,
       kCols,
       pairs,
       {PadHalves{.multiple = 256}, PadCols{.multiple = 512}, InterleaveHalves{1},
        ShuffleRows{128}}},
      {"layer/w13/tile_16x16",
       4,
       32,
       kRows,
       kCols,
       pairs,
       {order_of({{row, 16}, {col, 32}, {row, 1, 16}, {col, 1, 32}})}},
      {"layer/w13/marlin", 4, 32, kRows, kCols, pairs, {marlin4}},
      {"layer/w2/marlin", 4, 32, kCols, kCols, GateOrder::none, {marlin4}},
  };
}

void register_all() {
  for (const Case& item : families()) {
    const bool layer = item.name.starts_with("layer");
    for (const bool back : {false, true}) {
      for (const int threads : layer ? std::vector<int>{1, 2} : std::vector<int>{1}) {
        const std::string name = "BM_layout/" + item.name + (back ? "/undo" : "/apply") +
                                 "/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(name.c_str(),
                                     [item, back, threads](benchmark::State& state) {
                                       time_case(state, item, back, threads);
                                     })
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime();
      }
    }
  }
}

}  // namespace
}  // namespace moeref

int main(int argc, char** argv) { return moeref::bench::run(argc, argv, moeref::register_all); }
