#include "io/synth/synth_tensor.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "io/counter_random.hpp"
#include "io/synth/quantized_weight.hpp"

namespace moeref {
namespace {

constexpr std::uint64_t kDrawsAtOnce = 4096;
constexpr std::uint64_t kIdBytes = 8;

/// The table of unit `index`, and how many units from there on have the same one.
struct Run {
  const std::byte* table;
  std::uint64_t count;
};

Run run_at(const SynthTensor& tensor, std::uint64_t index) {
  if (tensor.tables.size() == 1) return {tensor.tables[0]->bytes.data(), ~std::uint64_t{0}};
  const auto run = static_cast<std::uint64_t>(tensor.run);
  return {tensor.tables[index / run % tensor.tables.size()]->bytes.data(), run - index % run};
}

/// The unit whose draw unit `index` takes: itself, except in the second row of a tied pair.
std::uint64_t source_unit(const SynthTensor& tensor, std::uint64_t units, std::uint64_t index) {
  const auto row_units = static_cast<std::uint64_t>(tensor.row_units);
  const std::uint64_t from_end = (units - 1 - index) / row_units;
  const bool second =
      from_end / 2 < static_cast<std::uint64_t>(tensor.tied_pairs) && from_end % 2 == 0;
  return second ? index - row_units : index;
}

/// Draws of units [first, first + out.size()).
void unit_draws(const SynthTensor& tensor, const TensorRandom& random, std::uint64_t units,
                std::uint64_t first, std::span<std::uint16_t> out) {
  random.draws(first, out);
  const std::uint64_t tied_units =
      static_cast<std::uint64_t>(2 * tensor.tied_pairs * tensor.row_units);
  for (std::uint64_t index = std::max(first, units - tied_units); index < first + out.size();
       ++index) {
    out[index - first] = random.draw(source_unit(tensor, units, index));
  }
}

template <std::size_t kUnit>
void look_up(const SynthTensor& tensor, std::uint64_t first, std::span<const std::uint16_t> draws,
             std::byte* out) {
  std::size_t done = 0;
  while (done < draws.size()) {
    const Run run = run_at(tensor, first + done);
    const std::size_t end =
        done + static_cast<std::size_t>(std::min<std::uint64_t>(run.count, draws.size() - done));
    for (; done < end; ++done) {
      std::memcpy(out + done * kUnit, run.table + std::size_t{draws[done]} * kUnit, kUnit);
    }
  }
}

/// Whole units [first, first + count) into `out`.
void make_units(const SynthTensor& tensor, std::uint64_t seed, std::uint64_t first,
                std::uint64_t count, std::byte* out) {
  const TensorRandom random(seed, tensor.stream);
  const std::size_t unit = tensor.tables[0]->unit_bytes;
  const std::uint64_t units = tensor.byte_count() / unit;
  std::array<std::uint16_t, kDrawsAtOnce> draws;
  for (std::uint64_t done = 0; done < count; done += kDrawsAtOnce) {
    const std::span<std::uint16_t> some(draws.data(), std::min(kDrawsAtOnce, count - done));
    unit_draws(tensor, random, units, first + done, some);
    std::byte* to = out + done * unit;
    switch (unit) {
      case 1:
        look_up<1>(tensor, first + done, some, to);
        break;
      case 2:
        look_up<2>(tensor, first + done, some, to);
        break;
      default:
        look_up<4>(tensor, first + done, some, to);
    }
  }
}

/// Ids [first, first + count): row t walks the experts from a random start by a random step without
/// common divisor.
void make_expert_ids(const SynthTensor& tensor, std::uint64_t seed, std::uint64_t first,
                     std::uint64_t count, std::byte* out) {
  const TensorRandom random(seed, tensor.stream);
  const auto experts = static_cast<std::uint64_t>(tensor.expert_ids);
  const auto top_k = static_cast<std::uint64_t>(tensor.shape.back());
  for (std::uint64_t index = first; index < first + count; ++index) {
    const std::uint64_t row = index / top_k;
    const std::uint64_t start = random.draw(2 * row) % experts;
    std::uint64_t step = 1 + random.draw(2 * row + 1) % experts;
    while (std::gcd(step, experts) != 1) ++step;
    const std::uint64_t id = (start + index % top_k * step) % experts;
    for (std::uint64_t byte = 0; byte < kIdBytes; ++byte) {
      out[(index - first) * kIdBytes + byte] = static_cast<std::byte>(id >> (8 * byte));
    }
  }
}

}  // namespace

std::uint64_t SynthTensor::byte_count() const {
  return static_cast<std::uint64_t>(element_count(shape)) *
         static_cast<std::uint64_t>(info(dtype).bits) / 8;
}

std::uint64_t SynthTensor::draws_per_byte() const {
  return weight ? weight->draws_per_byte(part) : 1;
}

void make_bytes(const SynthTensor& tensor, std::uint64_t seed, std::uint64_t first,
                std::span<std::byte> out) {
  if (out.empty()) return;
  if (tensor.weight) return tensor.weight->make_bytes(tensor.part, seed, first, out);
  const auto make = tensor.expert_ids != 0 ? make_expert_ids : make_units;
  const std::uint64_t unit = tensor.expert_ids != 0 ? kIdBytes : tensor.tables[0]->unit_bytes;
  const std::uint64_t first_unit = first / unit;
  const std::uint64_t end_unit = (first + out.size() + unit - 1) / unit;
  if (first % unit == 0 && out.size() % unit == 0) {
    make(tensor, seed, first_unit, end_unit - first_unit, out.data());
    return;
  }
  std::vector<std::byte> whole((end_unit - first_unit) * unit);  // the slice cuts a unit
  make(tensor, seed, first_unit, end_unit - first_unit, whole.data());
  std::memcpy(out.data(), whole.data() + (first - first_unit * unit), out.size());
}

}  // namespace moeref
