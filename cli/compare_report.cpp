#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/compare.hpp"

namespace moeref::cli {
namespace {

nlohmann::json to_json(const Difference& difference) {
  return {{"index", difference.index},
          {"at", difference.coordinates},
          {"actual", difference.actual},
          {"golden", difference.golden},
          {"actual_bits", difference.actual_bits},
          {"golden_bits", difference.golden_bits},
          {"ulps", difference.ulps},
          {"allowed", difference.allowed}};
}

nlohmann::json to_json(const std::vector<Group>& groups) {
  nlohmann::json list = nlohmann::json::array();
  for (const Group& group : groups) {
    list.push_back({{"index", group.index},
                    {"wrong", group.wrong},
                    {"total", group.total},
                    {"largest_difference", group.largest}});
  }
  return list;
}

std::string to_text(const Difference& difference) {
  std::string text =
      fmt::format("{}: {:.9g} ({}), golden {:.9g} ({})", difference.coordinates, difference.actual,
                  difference.actual_bits, difference.golden, difference.golden_bits);
  if (difference.ulps >= 0) text += fmt::format(", {} ULP", difference.ulps);
  if (!difference.allowed.empty()) text += ", allowed " + difference.allowed;
  return text;
}

}  // namespace

nlohmann::json to_json(const Comparison& comparison) {
  nlohmann::json report{{"tensor", comparison.tensor},
                        {"verdict", name(comparison.verdict)},
                        {"elements", comparison.elements}};
  if (!comparison.mismatch.empty()) {
    report["mismatch"] = comparison.mismatch;
    return report;
  }
  report["differing"] = comparison.differing;
  report["outside"] = comparison.outside;
  report["nan"] = {{"actual", comparison.nan_actual}, {"golden", comparison.nan_golden}};
  report["inf"] = {{"actual", comparison.inf_actual}, {"golden", comparison.inf_golden}};
  report["zero"] = {{"actual", comparison.zero_actual}, {"golden", comparison.zero_golden}};
  report["largest_ulps"] = comparison.largest_ulps;
  report["largest_difference"] = comparison.largest_difference;
  report["nmse"] = comparison.nmse;
  report["calc_diff"] = comparison.calc_diff;
  report["cosine"] = comparison.cosine;
  report["ratio"] = comparison.ratio;
  if (comparison.first) report["first"] = to_json(*comparison.first);
  report["worst"] = nlohmann::json::array();
  for (const Difference& difference : comparison.worst) {
    report["worst"].push_back(to_json(difference));
  }
  report["worst_rows"] = to_json(comparison.worst_rows);
  report["worst_experts"] = to_json(comparison.worst_experts);
  return report;
}

std::string to_text(const Comparison& comparison) {
  const auto share = [&comparison](std::int64_t count) {
    return 100.0 * static_cast<double>(count) /
           static_cast<double>(std::max<std::int64_t>(1, comparison.elements));
  };
  std::string text = fmt::format("{}: {}", comparison.tensor, name(comparison.verdict));
  if (!comparison.mismatch.empty()) return text + ": it " + comparison.mismatch + "\n";
  text += fmt::format(", {} elements", comparison.elements);
  if (comparison.verdict == Verdict::identical) return text + "\n";
  text += fmt::format(", {} differ ({:.2f} %)", comparison.differing, share(comparison.differing));
  if (comparison.outside != comparison.differing) {
    text += fmt::format(", {} outside the bound ({:.2f} %)", comparison.outside,
                        share(comparison.outside));
  }
  text += fmt::format(
      "\n  largest difference {:.6g}, {} ULP; NMSE {:.3g}, calc_diff {:.3g}, cosine {:.6f}, "
      "actual/golden {:.6g}\n",
      comparison.largest_difference, comparison.largest_ulps, comparison.nmse, comparison.calc_diff,
      comparison.cosine, comparison.ratio);
  text += fmt::format("  NaN {} (golden {}), inf {} (golden {}), zeros {} (golden {})\n",
                      comparison.nan_actual, comparison.nan_golden, comparison.inf_actual,
                      comparison.inf_golden, comparison.zero_actual, comparison.zero_golden);
  if (comparison.first) text += "  first wrong: " + to_text(*comparison.first) + "\n";
  for (const Difference& difference : comparison.worst) {
    text += "  worst:       " + to_text(difference) + "\n";
  }
  for (const Group& row : comparison.worst_rows) {
    text += fmt::format("  token {}: {} of {} wrong, largest {:.6g}\n", row.index, row.wrong,
                        row.total, row.largest);
  }
  for (const Group& expert : comparison.worst_experts) {
    text += fmt::format("  expert {}: {} of its {} slots wrong\n", expert.index, expert.wrong,
                        expert.total);
  }
  return text;
}

}  // namespace moeref::cli
