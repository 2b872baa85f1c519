#include "tests/layout/random_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "layout/move/element.hpp"

namespace moeref::testing {
namespace {

using move::element;
using move::set_element;

std::uint32_t mask(int bits) { return bits == 32 ? ~0u : (1u << bits) - 1; }

class PlaceRecoder : public Recoder {
 public:
  explicit PlaceRecoder(int bits) : bits_(bits) {}
  std::string name() const override { return "place_recoder"; }
  int in_bits() const override { return bits_; }
  int out_bits() const override { return bits_; }
  bool invertible() const override { return true; }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    shift(at, in, out, 1);
  }
  void restore(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    shift(at, in, out, ~0u);
  }

 private:
  void shift(const Place& at, std::span<const std::byte> in, std::span<std::byte> out,
             std::uint32_t sign) const {
    ASSERT_SIZES(in, out);
    const auto count = static_cast<std::int64_t>(in.size()) * 8 / bits_;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto place = static_cast<std::uint32_t>(at.expert * 7 + at.row * 31 + (at.col + i) * 5);
      set_element(out.data(), i, bits_,
                  (element(in.data(), i, bits_) + sign * place) & mask(bits_));
    }
  }
  static void ASSERT_SIZES(std::span<const std::byte> in, std::span<std::byte> out) {
    if (in.size() != out.size()) throw std::logic_error("place_recoder: sizes differ");
  }
  int bits_;
};

class ResizeRecoder : public Recoder {
 public:
  ResizeRecoder(int in_bits, int out_bits) : in_bits_(in_bits), out_bits_(out_bits) {}
  std::string name() const override { return "resize_recoder"; }
  int in_bits() const override { return in_bits_; }
  int out_bits() const override { return out_bits_; }
  bool invertible() const override { return out_bits_ >= in_bits_; }
  void rewrite(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    resize(in, in_bits_, out, out_bits_);
  }
  void restore(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    resize(in, out_bits_, out, in_bits_);
  }

 private:
  static void resize(std::span<const std::byte> in, int from, std::span<std::byte> out, int to) {
    const auto count = static_cast<std::int64_t>(in.size()) * 8 / from;
    if (static_cast<std::int64_t>(out.size()) * 8 != count * to) {
      throw std::logic_error("resize_recoder: sizes differ");
    }
    for (std::int64_t i = 0; i < count; ++i) {
      set_element(out.data(), i, to, element(in.data(), i, from) & mask(to));
    }
  }
  int in_bits_;
  int out_bits_;
};

class Maker {
 public:
  Maker(std::mt19937_64& random, const MapSizes& sizes) : random_(random), sizes_(sizes) {}

  RandomMap make() {
    do {
      made_ = {};
      make_recoders();
      make_stack();
      made_.map =
          IndexMap(made_.stack.experts, made_.stack.rows(), made_.stack.cols, bits_.front());
      made_.map.element_bits = bits_.back();
      change_rows();
      change_cols();
      change_order();
      if (one_in(4) && made_.map.out_bytes() % 4 == 0) made_.map.words = random_bits();
    } while (!movable());
    made_.text += fmt::format(" experts {} rows {} -> {} cols {} -> {} digits", made_.map.experts,
                              made_.map.in_rows, made_.map.rows.size(), made_.map.in_cols,
                              made_.map.cols.size());
    for (const PlacedDigit& digit : made_.map.digits) {
      made_.text +=
          fmt::format(" {}{}x{}", digit.axis == Axis::row ? 'r' : 'c', digit.weight, digit.size);
    }
    if (made_.map.words) made_.text += " words";
    return std::move(made_);
  }

 private:
  std::int64_t pick(std::int64_t low, std::int64_t high) { return draw(random_, low, high); }
  bool one_in(std::int64_t count) { return pick(1, count) == 1; }
  bool nibbles() const { return std::find(bits_.begin(), bits_.end(), 4) != bits_.end(); }
  std::int64_t unit() const { return nibbles() ? 2 : 1; }

  bool movable() const {
    try {
      check_movable("random", made_.map, made_.recoders, bits_.front());
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

  void make_recoders() {
    constexpr int kBits[] = {4, 8, 16, 32};
    bits_ = {kBits[pick(0, 3)]};
    for (std::int64_t count = one_in(3) ? pick(1, 3) : 0; count > 0; --count) {
      const int before = bits_.back();
      const int after = one_in(2) ? before : kBits[pick(0, 3)];
      made_.recoders.push_back(after == before ? place_recoder(before)
                                               : resize_recoder(before, after));
      bits_.push_back(after);
    }
    for (const int bits : bits_) made_.text += fmt::format("{} bits ", bits);
  }

  /// Sizes that are often round.
  std::int64_t size(std::int64_t most) {
    constexpr std::int64_t kRound[] = {1, 2, 4, 8, 16, 32, 64};
    const std::int64_t step = one_in(4) ? 1 : std::min(kRound[pick(0, 6)], most);
    return step * pick(1, most / step);
  }

  void make_stack() {
    TensorStack& stack = made_.stack;
    stack.name = "random";
    stack.element_bits = bits_.front();
    stack.experts = pick(1, sizes_.max_experts);
    stack.halves = static_cast<int>(pick(1, 2));
    stack.half_rows = one_in(20) ? 0 : size(sizes_.max_rows);
    stack.cols =
        one_in(20) ? 0 : size(std::max<std::int64_t>(sizes_.max_cols / unit(), 1)) * unit();
    const std::int64_t per_half = stack.half_rows * stack.cols;
    const std::int64_t offset = 2 * pick(0, 3);
    const std::int64_t elements = offset + stack.experts * stack.halves * per_half;
    made_.storage = random_bytes(random_, elements * stack.element_bits / 8 + 4);
    const std::int64_t order = pick(0, 3);
    for (std::int64_t expert = 0; expert < stack.experts; ++expert) {
      for (std::int64_t half = 0; half < stack.halves; ++half) {
        Plane plane{made_.storage.data(), offset + (expert * stack.halves + half) * per_half,
                    stack.cols, 1};
        if (order == 1) {  // rows of the halves alternate
          plane.origin = offset + expert * stack.halves * per_half + half * stack.cols;
          plane.row_stride = stack.halves * stack.cols;
        }
        if (order == 2) {  // the last half first
          plane.origin = offset + (expert * stack.halves + stack.halves - 1 - half) * per_half;
        }
        if (order == 3) {  // stored transposed, columns of the halves alternate
          plane.origin = offset + expert * stack.halves * per_half + half;
          plane.row_stride = stack.halves;
          plane.col_stride = stack.halves * stack.half_rows;
        }
        stack.planes.push_back(plane);
      }
    }
    made_.text += fmt::format("storage {} halves {}", order, stack.halves);
  }

  std::byte fill() { return static_cast<std::byte>(one_in(3) ? 0 : pick(0, 255)); }

  void pad(AxisTable& table, std::int64_t parts, std::int64_t step) {
    const int number = static_cast<int>(made_.map.pad_steps.size());
    made_.map.pad_steps.push_back("pad");
    const std::int64_t present = table.size() / parts;
    const std::int64_t multiple = step * pick(1, 16);
    table.pad_parts(parts, std::max<std::int64_t>((present + multiple) / multiple, 1) * multiple,
                    number, fill());
  }

  void change_rows() {
    AxisTable& rows = made_.map.rows;
    for (std::int64_t changes = pick(0, 3); changes > 0; --changes) {
      const std::int64_t size = rows.size();
      const std::int64_t kind = pick(0, 3);
      if (kind == 0) pad(rows, size % 2 == 0 ? pick(1, 2) : 1, 1);
      if (size == 0) continue;
      if (kind == 1) {
        std::vector<std::int64_t> order(static_cast<std::size_t>(size));
        std::iota(order.begin(), order.end(), 0);
        std::shuffle(order.begin(), order.end(), random_);
        const std::int64_t kept = one_in(3) ? pick(1, size) : size;
        rows.permute(kept, [&](std::int64_t i) { return order[static_cast<std::size_t>(i)]; });
      }
      if (kind == 2 && one_in(2)) {
        const std::int64_t times = pick(2, 4);
        rows.permute(size * times, [&](std::int64_t i) { return i / times; });
      }
      if (kind == 3 && one_in(4))
        rows.permute(size, [&](std::int64_t) { return pick(0, size - 1); });
    }
  }

  void change_cols() {
    AxisTable& cols = made_.map.cols;
    const std::int64_t unit = this->unit();
    for (std::int64_t changes = pick(0, 2); changes > 0; --changes) {
      const std::int64_t size = cols.size();
      const std::int64_t kind = pick(0, 3);
      if (kind <= 1) pad(cols, 1, unit);
      if (size == 0) continue;
      if (kind == 2 && one_in(2)) {  // cut
        const std::int64_t kept = pick(1, size / unit) * unit;
        const std::int64_t first = pick(0, (size - kept) / unit) * unit;
        cols.permute(kept, [&](std::int64_t i) { return first + i; });
      }
      if (kind == 3 && one_in(3)) {  // pieces from anywhere
        std::vector<std::int64_t> from(static_cast<std::size_t>(size / unit));
        for (std::int64_t& piece : from) piece = pick(0, size / unit - 1) * unit;
        cols.permute(size, [&](std::int64_t i) {
          return from[static_cast<std::size_t>(i / unit)] + i % unit;
        });
      }
    }
  }

  /// Digits of an axis, from the lowest.
  std::vector<Digit> digits(Axis axis, std::int64_t extent) {
    std::vector<Digit> chain;
    std::int64_t weight = 1;
    for (std::int64_t count = pick(0, 4); count > 0 && extent > 0; --count) {
      const std::int64_t left = extent / weight;
      std::vector<std::int64_t> divisors;
      for (std::int64_t size = 2; size <= std::min<std::int64_t>(left, 64); ++size) {
        const bool even_first = !nibbles() || axis == Axis::row || weight > 1 || size % 2 == 0;
        if (left % size == 0 && even_first) divisors.push_back(size);
      }
      if (divisors.empty()) break;
      const auto last = static_cast<std::int64_t>(divisors.size()) - 1;
      const std::int64_t size = divisors[static_cast<std::size_t>(pick(0, one_in(2) ? last : 0))];
      chain.push_back({axis, weight, size});
      weight *= size;
    }
    chain.push_back({axis, weight, Digit::kRest});
    return chain;
  }

  void change_order() {
    if (one_in(8)) return made_.map.place({{Axis::row, 1}, {Axis::col, 1}});
    std::vector<Digit> order = digits(Axis::row, made_.map.rows.size());
    for (const Digit& digit : digits(Axis::col, made_.map.cols.size())) order.push_back(digit);
    std::shuffle(order.begin(), order.end(), random_);
    if (one_in(3)) {  // a run of columns last
      const auto lowest = std::find_if(order.begin(), order.end(), [](const Digit& digit) {
        return digit.axis == Axis::col && digit.weight == 1;
      });
      std::rotate(lowest, lowest + 1, order.end());
    }
    made_.map.place(order);
  }

  std::shared_ptr<const BitPermutation> random_bits() {
    std::array<int, 32> source;
    std::iota(source.begin(), source.end(), 0);
    std::shuffle(source.begin(), source.end(), random_);
    return std::make_shared<BitPermutation>("random_bits", source);
  }

  std::mt19937_64& random_;
  MapSizes sizes_;
  std::vector<int> bits_;  ///< of the elements, before and after each recoder
  RandomMap made_;
};

}  // namespace

std::int64_t draw(std::mt19937_64& random, std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
}

std::vector<std::byte> random_bytes(std::mt19937_64& random, std::int64_t count) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(count));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() >> 32);
  return bytes;
}

std::shared_ptr<const Recoder> place_recoder(int bits) {
  return std::make_shared<PlaceRecoder>(bits);
}

std::shared_ptr<const Recoder> resize_recoder(int in_bits, int out_bits) {
  return std::make_shared<ResizeRecoder>(in_bits, out_bits);
}

RandomMap random_map(std::mt19937_64& random, const MapSizes& sizes) {
  return Maker(random, sizes).make();
}

}  // namespace moeref::testing
