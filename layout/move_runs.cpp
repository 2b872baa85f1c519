#include <algorithm>
#include <cstring>
#include <numeric>

#include "layout/move_placement.hpp"
#include "layout/move_run_tile.hpp"
#include "layout/move_words.hpp"

namespace moeref::move {
namespace {

constexpr std::int64_t kDirectRun = 16;  ///< bytes: from here on rows need not be packed before

constexpr std::int64_t kMaxBox = 1 << 18;  ///< bytes of rows that are packed before

/// Copies one run; `Bytes` 0: of `bytes`, at least 16.
template <int Bytes>
void copy_run(const std::byte* from, std::byte* to, std::int64_t bytes) {
  if constexpr (Bytes > 0) {
    std::memcpy(to, from, Bytes);
  } else if (bytes >= 256) {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  } else {
    for (std::int64_t at = 0; at + 16 <= bytes; at += 16) std::memcpy(to + at, from + at, 16);
    std::memcpy(to + bytes - 16, from + bytes - 16, 16);
  }
}

/// What all placements by tables of runs share: tiles one after the other, words where tiles hold
/// whole ones.
class RunPlacement : public Placement {
 public:
  RunPlacement(const UnitDigits& units, const BitPermutation* words, RunTile tile,
               std::int64_t wanted_cols)
      : words_(words), tile_(std::move(tile)), unit_bits_(units.unit_bits) {
    const std::int64_t unit_factor = 8 / unit_bits_;
    // Columns of a box are whole elements, in pairs if they are FP4.
    const std::int64_t cols = std::lcm(tile_.box_cols, 16 * unit_factor);
    const std::int64_t wanted = std::min(wanted_cols, kMaxBox / tile_.box_rows) * unit_factor;
    shape_.cols = even_step(units.cols, cols, wanted);
    shape_.rows = even_step(units.rows, tile_.box_rows, 65536 * unit_factor / shape_.cols);
    bases_ = TileBases(units, tile_.digits, shape_);
    puts_words_ = tile_.whole_units() * unit_bits_ % 32 == 0;
  }

 protected:
  /// put_tile(base, runs of the tile, where to)
  template <typename PutTile>
  void put_tiles(const Box& box, std::byte* placed, PutTile put_tile) const {
    for (const TileBases::Base& base : bases_.of(box)) {
      std::byte* to = placed + bases_.place(box, base);
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
    for (const TileBases::Base& base : bases_.of(box)) {
      const std::int64_t place = bases_.place(box, base);
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
  DirectRuns(const UnitDigits& units, const BitPermutation* words, RunTile run_tile)
      : RunPlacement(units, words, std::move(run_tile), 4096) {}

  void put(const Box& box, const std::byte* const* rows, std::byte* placed,
           PlacementScratch&) const override {
    const std::int64_t bytes = tile().run;
    put_tiles(box, placed, [&](const TileBases::Base& base, std::int64_t count, std::byte* to) {
      const std::byte* const* from = rows + base.row;
      const RunTile::Run* runs = tile().runs.data();
      for (std::int64_t i = 0; i < count; ++i, to += bytes) {
        copy_run<Bytes>(from[runs[i].row] + base.col + runs[i].col, to, bytes);
      }
    });
  }
  void take(const Box& box, const std::byte* placed, std::byte* const* rows,
            PlacementScratch& scratch) const override {
    const std::int64_t bytes = tile().run;
    take_tiles(box, placed, scratch,
               [&](const TileBases::Base& base, std::int64_t count, const std::byte* from) {
                 std::byte* const* to = rows + base.row;
                 const RunTile::Run* runs = tile().runs.data();
                 for (std::int64_t i = 0; i < count; ++i, from += bytes) {
                   copy_run<Bytes>(from, to[runs[i].row] + base.col + runs[i].col, bytes);
                 }
               });
  }
};

/// Runs of a few bytes, from rows packed into a box.
template <int Bytes>
class PackedRuns : public RunPlacement {
 public:
  PackedRuns(const UnitDigits& units, const BitPermutation* words, RunTile run_tile)
      : RunPlacement(units, words, std::move(run_tile), 512) {
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
      : RunPlacement(units, words, std::move(run_tile), 256) {
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

template <typename Made>
std::unique_ptr<Placement> make(const UnitDigits& units, const BitPermutation* words,
                                std::int64_t run, std::int64_t max_box) {
  return std::make_unique<Made>(units, words, make_run_tile(units, run, 256, max_box));
}

}  // namespace

std::unique_ptr<Placement> make_run_placement(const UnitDigits& units,
                                              const BitPermutation* words) {
  constexpr std::int64_t kPackedBox = 65536;
  const std::int64_t run = units.run();
  if (units.unit_bits == 4) return make<NibbleRuns>(units, words, 1, 2 * kPackedBox);
  if (run == 16) return make<DirectRuns<16>>(units, words, run, 4 * kPackedBox);
  if (run == 32) return make<DirectRuns<32>>(units, words, run, 4 * kPackedBox);
  if (run == 64) return make<DirectRuns<64>>(units, words, run, 4 * kPackedBox);
  if (run >= kDirectRun) return make<DirectRuns<0>>(units, words, run, 4 * kPackedBox);
  if (run % 8 == 0) return make<PackedRuns<8>>(units, words, 8, kPackedBox);
  if (run % 4 == 0) return make<PackedRuns<4>>(units, words, 4, kPackedBox);
  if (run % 2 == 0) return make<PackedRuns<2>>(units, words, 2, kPackedBox);
  return make<PackedRuns<1>>(units, words, 1, kPackedBox);
}

}  // namespace moeref::move
