// The memory that apply and undo take beside source and destination: every allocation is counted.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "layout/step.hpp"

namespace {

std::atomic<std::int64_t> held{0};
std::atomic<std::int64_t> most_held{0};

/// In front of each block, as large as the strictest alignment.
constexpr std::size_t kHeader = 64;

void* take(std::size_t size) {
  void* block = std::malloc(size + kHeader);
  if (block == nullptr) throw std::bad_alloc();
  *static_cast<std::size_t*>(block) = size;
  const std::int64_t now = held += static_cast<std::int64_t>(size);
  std::int64_t most = most_held;
  while (most < now && !most_held.compare_exchange_weak(most, now)) {
  }
  return static_cast<std::byte*>(block) + kHeader;
}

void give(void* address) noexcept {
  if (address == nullptr) return;
  void* block = static_cast<std::byte*>(address) - kHeader;
  held -= static_cast<std::int64_t>(*static_cast<std::size_t*>(block));
  std::free(block);
}

}  // namespace

void* operator new(std::size_t size) { return take(size); }
void* operator new[](std::size_t size) { return take(size); }
void operator delete(void* address) noexcept { give(address); }
void operator delete[](void* address) noexcept { give(address); }
void operator delete(void* address, std::size_t) noexcept { give(address); }
void operator delete[](void* address, std::size_t) noexcept { give(address); }

namespace moeref {
namespace {

/// The most that `run` held beside what there was before.
template <typename Run>
std::int64_t memory_of(Run run) {
  const std::int64_t before = held;
  most_held = before;
  run();
  return most_held - before;
}

struct Case {
  std::string steps;
  int bits;
  std::int64_t rows;
  std::int64_t cols;
};

/// Tensors of 48 MB and more: larger than what may be taken, so that a copy of one is seen.
const Case kCases[] = {
    {"swap_halves pad_halves(512) interleave_halves(64)", 8, 6144, 4096},
    {"shuffle_rows(128)", 4, 6144, 8192},
    {"pad_rows(512) pad_cols(512) swizzle_128x4", 8, 12288, 2048},
    {"block_major_k(128)", 8, 6144, 4096},
    {"block_major_k(256)", 4, 6144, 8192},
    {"sm90_weights_v2 sm90_bits_fp4", 4, 6144, 8192},
    {"marlin_repack(4)", 4, 6144, 8192},
    {"marlin_repack(8)", 8, 6144, 4096},
    {"hopper_mx_value(3) hopper_mx_bits", 4, 6144, 8192},
    {"hopper_mx_scale(8)", 8, 12288, 2048},
    {"deepgemm_mn_major", 32, 6144, 1024},
    {"aiter_shuffle_weight(16,16,8)", 8, 6144, 4096},
    {"aiter_pack_int4", 4, 6144, 8192},
    {"cdna4_mx_scale", 8, 12288, 2048},
};

class LayoutMemory : public ::testing::TestWithParam<Case> {};

TEST_P(LayoutMemory, IsLessThan16MbForEachThread) {
  constexpr std::int64_t kMost = 16 << 20;
  const Case& item = GetParam();
  const std::int64_t bytes = 2 * item.rows * item.cols * item.bits / 8;
  const std::vector<std::byte> input(static_cast<std::size_t>(bytes), std::byte{0x35});
  const DType dtype = item.bits == 32 ? DType::f32 : item.bits == 16 ? DType::bf16 : DType::u8;
  const std::int64_t stored = item.cols * item.bits / info(dtype).bits;
  const TensorStack stack =
      dense_stack({"w13", dtype, {2, item.rows, stored}, input}, GateOrder::gate_up, item.bits);
  std::vector<Step> steps;
  ASSERT_NO_THROW(steps = parse_steps("steps", item.steps));
  Plan plan;
  const std::int64_t tables = memory_of([&] { plan = make_plan("w13", stack, steps, nullptr); });
  EXPECT_LT(tables, kMost / 4) << "plan";  // as long as the axes, not as the tensor
  const auto made_bytes = static_cast<std::size_t>(plan.map.experts * plan.map.out_bytes());
  std::vector<std::byte> made(made_bytes);
  std::vector<std::byte> back(input.size());
  for (const int threads : {1, 2}) {
    EXPECT_LT(memory_of([&] { apply(plan.map, stack, {}, made, threads); }), kMost * threads);
    EXPECT_LT(memory_of([&] { undo(plan.map, made, {}, back, threads); }), kMost * threads);
    EXPECT_TRUE(back == input);
  }
}

INSTANTIATE_TEST_SUITE_P(Steps, LayoutMemory, ::testing::ValuesIn(kCases), [](const auto& tested) {
  std::string name = tested.param.steps + "_" + std::to_string(tested.param.bits);
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
});

}  // namespace
}  // namespace moeref
