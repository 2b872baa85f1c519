#include "cli/layout_undoing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "layout/explain.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

using Sink = std::function<void(std::span<const std::byte>)>;

/// The recoder of a step if the metadata are enough to make it, or nullptr.
std::shared_ptr<const Recoder> recoder_of(const Recode& step, const LayerTensors& source) {
  if (!step.needs_layer) return step.make(LayerTensors{});
  return step.needs_data ? nullptr : step.make(source);
}

Restoration restoration_of(const std::vector<Step>& steps, const TensorStack& stack,
                           const LayerTensors& source) {
  std::vector<const Recode*> recodes;
  for (const Step& step : steps) {
    if (const auto* recode = std::get_if<Recode>(&step)) recodes.push_back(recode);
  }
  Restoration restoration;
  while (!recodes.empty()) {
    const auto recoder = recoder_of(*recodes.back(), source);
    if (recoder == nullptr || !recoder->invertible()) break;
    restoration.recoders.insert(restoration.recoders.begin(), recoder);
    recodes.pop_back();
  }
  restoration.dtype = recodes.empty() ? stack.dtype : recodes.back()->dtype;
  restoration.bits = recodes.empty() ? stack.element_bits : recodes.back()->out_bits;
  for (const Recode* recode : recodes) restoration.kept.push_back(recode->name);
  return restoration;
}

const std::vector<Step>& steps_of(const PreparedLayer& layer, const PreparedTensor& tensor) {
  for (const TensorRecipe& recipe : layer.recipe.tensors) {
    if (recipe.name == tensor.name) return recipe.steps;
  }
  static const std::vector<Step> kNone;
  return kNone;
}

std::int64_t undone_bytes(const IndexMap& map, int bits) {
  return map.in_rows * map.in_cols * bits / 8;
}

void add_report(UndoReport& total, const UndoReport& piece, std::int64_t base) {
  const auto set_first = [base](std::int64_t& of_total, std::int64_t of_piece) {
    if (of_total < 0 && of_piece >= 0) of_total = base + of_piece;
  };
  set_first(total.first_wrong_pad, piece.first_wrong_pad);
  set_first(total.first_wrong_copy, piece.first_wrong_copy);
  total.pads += piece.pads;
  total.wrong_pads += piece.wrong_pads;
  total.copies += piece.copies;
  total.wrong_copies += piece.wrong_copies;
}

/// The logical elements of some experts.
std::vector<std::byte> undo_piece(const ExpertPiece& piece, Undoing& undoing, int threads) {
  const IndexMap& map = piece.map;
  std::vector<std::byte> out(
      static_cast<std::size_t>(map.experts * undone_bytes(map, undoing.restoration.bits)));
  const auto in =
      undoing.stored->bytes.subspan(static_cast<std::size_t>(piece.first * map.out_bytes()),
                                    static_cast<std::size_t>(map.experts * map.out_bytes()));
  const UndoReport report = undo(map, in, piece.recoders, out, threads);
  const std::int64_t placed = map.experts * map.out_elements() - report.pads - report.copies;
  undoing.missing += map.experts * map.in_rows * map.in_cols - placed;
  add_report(undoing.report, report, piece.first * map.out_elements());
  return out;
}

/// Undoes the same experts of another tensor that comes from the same logical one.
void check_piece(const ExpertPiece& written, std::span<const std::byte> elements, Undoing& checker,
                 bool comparable, int threads) {
  const ExpertPiece piece = piece_of(checker.tensor->plan.map, checker.restoration.recoders,
                                     written.first, written.map.experts);
  const std::vector<std::byte> other = undo_piece(piece, checker, threads);
  if (!comparable || checker.missing > 0 || other.size() != elements.size()) return;
  const auto size = other.size() / static_cast<std::size_t>(piece.map.experts);
  for (std::int64_t expert = 0; expert < piece.map.experts; ++expert) {
    const std::size_t at = static_cast<std::size_t>(expert) * size;
    if (std::memcmp(elements.data() + at, other.data() + at, size) == 0) continue;
    if (checker.differing_experts++ == 0 && checker.first_wrong.empty()) {
      checker.first_wrong = fmt::format(
          "local expert {} is not the one of the tensor that is written", written.first + expert);
    }
  }
}

void put_undone(Undoing& undoing, int threads, const Sink& sink) {
  for_each_piece(undoing.tensor->plan.map, undoing.restoration.recoders, threads,
                 [&](const ExpertPiece& piece) {
                   const std::vector<std::byte> elements = undo_piece(piece, undoing, threads);
                   for (Undoing* checker : undoing.checkers) {
                     const bool comparable =
                         undoing.missing == 0 &&
                         checker->restoration.dtype == undoing.restoration.dtype &&
                         checker->restoration.kept == undoing.restoration.kept;
                     check_piece(piece, elements, *checker, comparable, threads);
                   }
                   sink(elements);
                 });
}

Shape undone_shape(const Undoing& undoing, bool is_bias) {
  const IndexMap& map = undoing.tensor->plan.map;
  if (is_bias) return {map.experts, map.in_rows};
  return {map.experts, map.in_rows,
          map.in_cols * undoing.restoration.bits / info(undoing.restoration.dtype).bits};
}

/// The bits of a stored element, lowest first.
std::uint32_t stored_value(std::span<const std::byte> bytes, const std::vector<Meaning>& parts) {
  std::uint32_t value = 0;
  for (const Meaning& part : parts) {
    for (int i = 0; i < part.bits; ++i) {
      const std::int64_t bit = part.bit + i;
      const auto byte = std::to_integer<std::uint32_t>(bytes[static_cast<std::size_t>(bit / 8)]);
      value |= (byte >> (bit % 8) & 1u) << (part.element_bit + i);
    }
  }
  return value;
}

/// "byte 0x1f3 holds 0x07: padding by pad_halves, 0x00"
std::string place_text(const PreparedFile& file, const Undoing& undoing, std::int64_t position) {
  const IndexMap& map = undoing.tensor->plan.map;
  const auto parts =
      bits_of_place(map, position / map.out_elements(), position % map.out_elements());
  const auto meaning = explain_bits(file.layer, *undoing.tensor, parts.front().bit, 1).front();
  return fmt::format("byte {:#x} holds 0x{:0{}X}: {}", parts.front().bit / 8,
                     stored_value(undoing.stored->bytes, parts), (map.element_bits + 3) / 4,
                     describe(meaning));
}

/// A tensor of `count` factors as stored.
std::vector<float> stored_factors(const PreparedFile& file, const std::string& name,
                                  std::size_t count) {
  const std::string subject = file.subject(name);
  const TensorView* view = file.file->find(file.prefix + name);
  if (view == nullptr) fail(subject, "is missing; the backend passes {} factors", count);
  if (count == 0) fail(subject, "is there, but the backend passes no such factors for this layer");
  if (view->dtype != DType::f32 || view->bytes.size() != count * sizeof(float)) {
    fail(subject, "is {} {}, its metadata need {} F32; the two belong to other files",
         moeref::name(view->dtype), to_string(view->shape), count);
  }
  std::vector<float> values(count);
  std::memcpy(values.data(), view->bytes.data(), view->bytes.size());
  return values;
}

}  // namespace

std::vector<Undoing> plan_undo(const PreparedFile& file, bool single) {
  std::vector<Undoing> undoings;
  undoings.reserve(file.layer.tensors.size());
  for (const PreparedTensor& tensor : file.layer.tensors) {
    if (tensor.from == nullptr) continue;
    Undoing undoing;
    undoing.tensor = &tensor;
    undoing.stored = &file.stored(tensor);
    undoing.restoration =
        restoration_of(steps_of(file.layer, tensor), *tensor.from, *file.layer.source);
    undoing.written_as = single ? tensor.name : std::string(name(source_slot(file.layer, tensor)));
    undoings.push_back(std::move(undoing));
  }
  std::stable_sort(undoings.begin(), undoings.end(), [](const Undoing& left, const Undoing& right) {
    return left.restoration.kept.size() < right.restoration.kept.size();
  });
  for (auto undoing = undoings.begin(); undoing != undoings.end(); ++undoing) {
    const auto first = std::find_if(undoings.begin(), undoing, [&](const Undoing& earlier) {
      return earlier.written_as == undoing->written_as;
    });
    if (first == undoing) continue;
    first->checkers.push_back(&*undoing);
    undoing->written_as.clear();
  }
  return undoings;
}

void add_undone(CaseWriter& writer, const PreparedFile& file, std::vector<Undoing>& undoings,
                int threads) {
  for (Undoing& undoing : undoings) {
    if (undoing.written_as.empty()) continue;
    const Slot slot = source_slot(file.layer, *undoing.tensor);
    writer.add(
        {undoing.written_as, undoing.restoration.dtype, undone_shape(undoing, is_bias(slot))},
        [&undoing, threads](const Sink& sink) { put_undone(undoing, threads, sink); });
  }
}

std::vector<FactorCheck> check_factors(const PreparedFile& file) {
  std::vector<FactorCheck> checks;
  const LayerTensors& source = *file.layer.source;
  for (const ScalarRecipe& recipe : file.layer.recipe.scalars) {
    FactorCheck check;
    check.name = recipe.name;
    check.recomputed = recipe.values != nullptr;
    std::vector<float> wanted(static_cast<std::size_t>(source.shape.experts));
    if (check.recomputed) wanted = recipe.values(source.scalars, source.shape);
    if (wanted.empty() && file.file->find(file.prefix + recipe.name) == nullptr) continue;
    const std::vector<float> stored = stored_factors(file, recipe.name, wanted.size());
    check.count = static_cast<std::int64_t>(stored.size());
    for (std::size_t i = 0; check.recomputed && i < stored.size(); ++i) {
      const auto has = std::bit_cast<std::uint32_t>(stored[i]);
      const auto needs = std::bit_cast<std::uint32_t>(wanted[i]);
      if (has == needs || check.wrong++ > 0) continue;
      check.first_wrong = fmt::format("[{}] holds {} ({:#010x}), needs {} ({:#010x}) = {}", i,
                                      stored[i], has, wanted[i], needs, recipe.formula);
    }
    checks.push_back(std::move(check));
  }
  return checks;
}

void explain_wrong(const PreparedFile& file, Undoing& undoing) {
  const UndoReport& report = undoing.report;
  if (report.wrong_pads > 0) {
    undoing.first_wrong = place_text(file, undoing, report.first_wrong_pad);
  } else if (report.wrong_copies > 0) {
    undoing.first_wrong =
        place_text(file, undoing, report.first_wrong_copy) + ", unlike its first copy";
  }
}

}  // namespace moeref::cli
