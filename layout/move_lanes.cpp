#include <algorithm>
#include <cstring>
#include <optional>

#include "layout/move_placement.hpp"
#include "layout/move_words.hpp"

// A word of 64 bits holds 8 bytes or 16 nibbles in lanes. The lanes are numbered by 3 or 4 bits; a
// digit of a power of two is some bits of a row or column number. The lowest column bits number the
// lanes of a word that is read, the innermost digits those of a word that is written. So 2^n words
// are read, each differing bit is exchanged between lane number and word number, the lane bits are
// brought into order, and 2^n words are written.

namespace moeref::move {
namespace {

constexpr int kBatch = 8;  ///< tiles that go through the stages side by side
constexpr std::int64_t kMaxBoxUnits = 1 << 18;

/// A digit of size 2.
struct Bit {
  Axis axis;
  std::int64_t weight;
  std::int64_t stride;
  bool operator==(const Bit&) const = default;
};

/// What happens to the words of a tile: lanes that `mask` covers go `shift` bits up.
struct Stage {
  int word_bit;  ///< exchanged between words that differ in this bit; -1 = inside each word
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

  /// Lane bit `at` and the word bit number `word_bit`, which is `bit`, change places.
  void exchange(std::size_t at, int word_bit, const Bit& bit) {
    stages.push_back({word_bit, unit_bits_ << at, mask(at, lanes_.size())});
    lanes_[at] = bit;
  }
  /// Brings the lane bits into the order `wanted`.
  void sort(const std::vector<Bit>& wanted) {
    for (std::size_t at = 0; at < wanted.size(); ++at) {
      const auto found = std::find(lanes_.begin(), lanes_.end(), wanted[at]);
      const auto from = static_cast<std::size_t>(found - lanes_.begin());
      if (from == at) continue;
      stages.push_back({-1, (unit_bits_ << from) - (unit_bits_ << at), mask(from, at)});
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

using Batch = std::uint64_t[kBatch];

void run_stage(const Stage& stage, Batch* words, int count) {
  const int shift = stage.shift;
  const std::uint64_t mask = stage.mask;
  if (stage.word_bit < 0) {
    for (int word = 0; word < count; ++word) {
      for (std::uint64_t& lanes : words[word]) {
        const std::uint64_t moved = ((lanes >> shift) ^ lanes) & mask;
        lanes ^= moved ^ (moved << shift);
      }
    }
    return;
  }
  for (int word = 0; word < count; ++word) {
    if ((word >> stage.word_bit & 1) != 0) continue;
    std::uint64_t* low = words[word];
    std::uint64_t* high = words[word | 1 << stage.word_bit];
    for (int i = 0; i < kBatch; ++i) {
      const std::uint64_t moved = ((low[i] >> shift) ^ high[i]) & mask;
      high[i] ^= moved;
      low[i] ^= moved << shift;
    }
  }
}

void move_bits(const std::vector<BitPermutation::Group>& groups, Batch* words, int count) {
  for (int word = 0; word < count; ++word) {
    Batch after = {};
    for (const BitPermutation::Group& group : groups) {
      const std::uint64_t mask = group.mask | std::uint64_t{group.mask} << 32;
      for (int i = 0; i < kBatch; ++i) {
        after[i] |= ((words[word][i] & mask) << group.left) >> group.right;
      }
    }
    std::memcpy(words[word], after, sizeof after);
  }
}

class LanePlacement : public Placement {
 public:
  LanePlacement(const UnitDigits& units, const BitPermutation* words, const BoxShape& shape,
                StageList stages, const std::vector<Bit>& read_bits,
                const std::vector<Bit>& written_bits, const std::vector<PlacedDigit>& tile)
      : words_(words),
        stages_(std::move(stages.stages)),
        unit_bits_(units.unit_bits),
        bases_(units, tile, shape) {
    shape_ = shape;
    count_ = 1 << read_bits.size();
    for (int word = 0; word < count_; ++word) {
      std::int64_t packed = 0;
      std::int64_t placed = 0;
      for (std::size_t bit = 0; bit < read_bits.size(); ++bit) {
        if ((word >> bit & 1) == 0) continue;
        const Bit& read = read_bits[bit];
        packed += read.axis == Axis::row ? read.weight * shape.pitch : read.weight * unit_bits_ / 8;
        placed += written_bits[bit].stride * unit_bits_ / 8;
      }
      packed_[word] = packed;
      placed_[word] = placed;
    }
  }

  void put(const Box& box, const std::byte* const* rows, std::byte* placed,
           PlacementScratch&) const override {
    for_batches(box, [&](const std::int64_t* packed_at, const std::int64_t* placed_at) {
      Batch words[16];
      for (int word = 0; word < count_; ++word) {
        for (int i = 0; i < kBatch; ++i) {
          std::memcpy(&words[word][i], rows[0] + packed_at[i] + packed_[word], 8);
        }
      }
      for (const Stage& stage : stages_) run_stage(stage, words, count_);
      if (words_ != nullptr) move_bits(words_->groups(), words, count_);
      for (int i = 0; i < kBatch; ++i) {
        for (int word = 0; word < count_; ++word) {
          std::memcpy(placed + placed_at[i] + placed_[word], &words[word][i], 8);
        }
      }
    });
  }

  void take(const Box& box, const std::byte* placed, std::byte* const* rows,
            PlacementScratch&) const override {
    for_batches(box, [&](const std::int64_t* packed_at, const std::int64_t* placed_at) {
      Batch words[16];
      for (int i = 0; i < kBatch; ++i) {
        for (int word = 0; word < count_; ++word) {
          std::memcpy(&words[word][i], placed + placed_at[i] + placed_[word], 8);
        }
      }
      if (words_ != nullptr) move_bits(words_->inverse_groups(), words, count_);
      for (auto stage = stages_.rbegin(); stage != stages_.rend(); ++stage) {
        run_stage(*stage, words, count_);
      }
      for (int word = 0; word < count_; ++word) {
        for (int i = 0; i < kBatch; ++i) {
          std::memcpy(rows[0] + packed_at[i] + packed_[word], &words[word][i], 8);
        }
      }
    });
  }

 private:
  /// Calls move(where kBatch tiles begin in the packed rows, and in the output). The last tile
  /// fills up the last batch: moving a tile twice does no harm.
  template <typename Move>
  void for_batches(const Box& box, Move move) const {
    const std::vector<TileBases::Base>& bases = bases_.of(box);
    for (std::size_t first = 0; first < bases.size(); first += kBatch) {
      std::int64_t packed_at[kBatch];
      std::int64_t placed_at[kBatch];
      for (std::size_t i = 0; i < kBatch; ++i) {
        const TileBases::Base& base = bases[std::min(first + i, bases.size() - 1)];
        packed_at[i] = base.row * shape_.pitch + std::int64_t{base.col} * unit_bits_ / 8;
        placed_at[i] = bases_.place(box, base);
      }
      move(packed_at, placed_at);
    }
  }

  const BitPermutation* words_;
  std::vector<Stage> stages_;
  int unit_bits_;
  int count_ = 1;                 ///< words of a tile
  std::int64_t packed_[16] = {};  ///< where each is, from the tile's first, in the packed rows ...
  std::int64_t placed_[16] = {};  ///< ... and in the output
  TileBases bases_;
};

}  // namespace

std::unique_ptr<Placement> make_lane_placement(const UnitDigits& units,
                                               const BitPermutation* words) {
  const std::size_t lane_bits = units.unit_bits == 4 ? 4 : 3;
  const auto written = lane_bits_written(units, lane_bits);
  if (!written) return nullptr;
  std::vector<Bit> read;
  for (std::size_t at = 0; at < lane_bits; ++at) {
    const auto bit = column_bit(units, std::int64_t{1} << at);
    if (!bit) return nullptr;
    read.push_back(*bit);
  }

  const auto holds = [](const std::vector<Bit>& bits, const Bit& bit) {
    return std::find(bits.begin(), bits.end(), bit) != bits.end();
  };
  std::vector<Bit> word_read;     // bits that number the words read and the lanes written
  std::vector<Bit> word_written;  // bits that number the lanes read and the words written
  StageList stages(read, units.unit_bits);
  std::vector<std::size_t> homeless;
  const auto exchange = [&](std::size_t at, const Bit& bit) {
    word_written.push_back(stages.lanes()[at]);
    stages.exchange(at, static_cast<int>(word_read.size()), bit);
    word_read.push_back(bit);
  };
  // Where both places suit, the bit goes to its last place at once.
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
  std::int64_t cols = std::int64_t{1} << lane_bits;
  std::vector<PlacedDigit> tile;
  for (const Bit& bit : read) tile.push_back({bit.axis, bit.weight, 2, bit.stride});
  for (const Bit& bit : word_read) {
    tile.push_back({bit.axis, bit.weight, 2, bit.stride});
    std::int64_t& size = bit.axis == Axis::row ? rows : cols;
    size = std::max(size, 2 * bit.weight);
  }
  if (cols % (std::int64_t{1} << lane_bits) != 0) return nullptr;
  if (rows * cols > kMaxBoxUnits) return nullptr;
  const std::int64_t unit_factor = 8 / units.unit_bits;
  BoxShape shape;
  shape.cols = even_step(units.cols, cols, std::min(512 * unit_factor, kMaxBoxUnits / rows));
  shape.rows = even_step(units.rows, rows, 65536 * unit_factor / shape.cols);
  shape.pitch = packed_pitch(shape.cols / unit_factor);
  return std::make_unique<LanePlacement>(units, words, shape, std::move(stages), word_read,
                                         word_written, tile);
}

}  // namespace moeref::move
