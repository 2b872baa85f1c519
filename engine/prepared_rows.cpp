#include "engine/prepared_rows.hpp"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "quant/error.hpp"
#include "quant/parallel.hpp"
#include "simd/float_environment.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

struct NoScratch {};

}  // namespace

const simd::KernelTable& chosen_kernels() {
  const simd::KernelTable* kernels = simd::active_kernels();
  if (kernels == nullptr) {
    fail("MOEREF_ISA", "{} is not available on this CPU or in this build; unset it",
         std::getenv("MOEREF_ISA"));
  }
  return *kernels;
}

PreparedRows::PreparedRows(const ScaledMatrix& matrix, std::span<const std::int64_t> rows,
                           int threads)
    : matrix_(matrix),
      rows_(rows.begin(), rows.end()),
      values_(rows.size() * to_size(matrix.cols)),
      finite_(rows.size()) {
  const simd::DefaultFloatEnvironment environment;
  check_storage(matrix_);
  struct Scratch {
    std::optional<OperandDecoder> decoder;
  };
  parallel_for<Scratch>(count(), threads, [&](std::int64_t i, Scratch& scratch) {
    if (!scratch.decoder) scratch.decoder.emplace(matrix_);
    scratch.decoder->decode(rows_[to_size(i)], 1, values_.data() + i * matrix_.cols, 0, 1,
                            &finite_[to_size(i)]);
  });
}

const PreparedRows::Measured& PreparedRows::measured(std::span<const std::int64_t> bounds,
                                                     int threads) const {
  if (measured_ && std::equal(bounds.begin(), bounds.end(), measured_->bounds.begin(),
                              measured_->bounds.end())) {
    return *measured_;
  }
  Measured made;
  made.bounds.assign(bounds.begin(), bounds.end());
  const std::int64_t segments = std::ssize(bounds) - 1;
  const simd::GemmKernels& kernels = *chosen_kernels().gemm;
  made.windows.resize(to_size(count() * segments));
  made.scales.resize(made.windows.size());
  parallel_for<NoScratch>(count(), threads, [&](std::int64_t i, NoScratch&) {
    for (std::int64_t s = 0; s < segments; ++s) {
      const std::int64_t begin = bounds[to_size(s)];
      const std::size_t at = to_size(i * segments + s);
      made.scales[at] = wide_scale(matrix_, rows_[to_size(i)], begin);
      if (!is_finite(i)) continue;
      made.windows[at] = window_of(
          values(i).subspan(to_size(begin), to_size(bounds[to_size(s + 1)] - begin)), kernels);
    }
  });
  return measured_.emplace(std::move(made));
}

std::span<const SlicedRow> PreparedRows::sliced(std::int64_t block_cols, int threads) const {
  if (sliced_.empty() || sliced_.front().block_cols() != block_cols) {
    std::vector<SlicedRow> made(to_size(count()));
    const simd::SliceKernels& kernels = *chosen_kernels().slices;
    struct Scratch {
      std::vector<double> zeros;
    };
    parallel_for<Scratch>(count(), threads, [&](std::int64_t i, Scratch& scratch) {
      scratch.zeros.resize(to_size(matrix_.cols));
      made[to_size(i)] = SlicedRow(is_finite(i) ? values(i) : scratch.zeros, block_cols, kernels);
    });
    sliced_ = std::move(made);
  }
  return sliced_;
}

std::span<const LinedRow> PreparedRows::lined(std::int64_t block_cols, int threads) const {
  if (lined_.empty() || lined_.front().block_cols() != block_cols) {
    const std::span<const SlicedRow> rows = sliced(block_cols, threads);
    std::vector<LinedRow> made(rows.size());
    parallel_for<NoScratch>(count(), threads, [&](std::int64_t i, NoScratch&) {
      made[to_size(i)] = LinedRow(rows[to_size(i)]);
    });
    lined_ = std::move(made);
  }
  return lined_;
}

}  // namespace moeref
