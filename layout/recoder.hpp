#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace moeref {

/// Where the first element of a piece of a row is, in the tensor's input matrix.
struct Place {
  std::int64_t expert = 0;
  std::int64_t row = 0;
  std::int64_t col = 0;
};

/// Rewrites codes on their way through a layout: requantization, E4M3 to FNUZ, scales to another
/// container. It sees pieces of input rows, packed, any number of elements (FP4: even ones), from
/// any thread.
class Recoder {
 public:
  virtual ~Recoder() = default;
  virtual std::string name() const = 0;
  virtual int in_bits() const = 0;
  virtual int out_bits() const = 0;
  /// `in` holds count * in_bits / 8 bytes, `out` count * out_bits / 8; they do not overlap.
  virtual void rewrite(const Place& at, std::span<const std::byte> in,
                       std::span<std::byte> out) const = 0;
  /// Whether `restore` gives back what was rewritten. If not, undo leaves the rewritten codes.
  virtual bool invertible() const { return false; }
  /// The inverse of rewrite: `in` rewritten codes, `out` the original ones.
  virtual void restore(const Place& at, std::span<const std::byte> in,
                       std::span<std::byte> out) const;
};

}  // namespace moeref
