#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "layout/step.hpp"
#include "layout/tiles/families.hpp"
#include "quant/error.hpp"
#include "quant/nearest_names.hpp"

namespace moeref {
namespace {

using Parameters = std::span<const std::int64_t>;

constexpr std::string_view kSwap = "vllm@00af4049 flashinfer_utils.py swap_w13_to_w31";
constexpr std::string_view kPairs = "sglang@bafa16ec quantization/mxfp4.py";
constexpr std::string_view kInterleave =
    "flashinfer@fb28d7242 core.py get_reorder_rows_for_gated_act_gemm_row_indices";
constexpr std::string_view kShuffle =
    "flashinfer@fb28d7242 utils.py get_shuffle_matrix_a_row_indices";
constexpr std::string_view kPad = "sglang layers/moe/fused_moe_triton/layer.py";
constexpr std::string_view kWhole = "sglang@02962d78 flashinfer_trtllm.py _align_*_moe_weights";
constexpr std::string_view kRepeat = "deepgemm@54e2261 transform_sf_into_required_layout";

/// The steps that are not tiles.
const std::array<NamedStep, 8> kSteps{{
    {"swap_halves", "", StepKind::move, "gate, up -> up, gate: exchanges the halves of the rows",
     kSwap, [](Parameters) -> Step { return SwapHalves{}; }},
    {"swap_pairs", "", StepKind::move, "exchanges rows 2i and 2i + 1", kPairs,
     [](Parameters) -> Step { return SwapPairs{}; }},
    {"interleave_halves", "block", StepKind::move,
     "alternates blocks of rows of the two halves (1, 8, 16, 64)", kInterleave,
     [](Parameters p) -> Step { return InterleaveHalves{p[0]}; }},
    {"shuffle_rows", "epilogue_tile", StepKind::move,
     "TRTLLM-Gen row shuffle in blocks of 32 (16 unless the tile is a multiple of 128)", kShuffle,
     [](Parameters p) -> Step { return ShuffleRows{p[0]}; }},
    {"pad_halves", "multiple", StepKind::pad, "zero rows at the end of each half", kPad,
     [](Parameters p) -> Step { return PadHalves{.multiple = p[0]}; }},
    {"pad_rows", "multiple", StepKind::pad,
     "zero rows at the end of all rows; moves the boundary of the halves", kWhole,
     [](Parameters p) -> Step { return PadRows{.multiple = p[0]}; }},
    {"pad_cols", "multiple", StepKind::pad, "zero columns at the end of each row", kPad,
     [](Parameters p) -> Step { return PadCols{.multiple = p[0]}; }},
    {"repeat_rows", "times", StepKind::move, "writes every row several times", kRepeat,
     [](Parameters p) -> Step { return RepeatRows{.times = p[0]}; }},
}};

std::string pad_text(std::string_view name, std::int64_t multiple, std::int64_t to,
                     std::byte fill) {
  std::string text =
      to != 0 ? fmt::format("{}(to {})", name, to) : fmt::format("{}({})", name, multiple);
  if (fill != std::byte{0}) text += fmt::format(" of 0x{:02X}", std::to_integer<int>(fill));
  return text;
}

struct Describe {
  std::string operator()(const SwapHalves&) const { return "swap_halves"; }
  std::string operator()(const SwapPairs&) const { return "swap_pairs"; }
  std::string operator()(const InterleaveHalves& step) const {
    return fmt::format("interleave_halves({})", step.block);
  }
  std::string operator()(const ShuffleRows& step) const {
    return fmt::format("shuffle_rows({})", step.epilogue_tile);
  }
  std::string operator()(const PadHalves& step) const {
    return pad_text("pad_halves", step.multiple, step.to, step.fill);
  }
  std::string operator()(const PadRows& step) const {
    return pad_text("pad_rows", step.multiple, step.to, step.fill);
  }
  std::string operator()(const PadCols& step) const {
    return pad_text("pad_cols", step.multiple, step.to, step.fill);
  }
  std::string operator()(const PermuteRuns& step) const { return std::string(step.name); }
  std::string operator()(const RepeatRows& step) const {
    return fmt::format("repeat_rows({})", step.times);
  }
  std::string operator()(const Tile& step) const { return step.layout.name; }
  std::string operator()(const PermuteBits& step) const { return std::string(step.bits->name()); }
  std::string operator()(const Recode& step) const { return step.name; }
};

/// "name(1, 2)" -> name and numbers.
struct Call {
  std::string name;
  std::vector<std::int64_t> numbers;
};

Call parse_call(std::string_view option, const std::string& text) {
  const std::size_t open = text.find('(');
  Call call{text.substr(0, open), {}};
  if (open == std::string::npos) return call;
  if (text.back() != ')') fail(option, "'{}' has no closing parenthesis", text);
  std::size_t at = open + 1;
  while (at < text.size() - 1) {
    const std::size_t end = std::min(text.find(',', at), text.size() - 1);
    std::int64_t number = 0;
    const auto [stop, status] = std::from_chars(text.data() + at, text.data() + end, number);
    constexpr std::int64_t kMost = 1 << 20;
    if (status != std::errc{} || stop != text.data() + end || number < 1 || number > kMost) {
      fail(option, "'{}': parameters are integers from 1 to {}, as in shuffle_rows(128)", text,
           kMost);
    }
    call.numbers.push_back(number);
    at = end + 1;
  }
  return call;
}

/// Words of a text; blanks inside parentheses do not count.
std::vector<std::string> split_calls(const std::string& text) {
  std::vector<std::string> calls(1);
  int depth = 0;
  for (const char c : text) {
    depth += (c == '(') - (c == ')');
    const bool blank = c == ' ' || c == '\t' || c == '\n';
    if (blank && depth > 0) continue;
    if (blank || (c == ',' && depth == 0)) {
      if (!calls.back().empty()) calls.emplace_back();
    } else {
      calls.back() += c;
    }
  }
  if (calls.back().empty()) calls.pop_back();
  return calls;
}

std::string signature(const NamedStep& step) {
  return step.parameters.empty() ? std::string(step.name)
                                 : fmt::format("{}({})", step.name, step.parameters);
}

}  // namespace

std::string describe(const Step& step) { return std::visit(Describe{}, step); }

std::string_view name(StepKind kind) {
  constexpr std::array<std::string_view, 4> kNames{"move", "pad", "recode", "pack"};
  return kNames[static_cast<std::size_t>(kind)];
}

StepKind kind_of(const Step& step) {
  if (std::holds_alternative<Recode>(step)) return StepKind::recode;
  if (std::holds_alternative<PermuteBits>(step)) return StepKind::pack;
  if (std::holds_alternative<PadHalves>(step) || std::holds_alternative<PadRows>(step) ||
      std::holds_alternative<PadCols>(step)) {
    return StepKind::pad;
  }
  return StepKind::move;
}

const std::vector<NamedStep>& all_steps() {
  static const std::vector<NamedStep> steps = [] {
    std::vector<NamedStep> all(kSteps.begin(), kSteps.end());
    for (const auto family : tiles::kFamilies) {
      const auto named = family();
      all.insert(all.end(), named.begin(), named.end());
    }
    return all;
  }();
  return steps;
}

std::vector<Step> parse_steps(std::string_view option, const std::string& text) {
  std::vector<Step> steps;
  for (const std::string& word : split_calls(text)) {
    const Call call = parse_call(option, word);
    const auto& known = all_steps();
    const auto found = std::find_if(known.begin(), known.end(),
                                    [&](const NamedStep& step) { return step.name == call.name; });
    if (found == known.end()) {
      std::vector<std::string> names;
      for (const NamedStep& step : known) names.emplace_back(step.name);
      fail(option, "'{}' is no step; is it {}? `moeref layout list --steps` shows all", call.name,
           fmt::join(nearest_names(call.name, names), " or "));
    }
    const auto wanted = found->parameters.empty() ? 0
                                                  : 1 + std::count(found->parameters.begin(),
                                                                   found->parameters.end(), ',');
    if (static_cast<std::ptrdiff_t>(call.numbers.size()) != wanted) {
      fail(option, "'{}' has {} parameters; write {}", word, call.numbers.size(),
           signature(*found));
    }
    steps.push_back(found->make(call.numbers));
  }
  return steps;
}

}  // namespace moeref
