#include <algorithm>
#include <cstring>
#include <numeric>

#include "layout/move/copy.hpp"
#include "layout/move/placement.hpp"
#include "layout/move/run_tile.hpp"
#include "layout/move/words.hpp"
#include "quant/tensor.hpp"

namespace moeref::move {
namespace {

constexpr std::int64_t kDirectRun = 16;  ///< bytes: from here on rows need not be packed before

constexpr std::int64_t kMaxRuns = 256;  ///< of a tile

/// Copies one run; `Bytes` 0: of `bytes`.
template <int Bytes>
void copy_run(const std::byte* from, std::byte* to, std::int64_t bytes) {
  if constexpr (Bytes > 0) {
    std::memcpy(to, from, Bytes);
  } else {
    copy_bytes(from, to, bytes);
  }
}

/// What all placements by tables of runs share: tiles one after the other, words where tiles hold
/// whole ones.
class RunPlacement : public Placement {
 public:
  RunPlacement(const UnitDigits& units, const BitPermutation* words, RunTile tile,
               std::int64_t cols_together)
      : words_(words), tile_(std::move(tile)), unit_bits_(units.unit_bits) {
    // Columns of a box are whole elements, in pairs if they are FP4.
    const std::int64_t whole_elements = 16 * 8 / unit_bits_;
    shape_ =
        choose_box(units, tile_.box_rows, std::lcm(tile_.box_cols, whole_elements), cols_together);
    bases_ = TileBases(units, tile_.digits, shape_);
    puts_words_ = tile_.whole_units() * unit_bits_ % 32 == 0;
  }

 protected:
  /// put_tile(base, runs of the tile, where to)
  template <typename PutTile>
  void put_tiles(const Box& box, std::byte* placed, PutTile put_tile) const {
    const TileBases::Places places(bases_, box);
    for (const TileBases::Base& base : bases_.of(box)) {
      std::byte* to = placed + places[base];
      const std::int64_t count = tile_.count(box, base);
      put_tile(base, count, to);
      if (words_ != nullptr && puts_words_) {
        move_words(words_->groups(), to, to, count * tile_.run * unit_bits_ / 8);
      }
    }
  }
  /// take_tile(base, runs of the tile, where from)
  template <typename TakeTile>
  void take_tiles(const Box& box, const std::byte* placed, PlacementScratch& scratch,
                  TakeTile take_tile) const {
    const TileBases::Places places(bases_, box);
    for (const TileBases::Base& base : bases_.of(box)) {
      const std::int64_t place = places[base];
      const std::int64_t count = tile_.count(box, base);
      const std::byte* from = words_ == nullptr
                                  ? placed + place
                                  : undo_words(*words_, placed, place,
                                               count * tile_.run * unit_bits_ / 8, scratch.words);
      take_tile(base, count, from);
    }
  }

  const RunTile& tile() const { return tile_; }

 private:
  const BitPermutation* words_;
  RunTile tile_;
  int unit_bits_;
  TileBases bases_;
};

/// Runs of at least 16 bytes, straight from rows that lie anywhere. `Bytes` 0: any size.
template <int Bytes>
class DirectRuns : public RunPlacement {
 public:
  DirectRuns(const UnitDigits& units, const BitPermutation* words, RunTile run_tile,
             std::int64_t cols_together)
      : RunPlacement(units, words, std::move(run_tile), cols_together) {}

  void put(const Box& box, const std::byte* const* rows, std::byte* placed,
           PlacementScratch&) const override {
    const std::int64_t bytes = Bytes > 0 ? Bytes : tile().run;
    TilePointers<const std::byte> pointers(tile().runs);
    put_tiles(box, placed, [&](const TileBases::Base& base, std::int64_t count, std::byte* to) {
      const std::byte* const* from = pointers.at(rows, base.row, count);
      const std::int64_t col = base.col;
      std::int64_t i = 0;
      for (; i + 4 <= count; i += 4, to += 4 * bytes) {
        for (int j = 0; j < 4; ++j) copy_run<Bytes>(from[i + j] + col, to + j * bytes, bytes);
      }
      for (; i < count; ++i, to += bytes) copy_run<Bytes>(from[i] + col, to, bytes);
    });
  }
  void take(const Box& box, const std::byte* placed, std::byte* const* rows,
            PlacementScratch& scratch) const override {
    const std::int64_t bytes = Bytes > 0 ? Bytes : tile().run;
    TilePointers<std::byte> pointers(tile().runs);
    take_tiles(box, placed, scratch,
               [&](const TileBases::Base& base, std::int64_t count, const std::byte* from) {
                 std::byte* const* to = pointers.at(rows, base.row, count);
                 const std::int64_t col = base.col;
                 std::int64_t i = 0;
                 for (; i + 4 <= count; i += 4, from += 4 * bytes) {
                   for (int j = 0; j < 4; ++j) {
                     copy_run<Bytes>(from + j * bytes, to[i + j] + col, bytes);
                   }
                 }
                 for (; i < count; ++i, from += bytes) {
                   copy_run<Bytes>(from, to[i] + col, bytes);
                 }
               });
  }

 private:
  /// Where the runs of a tile are that begins in column 0 of the box: the same for all tiles that
  /// begin in one row.
  template <typename Byte>
  class TilePointers {
   public:
    explicit TilePointers(const std::vector<RunTile::Run>& runs) : runs_(runs) {}
    Byte* const* at(Byte* const* rows, std::int64_t row, std::int64_t count) {
      if (row != row_) known_ = 0;
      row_ = row;
      for (; known_ < count; ++known_) {
        const RunTile::Run& run = runs_[static_cast<std::size_t>(known_)];
        pointers_[known_] = rows[row + run.row] + run.col;
      }
      return pointers_;
    }

   private:
    const std::vector<RunTile::Run>& runs_;
    Byte* pointers_[kMaxRuns];
    std::int64_t row_ = -1;
    std::int64_t known_ = 0;
  };
};

/// Runs of a few bytes, from rows packed into a box.
template <int Bytes>
class PackedRuns : public RunPlacement {
 public:
  PackedRuns(const UnitDigits& units, const BitPermutation* words, RunTile run_tile)
      : RunPlacement(units, words, std::move(run_tile), units.cols) {
    shape_.pitch = packed_pitch(shape_.cols);
    for (const RunTile::Run& run : tile().runs) {
      offsets_.push_back(static_cast<std::int32_t>(run.row * shape_.pitch + run.col));
    }
  }

  void put(const Box& box, const std::byte* const* rows, std::byte* placed,
           PlacementScratch&) const override {
    put_tiles(box, placed, [&](const TileBases::Base& base, std::int64_t count, std::byte* to) {
      const std::byte* from = rows[0] + base.row * shape_.pitch + base.col;
      const std::int32_t* offsets = offsets_.data();
      std::int64_t i = 0;
      if constexpr (Bytes == 1) {
        for (; i + 8 <= count; i += 8) {
          std::uint64_t word = 0;
          for (int lane = 0; lane < 8; ++lane) {
            word |= std::to_integer<std::uint64_t>(from[offsets[i + lane]]) << (8 * lane);
          }
          std::memcpy(to + i, &word, 8);
        }
      }
      if constexpr (Bytes == 4) {
        for (; i + 2 <= count; i += 2) {
          const std::uint64_t word = load<std::uint32_t>(from + offsets[i]) |
                                     std::uint64_t{load<std::uint32_t>(from + offsets[i + 1])}
                                         << 32;
          std::memcpy(to + i * 4, &word, 8);
        }
      }
      for (; i < count; ++i) std::memcpy(to + i * Bytes, from + offsets[i], Bytes);
    });
  }
  void take(const Box& box, const std::byte* placed, std::byte* const* rows,
            PlacementScratch& scratch) const override {
    take_tiles(box, placed, scratch,
               [&](const TileBases::Base& base, std::int64_t count, const std::byte* from) {
                 std::byte* to = rows[0] + base.row * shape_.pitch + base.col;
                 const std::int32_t* offsets = offsets_.data();
                 for (std::int64_t i = 0; i < count; ++i) {
                   std::memcpy(to + offsets[i], from + i * Bytes, Bytes);
                 }
               });
  }

 private:
  std::vector<std::int32_t> offsets_;  ///< of the runs, in the packed rows
};

void spread_nibbles(const std::byte* from, std::byte* to, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; ++i) {
    to[2 * i] = from[i] & std::byte{15};
    to[2 * i + 1] = from[i] >> 4;
  }
}

void join_nibbles(const std::byte* from, std::byte* to, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; ++i) to[i] = from[2 * i] | from[2 * i + 1] << 4;
}

/// Single nibbles: the box is spread to one byte each before, and joined after.
class NibbleRuns : public RunPlacement {
 public:
  NibbleRuns(const UnitDigits& units, const BitPermutation* words, RunTile run_tile)
      : RunPlacement(units, words, std::move(run_tile), units.cols) {
    shape_.pitch = packed_pitch(shape_.cols / 2);
    for (const RunTile::Run& run : tile().runs) {
      offsets_.push_back(static_cast<std::int32_t>(run.row * 2 * shape_.pitch + run.col));
    }
  }

  void put(const Box& box, const std::byte* const* rows, std::byte* placed,
           PlacementScratch& scratch) const override {
    prepare(box, scratch);
    spread_nibbles(rows[0], scratch.nibbles.data(), packed_bytes(box));
    put_tiles(box, placed, [&](const TileBases::Base& base, std::int64_t count, std::byte* to) {
      const std::byte* from = scratch.nibbles.data() + base.row * 2 * shape_.pitch + base.col;
      for (std::int64_t i = 0; i < count; i += 2) {
        to[i / 2] = from[offset(i)] | from[offset(i + 1)] << 4;
      }
    });
  }
  void take(const Box& box, const std::byte* placed, std::byte* const* rows,
            PlacementScratch& scratch) const override {
    prepare(box, scratch);
    take_tiles(box, placed, scratch,
               [&](const TileBases::Base& base, std::int64_t count, const std::byte* from) {
                 std::byte* to = scratch.nibbles.data() + base.row * 2 * shape_.pitch + base.col;
                 for (std::int64_t i = 0; i < count; i += 2) {
                   to[offset(i)] = from[i / 2] & std::byte{15};
                   to[offset(i + 1)] = from[i / 2] >> 4;
                 }
               });
    join_nibbles(scratch.nibbles.data(), rows[0], packed_bytes(box));
  }

 private:
  std::int32_t offset(std::int64_t run) const { return offsets_[static_cast<std::size_t>(run)]; }
  /// From the first byte of the first row of a box to the last of its last.
  std::int64_t packed_bytes(const Box& box) const {
    return (box.rows - 1) * shape_.pitch + box.cols / 2;
  }
  void prepare(const Box& box, PlacementScratch& scratch) const {
    const auto needed = static_cast<std::size_t>(2 * packed_bytes(box));
    if (scratch.nibbles.size() < needed) scratch.nibbles.resize(needed);
  }

  std::vector<std::int32_t> offsets_;
};

}  // namespace

std::unique_ptr<Placement> make_run_placement(const UnitDigits& units, const BitPermutation* words,
                                              std::int64_t cols_together) {
  constexpr std::int64_t kPackedBox = 1 << 16;
  constexpr std::int64_t kDirectBox = 1 << 18;
  const std::int64_t run = units.run();
  const auto direct = [&]<int Bytes>() -> std::unique_ptr<Placement> {
    return std::make_unique<DirectRuns<Bytes>>(
        units, words, make_run_tile(units, run, kMaxRuns, kDirectBox), cols_together);
  };
  const auto packed = [&]<int Bytes>() -> std::unique_ptr<Placement> {
    return std::make_unique<PackedRuns<Bytes>>(units, words,
                                               make_run_tile(units, Bytes, kMaxRuns, kPackedBox));
  };
  if (units.unit_bits == 4) {
    return std::make_unique<NibbleRuns>(units, words,
                                        make_run_tile(units, 1, kMaxRuns, 2 * kPackedBox));
  }
  if (run == 16) return direct.template operator()<16>();
  if (run == 32) return direct.template operator()<32>();
  if (run == 64) return direct.template operator()<64>();
  if (run >= kDirectRun) return direct.template operator()<0>();
  if (run % 8 == 0) return packed.template operator()<8>();
  if (run % 4 == 0) return packed.template operator()<4>();
  if (run % 2 == 0) return packed.template operator()<2>();
  return packed.template operator()<1>();
}

}  // namespace moeref::move
