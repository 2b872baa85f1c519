#include <numeric>
#include <utility>

#include "engine/gemm.hpp"
#include "quant/parallel.hpp"

namespace moeref {

GemmInput::GemmInput(const ScaledMatrix& matrix, std::span<const std::int64_t> rows, int threads)
    : prepared_(std::make_shared<const PreparedRows>(matrix, rows, threads)), chosen_(rows.size()) {
  std::iota(chosen_.begin(), chosen_.end(), 0);
}

GemmInput::GemmInput(std::shared_ptr<const PreparedRows> prepared,
                     std::span<const std::int64_t> chosen)
    : prepared_(std::move(prepared)), chosen_(chosen.begin(), chosen.end()) {}

const PackedRows& GemmInput::packed(int threads) const {
  if (packed_) return *packed_;
  const auto row_block = static_cast<std::int64_t>(chosen_kernels().gemm->row_block);
  PackedRows made(count(), matrix().cols, row_block);
  struct NoScratch {};
  parallel_for<NoScratch>(count(), threads,
                          [&](std::int64_t row, NoScratch&) { made.put(row, values(row)); });
  return packed_.emplace(std::move(made));
}

}  // namespace moeref
