#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "io/synth/synth_tensor.hpp"
#include "io/synth/weight_quantizer.hpp"

namespace moeref {

/// The largest magnitude of drawn bf16 tensors: what a scale of the whole is made of. Drawn once,
/// then remembered; any thread may ask.
class DrawnAmax {
 public:
  /// Before any thread asks.
  void add(SynthTensor values) { members_.push_back(std::move(values)); }
  float of(std::uint64_t seed) const;

 private:
  std::vector<SynthTensor> members_;
  mutable std::mutex mutex_;
  mutable std::optional<std::pair<std::uint64_t, float>> known_;  ///< seed, largest magnitude
};

/// A weight whose tensors in the file are what a quantizer makes of drawn numbers. Numbers and
/// codes exist a few rows at a time: those of one row of blocks, or about 64 Ki.
class QuantizedWeight {
 public:
  /// `values`: BF16 [..., rows, cols]; a scale for many rows needs one matrix. `amax`: of all
  /// tensors that share its global scale.
  QuantizedWeight(std::shared_ptr<const WeightQuantizer> quantizer, const QuantizedForm& stored,
                  SynthTensor values, std::shared_ptr<const DrawnAmax> amax);

  /// Bytes [first, first + out.size()) of a part as stored.
  void make_bytes(WeightPart part, std::uint64_t seed, std::uint64_t first,
                  std::span<std::byte> out) const;

  /// Numbers that a byte of a part depends on, rounded up.
  std::uint64_t draws_per_byte(WeightPart part) const;

 private:
  std::uint64_t line_bytes(WeightPart part) const;
  Quantized quantize_lines(std::uint64_t seed, std::uint64_t first, std::uint64_t count) const;
  std::vector<std::byte> stored_bytes(WeightPart part, const Quantized& quantized) const;

  std::shared_ptr<const WeightQuantizer> quantizer_;
  QuantizedForm stored_;
  SynthTensor values_;
  std::shared_ptr<const DrawnAmax> amax_;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::int64_t line_rows_ = 1;  ///< a line: the rows that have block scales in common
};

}  // namespace moeref
