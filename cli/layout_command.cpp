// moeref layout: what the backends make of weights. The subcommands are in layout_*.cpp.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "cli/layout_commands.hpp"
#include "cli/layout_formats.hpp"
#include "cli/selection.hpp"
#include "layout/prepare.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

struct OrderName {
  std::string_view name;
  GateOrder order;
};

constexpr std::array kOrders{
    OrderName{"gate_up", GateOrder::gate_up}, OrderName{"up_gate", GateOrder::up_gate},
    OrderName{"interleaved", GateOrder::interleaved}, OrderName{"none", GateOrder::none}};

bool parse_boolean(std::string_view option, const std::string& text) {
  if (text == "true" || text == "1" || text == "yes") return true;
  if (text == "false" || text == "0" || text == "no") return false;
  fail(option, "'{}' is neither true nor false", text);
}

/// A limit of the SiLU form: a positive number.
float parse_limit(std::string_view option, const std::string& text) {
  char* end = nullptr;
  const float limit = std::strtof(text.c_str(), &end);
  const bool whole = !text.empty() && *end == '\0';
  if (whole && limit > 0.0f && std::isfinite(limit)) return limit;
  fail(option, "'{}' is no positive number", text);
}

}  // namespace

void add_rank_options(CLI::App& command, BackendChoice& choice) {
  command.add_option("--option", choice.options,
                     "options of the backend, key=value (see moeref layout list NAME)");
  command.add_option("--tp", choice.tp, "tensor-parallel rank, R/N");
  command.add_option("--ep", choice.ep, "expert-parallel rank, R/N");
}

std::vector<std::pair<std::string, std::string>> parse_pairs(
    std::string_view option, const std::string& text, const std::vector<std::string>& known) {
  std::vector<std::pair<std::string, std::string>> pairs;
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find_first_of(", ", at), text.size());
    const std::string word = text.substr(at, end - at);
    at = end + 1;
    if (word.empty()) continue;
    const std::size_t equals = word.find('=');
    const std::string key = word.substr(0, equals);
    if (equals == std::string::npos || std::find(known.begin(), known.end(), key) == known.end()) {
      fail(option, "'{}' is not understood; write {}=...", word, fmt::join(known, "=..., "));
    }
    for (const auto& [earlier, value] : pairs) {
      if (earlier == key)
        fail(option, "{} is given twice, {} and {}; give it once", key, value,
             word.substr(equals + 1));
    }
    pairs.emplace_back(key, word.substr(equals + 1));
  }
  return pairs;
}

std::int64_t parse_size(std::string_view option, const std::string& text, std::int64_t least,
                        std::int64_t most) {
  std::int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || end != text.data() + text.size() || value < least || value > most) {
    fail(option, "'{}' is no integer from {} to {}", text, least, most);
  }
  return value;
}

SampleShape parse_sample_shape(const std::string& text, const Backend& backend) {
  constexpr std::int64_t kMost = 1 << 20;
  SampleShape shape;
  shape.weight_format = backend.formats.front();
  for (const auto& [key, value] : parse_pairs(
           "--shape", text,
           {"experts", "hidden", "intermediate", "gated", "bias", "format", "limit", "seed"})) {
    const std::string option = "--shape " + key;
    if (key == "experts") shape.experts = parse_size(option, value, 1, kMost);
    if (key == "hidden") shape.hidden = parse_size(option, value, 1, kMost);
    if (key == "intermediate") shape.intermediate = parse_size(option, value, 1, kMost);
    if (key == "gated") shape.gated = parse_boolean(option, value);
    if (key == "bias") shape.bias = parse_boolean(option, value);
    if (key == "format") shape.weight_format = find_weight_form(option, value).name;
    if (key == "limit") shape.limit = parse_limit(option, value);
    if (key == "seed") {
      shape.seed = static_cast<std::uint64_t>(parse_size(option, value, 0, INT64_MAX));
    }
  }
  return shape;
}

EmptyRank empty_rank(const Backend& backend, const Options& options, const SampleShape& sample,
                     const Shard& rank) {
  if (rank.ep_size < 1 || rank.ep_rank < 0 || rank.ep_rank >= rank.ep_size ||
      sample.experts % rank.ep_size != 0) {
    fail("--ep", "rank {}/{} of {} experts does not exist; give R/N, N a divisor of the experts",
         rank.ep_rank, rank.ep_size, sample.experts);
  }
  LayerShape shape;
  shape.model = "--shape";
  shape.weight_format = sample.weight_format;
  shape.experts = sample.experts / rank.ep_size;
  shape.total_experts = sample.experts;
  shape.first_expert = rank.ep_rank * shape.experts;
  shape.hidden = sample.hidden;
  shape.intermediate = shape.stride = shape.full_intermediate = sample.intermediate;
  shape.gated = sample.gated;
  shape.bias = sample.bias;
  shape = empty_layer(shape).shape;
  const LoadedRange range = loaded_range(backend, options, shape, rank);
  set_share(shape, range, rank);
  return {empty_layer(shape), {rank, range}};
}

GateOrder parse_order(const std::string& text) {
  std::vector<std::string_view> known;
  for (const OrderName& entry : kOrders) {
    if (entry.name == text) return entry.order;
    known.push_back(entry.name);
  }
  fail("--order", "'{}' is unknown; known: {}", text, fmt::join(known, ", "));
}

std::string_view order_name(GateOrder order) {
  for (const OrderName& entry : kOrders) {
    if (entry.order == order) return entry.name;
  }
  return "none";
}

std::string wrapped(const std::string& text, std::size_t indent, std::size_t width) {
  std::string lines;
  std::size_t column = indent;
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    const std::string word = text.substr(at, end - at);
    if (column > indent && column + 1 + word.size() > width) {
      lines.erase(lines.find_last_not_of(' ') + 1);
      lines += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      lines += ' ';
      ++column;
    }
    lines += word;
    column += word.size();
    at = end + 1;
  }
  return lines;
}

void add_layout_command(CLI::App& app, const GlobalOptions& global) {
  CLI::App* layout = app.add_subcommand(
      "layout", "prepare weights as a backend does, undo it, explain a byte, audit a pipeline");
  layout->require_subcommand(1);
  layout->footer(
      "Examples:\n"
      "  moeref layout list\n"
      "  moeref layout list flashinfer_trtllm_nvfp4\n"
      "  moeref layout apply CHECKPOINT --layer 0 --backend NAME -o prepared.safetensors\n"
      "  moeref layout explain prepared.safetensors w13_scale --at byte:0x1f3c0");
  add_layout_list(*layout, global);
  add_layout_apply(*layout, global);
  add_layout_undo(*layout, global);
  add_layout_explain(*layout, global);
  add_layout_audit(*layout, global);
}

}  // namespace moeref::cli
