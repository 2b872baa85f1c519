#include "engine/audit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "engine/audit_difference.hpp"
#include "engine/audit_effects.hpp"
#include "engine/audit_trial.hpp"
#include "layout/kernel_view.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// The routed experts of the rank alone, as plan_layer cuts them.
MoeLayer own_part(const MoeLayer& layer, const PreparedLayer& prepared) {
  const Shard& rank = prepared.rank;
  MoeLayer part = shard(layer, {.ep_rank = rank.ep_rank, .ep_size = rank.ep_size});
  if (rank.tp_size > 1) part = tp_part(part, prepared.range.begin, prepared.range.count);
  part.hidden = part.expert_width();
  part.latent = 0;
  part.shared.reset();
  part.router = part.router_bias = part.selection_bias = ScaledMatrix{};
  return part;
}

/// Compares the first `hidden` outputs of each token.
void compare_outputs(AuditReport& report, const AuditTrial& trial, const MoeLayer& kernel,
                     const MoeLayer& logical) {
  const ForwardResult seen = trial.run(kernel, true);
  const ForwardResult meant = trial.run(logical, true);
  std::string first;
  for (std::int64_t token = 0; token < trial.route().tokens; ++token) {
    for (std::int64_t col = 0; col < logical.hidden; ++col) {
      const float is = seen.output[to_size(token * kernel.hidden + col)];
      const float should = meant.output[to_size(token * logical.hidden + col)];
      ++report.outputs;
      if (std::bit_cast<std::uint32_t>(is) == std::bit_cast<std::uint32_t>(should)) continue;
      if (report.differing++ == 0) {
        first = fmt::format("token {}, column {}: {} (0x{:08X}), must be {} (0x{:08X})", token, col,
                            is, std::bit_cast<std::uint32_t>(is), should,
                            std::bit_cast<std::uint32_t>(should));
      }
    }
  }
  report.survives = report.differing == 0;
  if (report.survives) return;
  std::string where = first_wrong_weight(kernel, logical);
  if (where.empty()) where = first_wrong_stage(seen, meant, kernel, logical, trial.route());
  report.first_difference = first + "; " + where;
}

/// The logical layer after the recodings that are meant. A defect that leaves no other choice for
/// this shape is held against itself.
MoeLayer meant_layer(const PreparedLayer& prepared, const MoeLayer& loaded, AuditReport& report,
                     int threads) {
  const Options meant = without_defects(*prepared.backend, prepared.options);
  if (meant.values() == prepared.options.values()) return recoded_layer(prepared, loaded, threads);
  try {
    return recoded_layer(plan_tensors(*prepared.backend, meant, *prepared.source), loaded, threads);
  } catch (const Error& error) {
    report.note =
        fmt::format("compared after its own recodings, since without the defect: {}", error.what());
    return recoded_layer(prepared, loaded, threads);
  }
}

/// A kernel that cannot read what was prepared does not keep the function.
std::optional<MoeLayer> read_kernel(const PreparedLayer& prepared, AuditReport& report,
                                    int threads) {
  std::vector<Tensor> made;
  for (const PreparedTensor& tensor : prepared.tensors) made.push_back(make(tensor, threads));
  try {
    return kernel_layer(prepared, made, threads);
  } catch (const Error& error) {
    report.first_difference = error.what();
    return std::nullopt;
  }
}

}  // namespace

bool is_upstream_defect(std::string_view value) { return value.ends_with("_upstream"); }

Options without_defects(const Backend& backend, const Options& options) {
  auto values = options.values();
  for (const OptionInfo& option : backend.options) {
    std::string& value = values.find(option.name)->second;
    if (is_upstream_defect(value)) value = option.default_value();
  }
  return Options(std::move(values));
}

AuditReport audit(const Backend& backend, const Options& options, const MoeLayer& layer,
                  const Shard& rank, int threads) {
  const PreparedLayer prepared = plan_layer(backend, options, layer, rank);
  AuditReport report;
  report.backend = backend.name;
  report.shape = prepared.source->shape;
  const MoeLayer loaded = own_part(layer, prepared);
  const MoeLayer meant = meant_layer(prepared, loaded, report, threads);
  std::optional<MoeLayer> kernel = read_kernel(prepared, report, threads);
  if (!kernel) return report;
  kernel->activation.form = loaded.activation.form;

  if (loaded.intermediate == 0) {
    report.note = "the rank has no rows and no output; its weights are compared with zero";
    report.first_difference = first_wrong_weight(*kernel, meant);
    report.survives = report.first_difference.empty();
    return report;
  }
  const AuditTrial trial(meant, threads);
  compare_outputs(report, trial, *kernel, meant);
  report.effects =
      measure_effects(prepared, loaded, recoded_layer(prepared, loaded, threads), trial);
  return report;
}

namespace {

/// The layers on which a break is looked for, smallest first.
std::vector<SampleShape> break_candidates(const Backend& backend) {
  constexpr std::array<std::int64_t, 8> kHidden{32, 64, 96, 128, 192, 256, 320, 512};
  constexpr std::int64_t kStep = 8;
  constexpr std::int64_t kLargest = 320;
  std::vector<SampleShape> shapes;
  for (const std::string_view format : backend.formats) {
    for (const std::int64_t hidden : kHidden) {
      for (std::int64_t rows = kStep; rows <= kLargest; rows += kStep) {
        for (const bool gated : {true, false}) {
          SampleShape shape{.hidden = hidden, .intermediate = rows, .gated = gated};
          shape.weight_format = format;
          shapes.push_back(shape);
        }
      }
    }
  }
  const auto weights = [](const SampleShape& shape) {
    return shape.hidden * shape.intermediate * (shape.gated ? 3 : 2);
  };
  std::stable_sort(shapes.begin(), shapes.end(),
                   [&](const SampleShape& left, const SampleShape& right) {
                     return weights(left) < weights(right);
                   });
  return shapes;
}

/// The report of the first kind of activation that the backend accepts: SiLU, SiLU with a limit,
/// GPT-OSS with biases. `try_all`: of the first that does not survive, if there is one.
std::optional<Break> audit_any(const Backend& backend, const Options& options, SampleShape shape,
                               bool try_all, int threads) {
  std::optional<Break> first;
  for (const auto& [bias, limit] :
       {std::pair{false, kNoLimit}, std::pair{false, 0.5f}, std::pair{true, kNoLimit}}) {
    shape.bias = bias;
    shape.limit = limit;
    try {
      Break tried{shape, audit(backend, options, sample_layer(shape), Shard{}, threads)};
      if (!try_all || !tried.report.survives) return tried;
      if (!first) first = std::move(tried);
    } catch (const Error&) {
      // The backend's rules exclude this layer.
    }
  }
  return first;
}

}  // namespace

std::optional<Break> smallest_break(const Backend& backend, const Options& options, int threads) {
  constexpr std::int64_t kManyWeights = 16 * 1024;  // some reach the limit of the activation
  bool tried_all = false;
  for (const SampleShape& shape : break_candidates(backend)) {
    const bool many = shape.gated && shape.hidden * shape.intermediate >= kManyWeights;
    std::optional<Break> tried = audit_any(backend, options, shape, many && !tried_all, threads);
    tried_all = tried_all || (tried && many);
    if (tried && !tried->report.survives) return tried;
  }
  return std::nullopt;
}

}  // namespace moeref
