#include "backend_properties.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "quant/error.hpp"

namespace moeref::testing {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// The elements of packed bytes as numbers.
std::vector<std::uint32_t> unpack(std::span<const std::byte> bytes, int bits) {
  std::vector<std::uint32_t> elements;
  elements.reserve(bytes.size() * 8 / to_size(bits));
  if (bits == 4) {
    for (const std::byte byte : bytes) {
      elements.push_back(std::to_integer<std::uint32_t>(byte) & 15u);
      elements.push_back(std::to_integer<std::uint32_t>(byte) >> 4);
    }
    return elements;
  }
  const std::size_t width = to_size(bits) / 8;
  for (std::size_t at = 0; at < bytes.size(); at += width) {
    std::uint32_t element = 0;
    for (std::size_t i = 0; i < width; ++i) {
      element |= std::to_integer<std::uint32_t>(bytes[at + i]) << 8 * i;
    }
    elements.push_back(element);
  }
  return elements;
}

/// Row `row` of an expert after the first `count` recoders.
std::vector<std::byte> recoded_row(const PreparedTensor& tensor, std::int64_t expert,
                                   std::int64_t row, std::size_t count) {
  const TensorStack& stack = *tensor.from;
  std::vector<std::byte> piece(to_size(stack.cols * stack.element_bits / 8));
  if (stack.cols > 0) stack.read(expert, row, 0, stack.cols, piece.data());
  for (std::size_t i = 0; i < count; ++i) {
    const Recoder& recoder = *tensor.plan.recoders[i];
    std::vector<std::byte> rewritten(to_size(stack.cols * recoder.out_bits() / 8));
    recoder.rewrite({expert, row, 0}, piece, rewritten);
    piece = std::move(rewritten);
  }
  return piece;
}

/// Recoders up to the last one that has no inverse.
std::size_t recoders_kept_by_undo(const Recoders& recoders) {
  std::size_t kept = recoders.size();
  while (kept > 0 && recoders[kept - 1]->invertible()) --kept;
  return kept;
}

/// How often the elements of each row must appear: once, or as often as RepeatRows says; the step's
/// row count may cut the copies of the last row. Empty: other moves come before it, so that rows
/// are not those of the tensor.
std::vector<std::int64_t> stated_copies(const TensorRecipe& recipe, std::int64_t rows) {
  std::vector<std::int64_t> copies(to_size(rows), 1);
  bool moved = false;
  for (const Step& step : recipe.steps) {
    if (const auto* repeat = std::get_if<RepeatRows>(&step)) {
      if (moved) return {};
      std::int64_t left = repeat->rows == 0 ? rows * repeat->times : repeat->rows;
      for (std::int64_t& count : copies) {
        count = std::clamp<std::int64_t>(left, 1, repeat->times);
        left -= count;
      }
    }
    moved = moved || !std::holds_alternative<Recode>(step);
  }
  return copies;
}

/// An element of which every byte (FP4: both nibbles) is `fill`.
std::uint32_t filled(std::byte fill, int bits) {
  const std::uint32_t word = std::to_integer<std::uint32_t>(fill) * 0x0101'0101u;
  return bits == 32 ? word : word & ((1u << bits) - 1);
}

/// What stands at every place of an expert.
std::vector<Origin> all_origins(const IndexMap& map) {
  std::vector<Origin> origins;
  for (std::int64_t place = 0; place < map.out_elements(); ++place) {
    origins.push_back(map.origin(place));
  }
  return origins;
}

std::string fault_in_map(const TensorRecipe& recipe, const IndexMap& map,
                         const std::vector<Origin>& origins) {
  std::vector<std::int64_t> seen(to_size(map.in_rows * map.in_cols));
  for (const Origin& origin : origins) {
    if (origin.pad) continue;
    if (origin.row < 0 || origin.row >= map.in_rows || origin.col < 0 ||
        origin.col >= map.in_cols) {
      return fmt::format("a place holds [{}, {}] of a [{}, {}] matrix", origin.row, origin.col,
                         map.in_rows, map.in_cols);
    }
    ++seen[to_size(origin.row * map.in_cols + origin.col)];
  }
  const std::vector<std::int64_t> stated = stated_copies(recipe, map.in_rows);
  if (stated.size() != to_size(map.in_rows)) return "repeat_rows comes after another move";
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const auto element = static_cast<std::int64_t>(i);
    const std::int64_t row = element / map.in_cols;
    if (seen[i] >= 1 && seen[i] == stated[to_size(row)]) continue;
    return fmt::format("element [{}, {}] appears {} times, must {}", row, element % map.in_cols,
                       seen[i], stated[to_size(row)]);
  }
  return {};
}

/// An expert's bytes before the bit permutation.
std::vector<std::byte> placed_elements(const IndexMap& map, std::span<const std::byte> bytes) {
  std::vector<std::byte> placed(bytes.begin(), bytes.end());
  for (std::size_t at = 0; map.words && at + 4 <= placed.size(); at += 4) {
    std::uint32_t word = 0;
    std::memcpy(&word, placed.data() + at, 4);
    word = map.words->undo(word);
    std::memcpy(placed.data() + at, &word, 4);
  }
  return placed;
}

std::string fault_in_bytes(const PreparedTensor& tensor, const std::vector<Origin>& origins,
                           std::span<const std::byte> bytes) {
  const IndexMap& map = tensor.plan.map;
  const int bits = map.element_bits;
  for (std::int64_t expert = 0; expert < map.experts; ++expert) {
    std::vector<std::uint32_t> matrix;
    for (std::int64_t row = 0; row < map.in_rows; ++row) {
      const auto elements =
          unpack(recoded_row(tensor, expert, row, tensor.plan.recoders.size()), bits);
      matrix.insert(matrix.end(), elements.begin(), elements.end());
    }
    const std::vector<std::uint32_t> placed =
        unpack(placed_elements(
                   map, bytes.subspan(to_size(expert * map.out_bytes()), to_size(map.out_bytes()))),
               bits);
    for (std::size_t place = 0; place < origins.size(); ++place) {
      const Origin& origin = origins[place];
      const std::uint32_t expected = origin.pad
                                         ? filled(origin.fill, bits)
                                         : matrix[to_size(origin.row * map.in_cols + origin.col)];
      if (placed[place] == expected) continue;
      return fmt::format("expert {}, place {}: 0x{:x}, must be 0x{:x} ({})", expert, place,
                         placed[place], expected, origin.pad ? "padding" : "an element");
    }
  }
  return {};
}

std::string fault_in_undo(const PreparedTensor& tensor, std::span<const std::byte> bytes) {
  const IndexMap& map = tensor.plan.map;
  const Recoders& recoders = tensor.plan.recoders;
  const std::int64_t bits = restored_bits(map, recoders);
  const std::int64_t row_bytes = map.in_cols * bits / 8;
  std::vector<std::byte> back(to_size(map.experts * map.in_rows * row_bytes), std::byte{0xA5});
  const UndoReport report = undo(map, bytes, recoders, back, 1);
  if (report.wrong_pads != 0) {
    return fmt::format("undo finds {} wrong pads, the first at {}", report.wrong_pads,
                       report.first_wrong_pad);
  }
  if (report.wrong_copies != 0) {
    return fmt::format("undo finds {} wrong copies, the first at {}", report.wrong_copies,
                       report.first_wrong_copy);
  }
  const std::size_t kept = recoders_kept_by_undo(recoders);
  for (std::int64_t expert = 0; expert < map.experts; ++expert) {
    for (std::int64_t row = 0; row < map.in_rows; ++row) {
      const std::vector<std::byte> expected = recoded_row(tensor, expert, row, kept);
      const auto found = back.begin() + (expert * map.in_rows + row) * row_bytes;
      if (static_cast<std::int64_t>(expected.size()) != row_bytes ||
          !std::equal(expected.begin(), expected.end(), found)) {
        return fmt::format("undo gives other bytes for expert {}, row {}", expert, row);
      }
    }
  }
  return {};
}

}  // namespace

std::string fault_in_matrix(const TensorRecipe& recipe, const PreparedTensor& tensor,
                            std::span<const std::byte> bytes) {
  const std::vector<Origin> origins = all_origins(tensor.plan.map);
  std::string fault = fault_in_map(recipe, tensor.plan.map, origins);
  if (fault.empty()) fault = fault_in_bytes(tensor, origins, bytes);
  return fault.empty() ? fault_in_undo(tensor, bytes) : fault;
}

std::string fault_in_layer(const PreparedLayer& prepared) {
  for (std::size_t i = 0; i < prepared.recipe.tensors.size(); ++i) {
    const PreparedTensor& tensor = prepared.tensors[i];
    const TensorRecipe& recipe = prepared.recipe.tensors[i];
    const auto named = [&](const std::string& fault) {
      return fault.empty() ? fault : fmt::format("{}: {}", tensor.name, fault);
    };
    if (recipe.kernel_steps > recipe.steps.size()) return named("more kernel steps than steps");
    const Tensor made = make(tensor, 1);
    const std::int64_t shaped = element_count(tensor.shape) * info(tensor.dtype).bits / 8;
    if (shaped != static_cast<std::int64_t>(made.bytes.size())) {
      return named(fmt::format("shape {} of {} has {} bytes, made are {}", to_string(tensor.shape),
                               name(tensor.dtype), shaped, made.bytes.size()));
    }
    const std::string fault = fault_in_matrix(recipe, tensor, made.bytes);
    if (!fault.empty()) return named(fault);
  }
  return {};
}

bool names_its_subject(const std::string& text, const Backend& backend) {
  const std::string_view subject = std::string_view(text).substr(0, text.find(':'));
  constexpr std::array<std::string_view, 8> kSubjects{"w13",      "w2",      "--tp",   "--ep",
                                                      "experts.", "swiglu_", "gemm1_", "sample"};
  return text.find(backend.name) != std::string::npos ||
         std::any_of(kSubjects.begin(), kSubjects.end(),
                     [&](std::string_view known) { return subject.starts_with(known); });
}

std::string find_breakage(const Backend& backend, const std::vector<std::string>& choice,
                          const std::vector<ZooCase>& cases) {
  const Options options = parse_options(backend, choice);
  for (const ZooCase& animal : cases) {
    try {
      const AuditReport report = audit(backend, options, layer_of(animal.shape), animal.rank, 1);
      if (!report.survives) {
        return fmt::format("{} [{}] on {}: {}", backend.name, fmt::join(choice, " "),
                           describe(animal), report.first_difference);
      }
    } catch (const Error&) {
      // A rule of the backend refuses the layer.
    }
  }
  return {};
}

ZooResult walk_zoo(const Backend& backend, const std::vector<std::string>& choice,
                   const std::vector<ZooCase>& cases, bool stop_at_breakage) {
  const Options options = parse_options(backend, choice);
  ZooResult result;
  for (const ZooCase& animal : cases) {
    const MoeLayer& layer = layer_of(animal.shape);
    const auto fault = [&](const std::string& text) {
      result.fault = fmt::format("{} [{}] on {}: {}", backend.name, fmt::join(choice, " "),
                                 describe(animal), text);
    };
    PreparedLayer prepared;
    try {
      prepared = plan_layer(backend, options, layer, animal.rank);
    } catch (const Error& error) {
      ++result.rejected;
      if (names_its_subject(error.what(), backend)) continue;
      fault(fmt::format("the error names no backend or tensor: {}", error.what()));
      return result;
    } catch (const std::exception& error) {
      fault(fmt::format("throws what is no Error: {}", error.what()));
      return result;
    }
    ++result.accepted;
    try {
      const std::string found = fault_in_layer(prepared);
      if (!found.empty()) {
        fault(found);
        return result;
      }
      const AuditReport report = audit(backend, options, layer, animal.rank, 1);
      ++(report.survives ? result.survived : result.broke);
      if (!report.survives && result.breakage.empty()) {
        result.breakage = fmt::format("{} [{}] on {}: {}", backend.name, fmt::join(choice, " "),
                                      describe(animal), report.first_difference);
      }
    } catch (const std::exception& error) {
      fault(fmt::format("throws after it was planned: {}", error.what()));
      return result;
    }
    if (stop_at_breakage && result.broke != 0) return result;
  }
  return result;
}

}  // namespace moeref::testing
