#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "io/inspect/inspect.hpp"

namespace moeref {
namespace {

/// The number of routed experts that config.json states.
std::optional<std::int64_t> configured_experts(const TensorSet& set) {
  if (!set.config) return std::nullopt;
  const nlohmann::json* section = &*set.config;
  if (const auto text = section->find("text_config"); text != section->end() && text->is_object()) {
    section = &*text;
  }
  for (const std::string_view key : {"n_routed_experts", "num_local_experts", "num_experts"}) {
    const auto found = section->find(key);
    if (found != section->end() && found->is_number_integer()) return found->get<std::int64_t>();
  }
  return std::nullopt;
}

/// The experts that each projection of each layer has.
struct LayerExperts {
  std::map<std::string, std::set<std::int64_t>> by_projection;
  std::set<std::int64_t> all;
};

void check_experts_of_layer(const std::string& layer, const LayerExperts& experts,
                            std::optional<std::int64_t> wanted, Findings& findings) {
  const std::int64_t count = wanted.value_or(*experts.all.rbegin() + 1);
  std::set<std::int64_t> missing;
  for (std::int64_t expert = 0; expert < count; ++expert) {
    if (!experts.all.contains(expert)) missing.insert(missing.end(), expert);
  }
  if (!missing.empty()) {
    findings.add(Severity::error, "experts.missing", layer,
                 fmt::format("experts {} of {} have no weights", shown_numbers(missing), count));
  }
  if (wanted && *experts.all.rbegin() >= *wanted) {
    findings.add(Severity::warning, "experts.surplus", layer,
                 fmt::format("has an expert {}, config.json says there are {}",
                             *experts.all.rbegin(), *wanted));
  }
  for (const auto& [projection, present] : experts.by_projection) {
    if (present == experts.all) continue;
    std::set<std::int64_t> lacking;
    std::ranges::set_difference(experts.all, present, std::inserter(lacking, lacking.end()));
    findings.add(Severity::error, "experts.missing", layer + projection,
                 fmt::format("experts {} lack this weight", shown_numbers(lacking)));
  }
}

void check_stack(const WeightForm& form, std::int64_t wanted, Findings& findings) {
  if (form.stack == wanted) return;
  findings.add(Severity::error, "experts.missing", form.weight->name,
               fmt::format("holds {} experts, config.json says there are {}", form.stack, wanted));
}

}  // namespace

void check_structure(const TensorSet& set, std::span<const WeightForm> forms, Findings& findings) {
  const std::optional<std::int64_t> wanted = configured_experts(set);
  std::map<std::string, LayerExperts> layers;
  for (const WeightForm& form : forms) {
    const ExpertPlace place = expert_place(form);
    if (place.projection.empty()) continue;
    if (place.expert >= 0) {
      layers[place.layer].by_projection[place.projection].insert(place.expert);
      layers[place.layer].all.insert(place.expert);
    } else if (wanted) {
      check_stack(form, *wanted, findings);
    }
  }
  for (const auto& [layer, experts] : layers) {
    // Multi-token prediction layers and the like may be cut: only what is there is compared.
    check_experts_of_layer(layer, experts, wanted, findings);
  }
  for (const auto& [name, view] : set.tensors) {
    const auto size = static_cast<std::uintptr_t>(info(view->dtype).bits / 8);
    // Files are mapped at page boundaries, so the address tells the offset in the file.
    if (size > 1 && !view->bytes.empty() &&
        reinterpret_cast<std::uintptr_t>(view->bytes.data()) % size != 0) {
      findings.add(
          Severity::note, "file.odd-offset", name,
          fmt::format(
              "begins at an offset that is no multiple of {} bytes: readers that cast the mapping "
              "fault or copy",
              size));
    }
  }
}

}  // namespace moeref
