#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "io/inspect/inspect.hpp"

namespace moeref {
namespace {

struct PairNames {
  std::string_view gate;
  std::string_view up;
};
constexpr std::array<PairNames, 2> kGateAndUp{{{".gate_proj", ".up_proj"}, {".w1", ".w3"}}};

/// The weights of one layer's experts: by expert, the digest of each projection.
using LayerDigests = std::map<std::int64_t, std::map<std::string, ByteDigest>>;

std::map<std::string, LayerDigests> digests_by_layer(std::span<const WeightForm> forms,
                                                     const ValuesByTensor& values) {
  std::map<std::string, LayerDigests> layers;
  for (const WeightForm& form : forms) {
    const ExpertPlace place = expert_place(form);
    const auto read = values.find(form.weight);
    if (place.projection.empty() || read == values.end()) continue;
    std::int64_t expert = std::max<std::int64_t>(place.expert, 0);
    for (const ByteDigest& digest : read->second.experts) {
      layers[place.layer][expert++][place.projection] = digest;
    }
  }
  return layers;
}

void check_identical_experts(std::span<const WeightForm> forms, const ValuesByTensor& values,
                             Findings& findings) {
  for (const auto& [layer, experts] : digests_by_layer(forms, values)) {
    std::map<std::vector<std::pair<std::string, std::uint64_t>>, std::set<std::int64_t>> same;
    std::set<std::int64_t> zero;
    for (const auto& [expert, projections] : experts) {
      std::vector<std::pair<std::string, std::uint64_t>> key;
      bool all_zero = true;
      for (const auto& [projection, digest] : projections) {
        key.emplace_back(projection, digest.hash);
        all_zero = all_zero && digest.all_zero;
      }
      if (all_zero) {
        zero.insert(expert);
      } else {
        same[key].insert(expert);
      }
    }
    if (!zero.empty()) {
      findings.add(Severity::warning, "expert.all-zero", layer,
                   fmt::format("experts {} have no weight but 0", shown_numbers(zero)));
    }
    for (const auto& [key, equal] : same) {
      if (equal.size() < 2) continue;
      findings.add(Severity::warning, "expert.identical", layer,
                   fmt::format("experts {} have the same weights", shown_numbers(equal)));
      break;  // one example is enough
    }
  }
}

/// The other weight of a gate/up pair, for the gate; nothing for other weights.
const WeightForm* up_of(const WeightForm& gate,
                        const std::map<std::string_view, const WeightForm*>& by_prefix) {
  for (const auto& [gate_name, up_name] : kGateAndUp) {
    if (!gate.prefix.ends_with(gate_name)) continue;
    const std::string up =
        gate.prefix.substr(0, gate.prefix.size() - gate_name.size()) + std::string(up_name);
    const auto found = by_prefix.find(up);
    if (found != by_prefix.end()) return found->second;
  }
  return nullptr;
}

bool equal_bytes(const TensorView& left, const TensorView& right) {
  return std::ranges::equal(left.bytes, right.bytes);
}

/// Pairs of global scales that should be one number, as most kernels take one for w13.
class GlobalScalePairs {
 public:
  void add(const WeightForm& gate, const WeightForm& up) {
    if (gate.global_scale == nullptr || up.global_scale == nullptr) return;
    const auto value = [](const TensorView& view) {
      return view.dtype == DType::f32 && view.bytes.size() == 4 ? std::fabs(view.at<float>(0))
                                                                : 0.0f;
    };
    const float left = value(*gate.global_scale);
    const float right = value(*up.global_scale);
    if (!(left > 0) || !(right > 0)) return;  // told by the checks of values
    ++pairs_;
    if (left == right) return;
    ratios_.push_back(std::max(left, right) / std::min(left, right));
    if (first_ == nullptr) first_ = up.global_scale;
  }

  void report(Findings& findings) {
    if (ratios_.empty()) return;
    std::ranges::sort(ratios_);
    findings.add(Severity::warning, "nvfp4.gate-up-global-differ", first_->name,
                 fmt::format("{} of {} gate/up pairs have two global scales, ratio median {:.3f}, "
                             "max {:.3f}: a kernel "
                             "that takes one for both needs requantized block scales",
                             ratios_.size(), pairs_, ratios_[ratios_.size() / 2], ratios_.back()));
  }

 private:
  std::int64_t pairs_ = 0;
  std::vector<float> ratios_;
  const TensorView* first_ = nullptr;
};

void check_gate_up_pairs(std::span<const WeightForm> forms, const ValuesByTensor& values,
                         Findings& findings) {
  std::map<std::string_view, const WeightForm*> by_prefix;
  for (const WeightForm& form : forms) by_prefix[form.prefix] = &form;
  GlobalScalePairs globals;
  for (const WeightForm& gate : forms) {
    const WeightForm* up = up_of(gate, by_prefix);
    if (up == nullptr) continue;
    globals.add(gate, *up);
    const auto gate_read = values.find(gate.weight);
    const auto up_read = values.find(up->weight);
    if (gate_read == values.end() || up_read == values.end() ||
        gate_read->second.experts[0].all_zero)
      continue;
    if (gate_read->second.experts[0].hash == up_read->second.experts[0].hash &&
        equal_bytes(*gate.weight, *up->weight)) {
      findings.add(Severity::warning, "gate-up.identical", gate.weight->name,
                   fmt::format("has the same bytes as {}: swapped halves would go unseen",
                               up->weight->name));
    }
  }
  globals.report(findings);
}

/// True if element `index` of the gate equals that of the up for all of a stack with both in one
/// tensor. `item(expert, half, index)` gives the address of `bytes` bytes.
template <typename Item>
bool halves_equal(std::int64_t stack, std::int64_t count, std::size_t bytes, const Item& item) {
  for (std::int64_t expert = 0; expert < stack; ++expert) {
    for (std::int64_t index = 0; index < count; ++index) {
      if (std::memcmp(item(expert, 0, index), item(expert, 1, index), bytes) != 0) return false;
    }
  }
  return true;
}

/// Fused tensors: gate and up alternate (GPT-OSS) or are halves; along rows if quantized or [E, 2I,
/// H], else along columns.
void check_fused(const WeightForm& form, Findings& findings) {
  if (!form.prefix.ends_with("gate_up_proj") || form.rows == 0 || form.cols == 0) return;
  const std::byte* data = form.weight->bytes.data();
  const auto size = std::ssize(form.weight->bytes);
  const std::int64_t row_bytes = size / (form.stack * form.rows);
  const auto report = [&](std::string_view how) {
    findings.add(Severity::warning, "gate-up.identical", form.weight->name,
                 fmt::format("gate and up, read as {}, are equal: a swap would go unseen", how));
  };
  if (form.rows % 2 == 0) {
    const auto row = [&](std::int64_t expert, std::int64_t r) {
      return data + (expert * form.rows + r) * row_bytes;
    };
    const auto bytes = static_cast<std::size_t>(row_bytes);
    const std::int64_t count = form.rows / 2;
    if (halves_equal(form.stack, count, bytes,
                     [&](auto e, auto h, auto i) { return row(e, 2 * i + h); })) {
      return report("alternating rows");
    }
    if (halves_equal(form.stack, count, bytes,
                     [&](auto e, auto h, auto i) { return row(e, h * count + i); })) {
      return report("halves of the rows");
    }
  }
  if (form.quantized() || form.cols % 2 != 0) return;
  const std::int64_t element = row_bytes / form.cols;
  const std::int64_t count = form.cols / 2;
  const auto bytes = static_cast<std::size_t>(element);
  const std::int64_t rows = form.stack * form.rows;
  const auto at = [&](std::int64_t r, std::int64_t c) {
    return data + r * row_bytes + c * element;
  };
  if (halves_equal(rows, count, bytes, [&](auto r, auto h, auto i) { return at(r, 2 * i + h); })) {
    report("alternating columns");
  } else if (halves_equal(rows, count, bytes,
                          [&](auto r, auto h, auto i) { return at(r, h * count + i); })) {
    report("halves of the columns");
  }
}

/// Router rows that are equal make their experts tie for every token.
void check_router(const WeightForm& form, const ValuesByTensor& values, Findings& findings) {
  const bool router = form.prefix.ends_with(".gate") || form.prefix.ends_with(".router");
  if (!router || form.quantized() || form.stack != 1 || form.rows < 2) return;
  if (!values.contains(form.weight)) return;
  const std::size_t row_bytes = form.weight->bytes.size() / static_cast<std::size_t>(form.rows);
  std::map<std::uint64_t, std::int64_t> first;
  std::set<std::int64_t> equal;
  for (std::int64_t row = 0; row < form.rows; ++row) {
    const auto bytes =
        form.weight->bytes.subspan(static_cast<std::size_t>(row) * row_bytes, row_bytes);
    const auto [at, is_new] = first.emplace(digest(bytes).hash, row);
    if (!is_new) equal.insert({at->second, row});
  }
  if (equal.empty()) return;
  findings.add(
      Severity::note, "router.equal-rows", form.weight->name,
      fmt::format(
          "rows {} are not all different: those experts tie for every token, and the order of ties "
          "differs between kernels",
          shown_numbers(equal)));
}

}  // namespace

void check_experts(const TensorSet&, std::span<const WeightForm> forms,
                   const ValuesByTensor& values, Findings& findings) {
  check_identical_experts(forms, values, findings);
  check_gate_up_pairs(forms, values, findings);
  for (const WeightForm& form : forms) {
    const auto read = values.find(form.weight);
    if (read != values.end() && read->second.statistics.zeros != read->second.statistics.count) {
      check_fused(form, findings);
    }
    check_router(form, values, findings);
  }
}

}  // namespace moeref
