#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <numeric>

#include "layout/move/copy.hpp"
#include "layout/move/placement.hpp"
#include "layout/move/run_tile.hpp"
#include "layout/move/stream.hpp"
#include "layout/move/words.hpp"
#include "quant/tensor.hpp"

namespace moeref::move {
namespace {

/// Of the output: the lines of a tile and of its box stay in the first cache.
constexpr std::int64_t kTileUnits = 1024;

/// Copies one run; `Bytes` 0: of `bytes`.
template <int Bytes>
void copy_run(const std::byte* from, std::byte* to, std::int64_t bytes) {
  if constexpr (Bytes > 0) {
    std::memcpy(to, from, Bytes);
  } else {
    copy_bytes(from, to, bytes);
  }
}

/// to[i] = from[offsets[i]], bytes.
void gather_bytes(const std::byte* from, const std::int32_t* offsets, std::byte* to,
                  std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    std::uint64_t word = 0;
    for (int lane = 0; lane < 8; ++lane) {
      word |= std::to_integer<std::uint64_t>(from[offsets[i + lane]]) << (8 * lane);
    }
    std::memcpy(to + i, &word, 8);
  }
  for (; i < count; ++i) to[i] = from[offsets[i]];
}

void scatter_bytes(const std::byte* from, const std::int32_t* offsets, std::byte* to,
                   std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[offsets[i]] = from[i];
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
  /// make_tile(base, runs of the tile, where to): in memory of the thread. stream_tile: the same
  /// straight in the output; false if it does not.
  template <typename MakeTile, typename StreamTile>
  void put_tiles(const Box& box, std::byte* placed, PlacementScratch& scratch, MakeTile make_tile,
                 StreamTile stream_tile) const {
    const TileBases::Places places(bases_, box);
    scratch.tile.resize(static_cast<std::size_t>(tile_bytes(std::ssize(tile_.runs))));
    std::byte* tile = scratch.tile.data();
    for (const TileBases::Base& base : bases_.of(box)) {
      const std::int64_t count = tile_.count(box, base);
      const std::int64_t bytes = tile_bytes(count);
      if (words_ == nullptr && stream_tile(base, count, placed + places[base])) continue;
      make_tile(base, count, tile);
      if (words_ != nullptr && puts_words_) move_words(words_->groups(), tile, tile, bytes);
      stream_bytes(tile, placed + places[base], bytes);
    }
  }
  /// take_together(base of the first, runs of a tile, where from): `Together` tiles whose bases are
  /// one run apart in a row. take_tile(base, runs of the tile, where from): any other.
  template <std::size_t Together, typename TakeTogether, typename TakeTile>
  void take_tiles(const Box& box, const std::byte* placed, PlacementScratch& scratch,
                  TakeTogether take_together, TakeTile take_tile) const {
    const TileBases::Places places(bases_, box);
    const std::vector<TileBases::Base>& bases = bases_.of(box);
    for (std::size_t i = 0; i < bases.size(); ++i) {
      const TileBases::Base& base = bases[i];
      const std::int64_t count = tile_.count(box, base);
      if (i + Together < bases.size()) {
        prefetch_tile(placed + places[bases[i + Together]], placed + places[base], count);
      }
      if constexpr (Together > 1) {
        if (words_ == nullptr && follow(bases, i, Together)) {
          std::array<const std::byte*, Together> from;
          for (std::size_t j = 0; j < Together; ++j) from[j] = placed + places[bases[i + j]];
          take_together(base, count, from);
          i += Together - 1;
          continue;
        }
      }
      const std::int64_t place = places[base];
      const std::byte* from =
          words_ == nullptr ? placed + place
                            : undo_words(*words_, placed, place, tile_bytes(count), scratch.words);
      take_tile(base, count, from);
    }
  }

  const RunTile& tile() const { return tile_; }

 private:
  /// Whether tiles [first, first + count) follow each other in a row, one run apart.
  bool follow(const std::vector<TileBases::Base>& bases, std::size_t first,
              std::size_t count) const {
    const bool same_count = !tile_.cut || tile_.digits.back().axis == Axis::row;
    if (!same_count || first + count > bases.size()) return false;
    for (std::size_t i = 1; i < count; ++i) {
      const TileBases::Base& base = bases[first + i];
      if (base.row != bases[first].row) return false;
      if (base.col != bases[first].col + static_cast<std::int64_t>(i) * tile_.run) return false;
    }
    return true;
  }
  /// If it does not follow the tile that is taken now.
  void prefetch_tile(const std::byte* next, const std::byte* now, std::int64_t count) const {
    if (next != now + tile_bytes(count)) prefetch(next, tile_bytes(count));
  }
  std::int64_t tile_bytes(std::int64_t runs) const { return runs * tile_.run * unit_bits_ / 8; }

  const BitPermutation* words_;
  RunTile tile_;
  int unit_bits_;
  TileBases bases_;
};

/// Runs of `Bytes` bytes; 0: of any number.
template <int Bytes>
class ByteRuns : public RunPlacement {
 public:
  ByteRuns(const UnitDigits& units, const BitPermutation* words, RunTile run_tile,
           std::int64_t cols_together)
      : RunPlacement(units, words, std::move(run_tile), kAnywhere ? cols_together : units.cols) {
    shape_.pitch = packed_pitch(shape_.cols);
    shape_.rows_anywhere = kAnywhere;
    for (const RunTile::Run& run : tile().runs) {
      offsets_.push_back(static_cast<std::int32_t>(run.row * shape_.pitch + run.col));
    }
  }

  void put(const Box& box, const std::byte* const* rows, std::byte* placed,
           PlacementScratch& scratch) const override {
    put_tiles(
        box, placed, scratch,
        [&](const TileBases::Base& base, std::int64_t count, std::byte* to) {
          kAnywhere ? copy_far_runs(rows, base, count, to)
                    : copy_near_runs(rows[0], base, count, to);
        },
        [&](const TileBases::Base& base, std::int64_t count, std::byte* to) {
          return kAnywhere && stream_far_runs(rows, base, count, to);
        });
  }
  void take(const Box& box, const std::byte* placed, std::byte* packed,
            PlacementScratch& scratch) const override {
    const std::int64_t bytes = run_bytes();
    const std::int32_t* const offsets = offsets_.data();
    take_tiles<kTogether>(
        box, placed, scratch,
        [&](const TileBases::Base& base, std::int64_t count, const auto& from) {
          std::byte* to = packed + base.row * shape_.pitch + base.col;
          for (std::int64_t i = 0; i < count; ++i) {
            std::array<std::byte, kTogether * Bytes> runs;
            for (std::size_t j = 0; j < kTogether; ++j) {
              std::memcpy(runs.data() + j * Bytes, from[j] + i * Bytes, Bytes);
            }
            std::memcpy(to + offsets[i], runs.data(), runs.size());
          }
        },
        [&](const TileBases::Base& base, std::int64_t count, const std::byte* from) {
          std::byte* to = packed + base.row * shape_.pitch + base.col;
          for (std::int64_t i = 0; i < count; ++i) {
            copy_run<Bytes>(from + i * bytes, to + offsets[i], bytes);
          }
        });
  }

 private:
  static constexpr bool kAnywhere = Bytes == 0 || Bytes >= 16;  ///< faster than to pack rows before
  static constexpr std::size_t kTogether = Bytes == 4 ? 4 : 1;

  std::int64_t run_bytes() const { return Bytes > 0 ? Bytes : tile().run; }
  /// Of rows that lie anywhere.
  const std::byte* far_run(const std::byte* const* rows, const TileBases::Base& base,
                           std::int64_t i) const {
    const RunTile::Run& run = tile().runs[static_cast<std::size_t>(i)];
    return rows[base.row + run.row] + base.col + run.col;
  }
  void copy_far_runs(const std::byte* const* rows, const TileBases::Base& base, std::int64_t count,
                     std::byte* to) const {
    const std::int64_t bytes = run_bytes();
    for (std::int64_t i = 0; i < count; ++i) {
      copy_run<Bytes>(far_run(rows, base, i), to + i * bytes, bytes);
    }
  }
  /// Past the caches; false if they cannot be written so.
  bool stream_far_runs(const std::byte* const* rows, const TileBases::Base& base,
                       std::int64_t count, std::byte* to) const {
    const std::int64_t bytes = run_bytes();
    if (!streams_16(to, bytes)) return false;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::byte* from = far_run(rows, base, i);
      for (std::int64_t at = 0; at < bytes; at += 16) stream_16(from + at, to + i * bytes + at);
    }
    return true;
  }
  /// Of packed rows.
  void copy_near_runs(const std::byte* packed, const TileBases::Base& base, std::int64_t count,
                      std::byte* to) const {
    const std::byte* from = packed + base.row * shape_.pitch + base.col;
    if constexpr (Bytes == 1) {
      gather_bytes(from, offsets_.data(), to, count);
    } else {
      const std::int64_t bytes = run_bytes();
      const std::int32_t* const offsets = offsets_.data();
      for (std::int64_t i = 0; i < count; ++i) {
        copy_run<Bytes>(from + offsets[i], to + i * bytes, bytes);
      }
    }
  }

  std::vector<std::int32_t> offsets_;  ///< of the runs, in the packed rows
};

/// to[2i], to[2i + 1] = the nibbles of from[i]
void spread_nibbles(const std::byte* __restrict from, std::byte* __restrict to,
                    std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; ++i) {
    to[2 * i] = from[i] & std::byte{15};
    to[2 * i + 1] = from[i] >> 4;
  }
}

/// to[i] = from[i] | from[i + apart] << 4
void join_nibbles(const std::byte* __restrict from, std::int64_t apart, std::byte* __restrict to,
                  std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = from[i] | from[i + apart] << 4;
}

/// Undoes both: inside the box, where no joined byte stands, `from` holds 0.
void pack_nibbles(const std::byte* __restrict from, std::int64_t apart, std::byte* __restrict to,
                  std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; ++i) {
    const std::byte low = (from[2 * i] & std::byte{15}) | from[2 * i - apart] >> 4;
    const std::byte high = from[2 * i + 1] << 4 | (from[2 * i + 1 - apart] & std::byte{240});
    to[i] = low | high;
  }
}

/// Single nibbles. The innermost digit is even: a byte of the output joins two nibbles of the box
/// that are always as far apart. So the box is spread to one nibble a byte, each is joined with the
/// one `apart_` behind it, and whole bytes are moved.
class NibbleRuns : public RunPlacement {
 public:
  NibbleRuns(const UnitDigits& units, const BitPermutation* words, RunTile run_tile,
             std::int64_t cols_together)
      : RunPlacement(units, words, std::move(run_tile), cols_together) {
    const RunTile::Run& second = tile().runs[1];
    // `apart_` before a row's first columns is no column of the row above.
    shape_.pitch = packed_pitch((shape_.cols + second.col + 1) / 2);
    for (std::size_t run = 0; run < tile().runs.size(); run += 2) {
      offsets_.push_back(place(tile().runs[run]));
    }
    apart_ = place(second);
  }

  void put(const Box& box, const std::byte* const* rows, std::byte* placed,
           PlacementScratch& scratch) const override {
    const std::int64_t nibbles = 2 * box.rows * shape_.pitch;
    scratch.nibbles.resize(static_cast<std::size_t>(nibbles + apart_));
    spread_nibbles(rows[0], scratch.nibbles.data(), nibbles / 2);
    std::byte* const joined = make_joined(nibbles, scratch);
    join_nibbles(scratch.nibbles.data(), apart_, joined, nibbles);
    put_tiles(
        box, placed, scratch,
        [&](const TileBases::Base& base, std::int64_t count, std::byte* to) {
          gather_bytes(joined + place(base), offsets_.data(), to, count / 2);
        },
        [](const TileBases::Base&, std::int64_t, std::byte*) { return false; });
  }
  void take(const Box& box, const std::byte* placed, std::byte* packed,
            PlacementScratch& scratch) const override {
    const std::int64_t nibbles = 2 * box.rows * shape_.pitch;
    std::byte* const joined = make_joined(nibbles, scratch);
    take_tiles<1>(
        box, placed, scratch, [](const auto&...) {},
        [&](const TileBases::Base& base, std::int64_t count, const std::byte* from) {
          scatter_bytes(from, offsets_.data(), joined + place(base), count / 2);
        });
    pack_nibbles(joined, apart_, packed, nibbles / 2);
  }

 private:
  /// Of a run or a tile's base in the spread box.
  template <typename RowAndCol>
  std::int32_t place(const RowAndCol& at) const {
    return static_cast<std::int32_t>(at.row * 2 * shape_.pitch + at.col);
  }
  /// `apart_` zeros come before.
  std::byte* make_joined(std::int64_t nibbles, PlacementScratch& scratch) const {
    const auto needed = static_cast<std::size_t>(apart_ + nibbles);
    if (scratch.joined.size() < needed) scratch.joined.resize(needed);
    return scratch.joined.data() + apart_;
  }

  std::vector<std::int32_t> offsets_;  ///< of pairs of runs, in the spread box
  std::int64_t apart_ = 0;
};

}  // namespace

std::unique_ptr<Placement> make_run_placement(const UnitDigits& units, const BitPermutation* words,
                                              std::int64_t cols_together) {
  constexpr std::int64_t kBox = 1 << 17;  ///< units that a tile may reach over
  const std::int64_t run = units.run();
  const auto make = [&]<typename Runs>(std::int64_t units_of_run) -> std::unique_ptr<Placement> {
    const std::int64_t max_runs = std::max<std::int64_t>(kTileUnits / units_of_run, 1);
    return std::make_unique<Runs>(units, words, make_run_tile(units, units_of_run, max_runs, kBox),
                                  cols_together);
  };
  if (units.unit_bits == 4) return make.template operator()<NibbleRuns>(1);
  if (run == 16) return make.template operator()<ByteRuns<16>>(16);
  if (run >= 16) return make.template operator()<ByteRuns<0>>(run);
  if (run % 8 == 0) return make.template operator()<ByteRuns<8>>(8);
  if (run % 4 == 0) return make.template operator()<ByteRuns<4>>(4);
  if (run % 2 == 0) return make.template operator()<ByteRuns<2>>(2);
  return make.template operator()<ByteRuns<1>>(1);
}

}  // namespace moeref::move
