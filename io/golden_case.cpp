#include "io/golden_case.hpp"

#include <vector>

#include <fmt/ranges.h>

#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

using Json = nlohmann::json;
using Views = std::map<std::string, TensorView, std::less<>>;

constexpr std::string_view kIn = "in.";
constexpr std::string_view kOut = "out.";

std::string metadata_text(const SafetensorsFile& file, std::string_view key) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? std::string() : found->second;
}

Json metadata_object(const SafetensorsFile& file, std::string_view key) {
  const std::string text = metadata_text(file, key);
  if (text.empty()) return Json::object();
  return parse_json_object(file.path().string() + ": metadata " + std::string(key), text);
}

Views tensors_with_prefix(const SafetensorsFile& file, std::string_view prefix) {
  Views views;
  for (const auto& [name, view] : file.tensors()) {
    if (name.starts_with(prefix)) views.emplace(name.substr(prefix.size()), view);
  }
  return views;
}

/// A rule spelled as one word.
std::optional<CompareKind> simple_kind(const Json& entry) {
  if (entry == "bits") return CompareKind::bits;
  if (entry == "set") return CompareKind::set;
  if (entry == "info") return CompareKind::info;
  if (entry == "mask") return CompareKind::mask;
  return std::nullopt;
}

CompareRule parse_rule(const SafetensorsFile& file, const std::string& name, const Json& entry) {
  if (const auto kind = simple_kind(entry)) return {*kind, {}, Format::f64};
  if (entry.is_object() && entry.size() == 1) {
    if (entry.contains("mask") && entry["mask"].is_string()) {
      const std::string mask = entry["mask"].get<std::string>();
      if (file.find(mask) == nullptr) {
        fail(file.path().string(), "compare of {} names the mask {}, which the file does not have",
             name, one_line(mask));
      }
      return {CompareKind::masked, mask, Format::f64};
    }
    if (entry.contains("bound") && entry["bound"] == "f32") {
      return {CompareKind::bound, {}, Format::f32};
    }
    if (entry.contains("bound") && entry["bound"] == "f64") {
      return {CompareKind::bound, {}, Format::f64};
    }
  }
  fail(file.path().string(),
       "compare of {} is {}; known: \"bits\", \"set\", \"info\", \"mask\", {{\"mask\": tensor}}, "
       "{{\"bound\": \"f32\" or \"f64\"}}",
       one_line(name), one_line(shown(entry)));
}

const TensorView& require(const GoldenCase& golden, const Views& views, std::string_view prefix,
                          std::string_view name) {
  const auto found = views.find(name);
  if (found != views.end()) return found->second;
  std::vector<std::string> present;
  for (const auto& [other, view] : views) present.push_back(std::string(prefix) + other);
  const auto nearest = nearest_names(std::string(prefix) + std::string(name), present);
  fail(golden.path.string(), "op {} needs the tensor {}{}; present: {}", golden.op, prefix, name,
       present.empty() ? "none" : fmt::format("{}", fmt::join(nearest, ", ")));
}

const TensorView* find(const Views& views, std::string_view name) {
  const auto found = views.find(name);
  return found == views.end() ? nullptr : &found->second;
}

}  // namespace

const TensorView* GoldenCase::find_input(std::string_view name) const { return find(inputs, name); }
const TensorView* GoldenCase::find_output(std::string_view name) const {
  return find(outputs, name);
}

const TensorView& GoldenCase::input(std::string_view name) const {
  return require(*this, inputs, kIn, name);
}

const TensorView& GoldenCase::output(std::string_view name) const {
  return require(*this, outputs, kOut, name);
}

const CompareRule& GoldenCase::rule(std::string_view output) const {
  static const CompareRule kBits;
  const auto found = rules.find(output);
  return found == rules.end() ? kBits : found->second;
}

std::optional<std::string> GoldenCase::text_param(std::string_view name) const {
  const auto found = params.find(std::string(name));
  if (found == params.end()) return std::nullopt;
  if (!found->is_string())
    fail(path.string(), "params.{} is {}, needs a string", name, shown(*found));
  return found->get<std::string>();
}

std::int64_t GoldenCase::integer_param(std::string_view name) const {
  const auto found = params.find(std::string(name));
  if (found == params.end()) fail(path.string(), "op {} needs params.{}", op, name);
  if (!found->is_number_integer()) {
    fail(path.string(), "params.{} is {}, needs an integer", name, shown(*found));
  }
  return found->get<std::int64_t>();
}

double GoldenCase::number_param(std::string_view name) const {
  const auto found = params.find(std::string(name));
  if (found == params.end()) fail(path.string(), "op {} needs params.{}", op, name);
  if (!found->is_number()) {
    fail(path.string(), "params.{} is {}, needs a number", name, shown(*found));
  }
  return found->get<double>();
}

std::int64_t GoldenCase::positive_param(std::string_view name) const {
  const std::int64_t value = integer_param(name);
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  if (value < 1 || value > kMost) {
    fail(path.string(), "params.{} is {}, needs a number from 1 to 2^31", name, value);
  }
  return value;
}

std::string GoldenCase::subject(std::string_view tensor) const {
  return fmt::format("{}: {}", path.string(), tensor);
}

bool has_op(const SafetensorsFile& file) { return file.metadata().contains("op"); }

GoldenCase read_golden_case(std::shared_ptr<const SafetensorsFile> file) {
  GoldenCase golden;
  golden.path = file->path();
  if (!has_op(*file)) {
    fail(golden.path.string(), "is not a golden case: its metadata has no \"op\"");
  }
  golden.op = metadata_text(*file, "op");
  golden.params = metadata_object(*file, "params");
  golden.source = metadata_text(*file, "source");
  golden.inputs = tensors_with_prefix(*file, kIn);
  golden.outputs = tensors_with_prefix(*file, kOut);
  const Json compare = metadata_object(*file, "compare");
  for (const auto& [name, entry] : compare.items()) {
    if (!name.starts_with(kOut) || file->find(name) == nullptr) {
      fail(golden.path.string(), "compare names {}, which the file does not have", one_line(name));
    }
    golden.rules.emplace(name.substr(kOut.size()), parse_rule(*file, name, entry));
  }
  golden.file = std::move(file);
  return golden;
}

GoldenCase read_golden_case(const std::filesystem::path& path) {
  return read_golden_case(SafetensorsFile::open(path));
}

}  // namespace moeref
