#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "layout/move/placement.hpp"
#include "layout/move/words.hpp"
#include "quant/tensor.hpp"

// A word of 64 bits holds 8 bytes or 16 nibbles in lanes. The lanes are numbered by 3 or 4 bits; a
// digit of a power of two is some bits of a row or column number. The lowest column bits number the
// lanes of a word that is read, the innermost digits those of a word that is written. So 2^n words
// are read, each differing bit is exchanged between lane number and word number, the lane bits are
// brought into order, and 2^n words are written.

namespace moeref::move {
namespace {

constexpr std::int64_t kMaxBoxUnits = 1 << 18;

/// A digit of size 2.
struct Bit {
  Axis axis;
  std::int64_t weight;
  std::int64_t stride;
  bool operator==(const Bit&) const = default;
};

/// A step of a tile's words: the lanes that `mask` covers change places with those `shift` bits
/// above them.
struct Stage {
  int shift;
  std::uint64_t mask;
};

/// The innermost digits as bits, if they are powers of two up to `count` bits.
std::optional<std::vector<Bit>> lane_bits_written(const UnitDigits& units, std::size_t count) {
  std::vector<Bit> bits;
  for (auto digit = units.digits.rbegin(); digit != units.digits.rend(); ++digit) {
    for (std::int64_t part = 1; digit->size % (2 * part) == 0; part *= 2) {
      bits.push_back({digit->axis, digit->weight * part, digit->stride * part});
      if (bits.size() == count) return bits;
    }
    if ((digit->size & (digit->size - 1)) != 0) return std::nullopt;
  }
  return std::nullopt;
}

/// The bit of the columns with this weight.
std::optional<Bit> column_bit(const UnitDigits& units, std::int64_t weight) {
  for (const PlacedDigit& digit : units.digits) {
    if (digit.axis != Axis::col || weight < digit.weight) continue;
    const std::int64_t part = weight / digit.weight;
    if (part >= digit.size) continue;
    const bool is_bit = weight % digit.weight == 0 && digit.size % (2 * part) == 0;
    return is_bit ? std::optional<Bit>({Axis::col, weight, digit.stride * part}) : std::nullopt;
  }
  return std::nullopt;
}

/// Builds the stages while it follows which bit stands at which lane bit.
class StageList {
 public:
  StageList(std::vector<Bit> lanes, int unit_bits)
      : lanes_(std::move(lanes)), unit_bits_(unit_bits) {}

  /// Lane bit `at` and the next bit of the word numbers, which is `bit`, change places.
  void exchange(std::size_t at, const Bit& bit) {
    stages.push_back({unit_bits_ << at, mask(at, lanes_.size())});
    lanes_[at] = bit;
  }
  /// Brings the lane bits into the order `wanted`.
  void sort(const std::vector<Bit>& wanted) {
    for (std::size_t at = 0; at < wanted.size(); ++at) {
      const auto found = std::find(lanes_.begin(), lanes_.end(), wanted[at]);
      const auto from = static_cast<std::size_t>(found - lanes_.begin());
      if (from == at) continue;
      stages.push_back({(unit_bits_ << from) - (unit_bits_ << at), mask(from, at)});
      std::swap(lanes_[at], lanes_[from]);
    }
  }
  const std::vector<Bit>& lanes() const { return lanes_; }

  std::vector<Stage> stages;

 private:
  /// The lanes in whose number bit `clear` is 0 and bit `set` is 1 (if there is such a bit).
  std::uint64_t mask(std::size_t clear, std::size_t set) const {
    std::uint64_t mask = 0;
    for (std::uint64_t lane = 0; lane < 64u / static_cast<unsigned>(unit_bits_); ++lane) {
      const bool wanted =
          (lane >> clear & 1) == 0 && (set == lanes_.size() || (lane >> set & 1) == 1);
      const std::uint64_t ones = (std::uint64_t{1} << unit_bits_) - 1;
      if (wanted) mask |= ones << (lane * static_cast<unsigned>(unit_bits_));
    }
    return mask;
  }

  std::vector<Bit> lanes_;
  int unit_bits_;
};

/// The same word of two tiles.
using Pair = WordPair;
constexpr std::size_t kPair = 2;

/// Stage number `bit` of those between words: word numbers differ in this bit.
template <int Bit, std::size_t Words>
void exchange(Pair (&words)[Words], const Stage& stage) {
  const int shift = stage.shift;
  const Pair mask = {stage.mask, stage.mask};
  constexpr std::size_t kBit = std::size_t{1} << Bit;
  for (std::size_t pair = 0; pair < Words / 2; ++pair) {
    const std::size_t low = pair / kBit * (2 * kBit) + pair % kBit;
    const std::size_t high = low + kBit;
    const Pair moved = ((words[low] >> shift) ^ words[high]) & mask;
    words[high] ^= moved;
    words[low] ^= moved << shift;
  }
}

template <std::size_t Words>
void shift_inside(Pair (&words)[Words], const Stage& stage) {
  const int shift = stage.shift;
  const Pair mask = {stage.mask, stage.mask};
  for (Pair& word : words) {
    const Pair moved = ((word >> shift) ^ word) & mask;
    word ^= moved ^ (moved << shift);
  }
}

/// What happens between reading and writing the words of a tile; WordBits stages are between words,
/// in the order of the bits of their numbers, then come those inside.
struct Stages {
  std::vector<Stage> list;
  const BitPermutation* bits;  ///< may be null

  template <int WordBits>
  void put(Pair (&words)[1 << WordBits]) const {
    const auto between = [&]<std::size_t... Bit>(std::index_sequence<Bit...>) {
      (exchange<Bit>(words, list[Bit]), ...);
    };
    between(std::make_index_sequence<WordBits>());
    for (std::size_t i = WordBits; i < list.size(); ++i) shift_inside(words, list[i]);
    if (bits != nullptr) move_bits(bits->groups(), words);
  }
  template <int WordBits>
  void take(Pair (&words)[1 << WordBits]) const {
    if (bits != nullptr) move_bits(bits->inverse_groups(), words);
    for (std::size_t i = list.size(); i-- > WordBits;) shift_inside(words, list[i]);
    const auto between = [&]<std::size_t... Bit>(std::index_sequence<Bit...>) {
      (exchange<WordBits - 1 - Bit>(words, list[WordBits - 1 - Bit]), ...);
    };
    between(std::make_index_sequence<WordBits>());
  }
};

/// Columns of a map that do not fill words, as if they did: the last digit of the columns is
/// longer. What it has too much is never written.
UnitDigits with_whole_words(UnitDigits units, std::int64_t lanes) {
  for (PlacedDigit& digit : units.digits) {
    const bool last = digit.axis == Axis::col && digit.weight * digit.size == units.cols;
    if (!last || lanes % digit.weight != 0) continue;
    units.cols = ceil_div(units.cols, lanes) * lanes;
    digit.size = units.cols / digit.weight;
    units.col_place = axis_places(units.digits, Axis::col, units.cols);
  }
  return units;
}

/// How the words of a tile are read from packed rows and written to the output.
struct TileWords {
  std::vector<Bit> read;            ///< bits that number the words read and the lanes written
  std::vector<Bit> written;         ///< bits that number the lanes read and the words written
  std::vector<PlacedDigit> digits;  ///< all of a tile
};

/// Tiles of 2^WordBits words.
template <int WordBits>
class LanePlacement : public Placement {
 public:
  /// `units`: with whole words; `cols`: without.
  LanePlacement(const UnitDigits& units, std::int64_t cols, const BoxShape& shape, Stages stages,
                const TileWords& tile)
      : stages_(std::move(stages)),
        unit_bits_(units.unit_bits),
        cols_(cols),
        filled_cols_(units.cols),
        bases_(units, tile.digits, shape, kPair) {
    shape_ = shape;
    for (std::size_t word = 0; word < kWords; ++word) {
      for (std::size_t bit = 0; bit < WordBits; ++bit) {
        if ((word >> bit & 1) == 0) continue;
        const Bit& read = tile.read[bit];
        const Bit& written = tile.written[bit];
        packed_[word] +=
            read.axis == Axis::row ? read.weight * shape.pitch : read.weight * unit_bits_ / 8;
        placed_[word] += written.stride * unit_bits_ / 8;
        word_col_[word] += written.weight;
      }
    }
  }

  void put(const Box& box, const std::byte* const* rows, std::byte* placed,
           PlacementScratch&) const override {
    for_pairs(box, rows[0], placed, [this](const auto& packed, const auto& to, auto is_inside) {
      Pair words[kWords];
      for (std::size_t word = 0; word < kWords; ++word) {
        words[word] = Pair{load<std::uint64_t>(packed[0] + packed_[word]),
                           load<std::uint64_t>(packed[1] + packed_[word])};
      }
      stages_.template put<WordBits>(words);
      const bool whole = is_inside(kWords - 1, 0) && is_inside(kWords - 1, 1);
      if (whole && to[1] == to[0] + 8) {
        for (std::size_t word = 0; word < kWords; ++word) {
          std::memcpy(to[0] + placed_[word], &words[word], 16);
        }
        return;
      }
      for (std::size_t word = 0; word < kWords; ++word) {
        for (std::size_t i = 0; i < kPair; ++i) {
          const std::uint64_t lanes = words[word][i];
          if (is_inside(word, i)) std::memcpy(to[i] + placed_[word], &lanes, 8);
        }
      }
    });
  }

  void take(const Box& box, const std::byte* placed, std::byte* packed_rows,
            PlacementScratch&) const override {
    for_pairs(box, packed_rows, placed,
              [this](const auto& packed, const auto& from, auto is_inside) {
                Pair words[kWords];
                const bool whole = is_inside(kWords - 1, 0) && is_inside(kWords - 1, 1);
                const bool adjacent = whole && from[1] == from[0] + 8;
                for (std::size_t word = 0; word < kWords; ++word) {
                  if (adjacent) {
                    std::memcpy(&words[word], from[0] + placed_[word], 16);
                    continue;
                  }
                  std::uint64_t lanes[kPair] = {};
                  for (std::size_t i = 0; i < kPair; ++i) {
                    if (is_inside(word, i)) lanes[i] = load<std::uint64_t>(from[i] + placed_[word]);
                  }
                  words[word] = Pair{lanes[0], lanes[1]};
                }
                stages_.template take<WordBits>(words);
                for (std::size_t word = 0; word < kWords; ++word) {
                  for (std::size_t i = 0; i < kPair; ++i) {
                    const std::uint64_t lanes = words[word][i];
                    std::memcpy(packed[i] + packed_[word], &lanes, 8);
                  }
                }
              });
  }

 private:
  static constexpr std::size_t kWords = std::size_t{1} << WordBits;

  /// Calls move(where two tiles begin in the packed rows, where in the output, which of their words
  /// the output has). The last tile may come twice: that does no harm.
  template <typename Packed, typename Placed, typename Move>
  void for_pairs(Box box, Packed* packed, Placed* placed, Move move) const {
    const std::int64_t cols_left = cols_ - box.col;
    if (box.cols == cols_left) box.cols = filled_cols_ - box.col;
    const TileBases::Places places(bases_, box);
    const std::int64_t pitch = shape_.pitch;
    const std::int64_t unit_bits = unit_bits_;
    const std::vector<TileBases::Base>& bases = bases_.of(box);
    const TileBases::Base* const end = bases.data() + bases.size();
    for (const TileBases::Base* base = bases.data(); base != end; base += kPair) {
      Packed* packed_at[kPair];
      Placed* placed_at[kPair];
      for (std::size_t i = 0; i < kPair; ++i) {
        packed_at[i] = packed + base[i].row * pitch + (base[i].col * unit_bits >> 3);
        placed_at[i] = placed + places[base[i]];
      }
      if (std::max(base[0].col, base[1].col) + word_col_[kWords - 1] < cols_left) {
        move(packed_at, placed_at, [](std::size_t, std::size_t) { return true; });
      } else {
        move(packed_at, placed_at, [&](std::size_t word, std::size_t i) {
          return base[i].col + word_col_[word] < cols_left;
        });
      }
    }
  }

  Stages stages_;
  int unit_bits_;
  std::int64_t cols_;
  std::int64_t filled_cols_;
  std::int64_t packed_[kWords] =
      {};  ///< where each word is, from the first, in the packed rows ...
  std::int64_t placed_[kWords] = {};    ///< ... in the output ...
  std::int64_t word_col_[kWords] = {};  ///< ... and which column its first lane comes from
  TileBases bases_;
};

}  // namespace

std::unique_ptr<Placement> make_lane_placement(const UnitDigits& real_units,
                                               const BitPermutation* words) {
  const std::size_t lane_bits = real_units.unit_bits == 4 ? 4 : 3;
  const std::int64_t lanes = std::int64_t{1} << lane_bits;
  const auto written = lane_bits_written(real_units, lane_bits);
  if (!written) return nullptr;
  const UnitDigits units = with_whole_words(real_units, lanes);
  std::vector<Bit> read;
  for (std::int64_t weight = 1; weight < lanes; weight *= 2) {
    const auto bit = column_bit(units, weight);
    if (!bit) return nullptr;
    read.push_back(*bit);
  }

  const auto holds = [](const std::vector<Bit>& bits, const Bit& bit) {
    return std::find(bits.begin(), bits.end(), bit) != bits.end();
  };
  TileWords tile;
  StageList stages(read, units.unit_bits);
  const auto exchange = [&](std::size_t at, const Bit& bit) {
    tile.written.push_back(stages.lanes()[at]);
    stages.exchange(at, bit);
    tile.read.push_back(bit);
  };
  // Where both places suit, the bit goes to its last place at once.
  std::vector<std::size_t> homeless;
  for (std::size_t at = 0; at < lane_bits; ++at) {
    if (holds(read, (*written)[at])) continue;
    if (holds(*written, read[at])) {
      homeless.push_back(at);
    } else {
      exchange(at, (*written)[at]);
    }
  }
  for (const std::size_t bit : homeless) {
    std::size_t at = 0;
    while (holds(*written, stages.lanes()[at])) ++at;
    exchange(at, (*written)[bit]);
  }
  stages.sort(*written);

  // A box holds whole tiles.
  std::int64_t rows = 1;
  std::int64_t cols = lanes;
  for (const Bit& bit : read) tile.digits.push_back({bit.axis, bit.weight, 2, bit.stride});
  for (const Bit& bit : tile.read) {
    tile.digits.push_back({bit.axis, bit.weight, 2, bit.stride});
    std::int64_t& size = bit.axis == Axis::row ? rows : cols;
    size = std::max(size, 2 * bit.weight);
  }
  if (cols % lanes != 0 || rows * cols > kMaxBoxUnits) return nullptr;
  BoxShape shape = choose_box(units, rows, cols, units.cols);
  shape.pitch = packed_pitch(shape.cols * units.unit_bits / 8);
  const auto make = [&]<int WordBits>() -> std::unique_ptr<Placement> {
    return std::make_unique<LanePlacement<WordBits>>(units, real_units.cols, shape,
                                                     Stages{stages.stages, words}, tile);
  };
  switch (tile.read.size()) {
    case 0:
      return make.template operator()<0>();
    case 1:
      return make.template operator()<1>();
    case 2:
      return make.template operator()<2>();
    case 3:
      return make.template operator()<3>();
    default:
      return make.template operator()<4>();
  }
}

}  // namespace moeref::move
