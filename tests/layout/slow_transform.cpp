#include "tests/layout/slow_transform.hpp"

#include <algorithm>
#include <array>
#include <cstring>

namespace moeref::judge {
namespace {

std::uint32_t get(const std::byte* data, std::int64_t index, int bits) {
  if (bits == 4) {
    return std::to_integer<std::uint32_t>(data[index / 2]) >> (4 * (index % 2)) & 15u;
  }
  std::uint32_t value = 0;
  std::memcpy(&value, data + index * (bits / 8), static_cast<std::size_t>(bits / 8));
  return value;
}

void put(std::byte* data, std::int64_t index, int bits, std::uint32_t value) {
  if (bits == 4) {
    const int shift = 4 * static_cast<int>(index % 2);
    const auto kept = std::to_integer<std::uint32_t>(data[index / 2]) & ~(15u << shift);
    data[index / 2] = static_cast<std::byte>(kept | value << shift);
    return;
  }
  std::memcpy(data + index * (bits / 8), &value, static_cast<std::size_t>(bits / 8));
}

}  // namespace

void slow_apply(const IndexMap& map, const TensorStack& in, const Recoders& recoders,
                std::span<std::byte> out) {
  const int in_bits = in.element_bits;
  for (std::int64_t expert = 0; expert < map.experts; ++expert) {
    const int bits = map.element_bits;
    std::vector<std::byte> matrix(static_cast<std::size_t>(map.in_rows * map.in_cols * bits / 8));
    std::vector<std::byte> piece;
    std::vector<std::byte> rewritten;
    for (std::int64_t row = 0; row < map.in_rows; ++row) {
      piece.resize(static_cast<std::size_t>(map.in_cols * in_bits / 8));
      if (map.in_cols > 0) in.read(expert, row, 0, map.in_cols, piece.data());
      for (const auto& recoder : recoders) {
        rewritten.resize(static_cast<std::size_t>(map.in_cols * recoder->out_bits() / 8));
        recoder->rewrite({expert, row, 0}, piece, rewritten);
        std::swap(piece, rewritten);
      }
      std::copy(piece.begin(), piece.end(), matrix.begin() + row * map.in_cols * bits / 8);
    }
    std::byte* to = out.data() + expert * map.out_bytes();
    for (std::int64_t place = 0; place < map.out_elements(); ++place) {
      const Origin origin = map.origin(place);
      std::uint32_t fill = 0;
      std::memset(&fill, std::to_integer<int>(origin.fill), sizeof fill);
      put(to, place, bits,
          origin.pad ? fill & (bits == 32 ? ~0u : (1u << bits) - 1)
                     : get(matrix.data(), origin.row * map.in_cols + origin.col, bits));
    }
    if (map.words) {
      for (std::int64_t word = 0; word < map.out_bytes() / 4; ++word) {
        put(to, word, 32, map.words->apply(get(to, word, 32)));
      }
    }
  }
}

UndoReport slow_undo(const IndexMap& map, std::span<const std::byte> in, const Recoders& recoders,
                     std::span<std::byte> out) {
  std::vector<UndoReport> reports(static_cast<std::size_t>(map.experts));
  const int bits = map.element_bits;
  const std::int64_t restored = restored_bits(map, recoders);
  for (std::int64_t expert = 0; expert < map.experts; ++expert) {
    UndoReport& report = reports[static_cast<std::size_t>(expert)];
    std::vector<std::byte> placed(in.begin() + expert * map.out_bytes(),
                                  in.begin() + (expert + 1) * map.out_bytes());
    if (map.words) {
      for (std::int64_t word = 0; word < map.out_bytes() / 4; ++word) {
        put(placed.data(), word, 32, map.words->undo(get(placed.data(), word, 32)));
      }
    }
    const std::int64_t elements = map.in_rows * map.in_cols;
    std::vector<std::byte> matrix(static_cast<std::size_t>(elements * bits / 8));
    std::vector<bool> seen(static_cast<std::size_t>(elements));
    for (std::int64_t place = 0; place < map.out_elements(); ++place) {
      const Origin origin = map.origin(place);
      const std::uint32_t value = get(placed.data(), place, bits);
      const std::int64_t position = expert * map.out_elements() + place;
      if (origin.pad) {
        std::uint32_t fill = 0;
        std::memset(&fill, std::to_integer<int>(origin.fill), sizeof fill);
        ++report.pads;
        if (value != (fill & (bits == 32 ? ~0u : (1u << bits) - 1))) {
          if (report.wrong_pads++ == 0) report.first_wrong_pad = position;
        }
        continue;
      }
      const std::int64_t element = origin.row * map.in_cols + origin.col;
      if (seen[static_cast<std::size_t>(element)]) {
        ++report.copies;
        if (get(matrix.data(), element, bits) != value && report.wrong_copies++ == 0) {
          report.first_wrong_copy = position;
        }
        continue;
      }
      seen[static_cast<std::size_t>(element)] = true;
      put(matrix.data(), element, bits, value);
    }
    std::vector<std::byte> piece;
    std::vector<std::byte> before;
    for (std::int64_t row = 0; row < map.in_rows; ++row) {
      const auto begin = matrix.begin() + row * map.in_cols * bits / 8;
      piece.assign(begin, begin + map.in_cols * bits / 8);
      for (auto recoder = recoders.rbegin(); recoder != recoders.rend(); ++recoder) {
        if (!(*recoder)->invertible()) break;
        before.resize(static_cast<std::size_t>(map.in_cols * (*recoder)->in_bits() / 8));
        (*recoder)->restore({expert, row, 0}, piece, before);
        std::swap(piece, before);
      }
      for (std::int64_t col = 0; col < map.in_cols; ++col) {  // what no place holds is 0
        if (seen[static_cast<std::size_t>(row * map.in_cols + col)]) continue;
        put(piece.data(), col, static_cast<int>(restored), 0);
      }
      std::copy(piece.begin(), piece.end(),
                out.begin() + (expert * map.in_rows + row) * map.in_cols * restored / 8);
    }
  }
  UndoReport total;
  for (const UndoReport& report : reports) {
    total.pads += report.pads;
    total.copies += report.copies;
    if (total.first_wrong_pad < 0) total.first_wrong_pad = report.first_wrong_pad;
    if (total.first_wrong_copy < 0) total.first_wrong_copy = report.first_wrong_copy;
    total.wrong_pads += report.wrong_pads;
    total.wrong_copies += report.wrong_copies;
  }
  return total;
}

}  // namespace moeref::judge
