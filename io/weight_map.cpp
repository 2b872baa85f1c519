#include "io/weight_map.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

using nlohmann::json;

constexpr std::uintmax_t kMaxIndexBytes = std::uintmax_t{512} << 20;
constexpr std::string_view kExtension = ".safetensors";

/// A shard lies in the folder itself: anything that could lead elsewhere is refused.
bool is_plain_file_name(std::string_view name) {
  return name.size() > kExtension.size() && name.size() < 256 && name.ends_with(kExtension) &&
         name.find_first_of(std::string_view("/\\:\0", 4)) == std::string_view::npos;
}

/// Receives the JSON piece by piece: an index of a large model is too long for a tree of values.
class WeightMapReader : public nlohmann::json_sax<json> {
 public:
  explicit WeightMapReader(std::string subject) : subject_(std::move(subject)) {}

  WeightMap take() {
    if (!found_) fail(subject_, "has no object \"weight_map\" of tensor names and their files");
    std::sort(map_.entries.begin(), map_.entries.end(),
              [](const WeightMap::Entry& left, const WeightMap::Entry& right) {
                return left.tensor < right.tensor;
              });
    const auto twice =
        std::adjacent_find(map_.entries.begin(), map_.entries.end(),
                           [](const WeightMap::Entry& left, const WeightMap::Entry& right) {
                             return left.tensor == right.tensor;
                           });
    if (twice != map_.entries.end()) {
      fail(subject_, "weight_map: tensor {} is in two files, {} and {}; keep one of them",
           one_line(twice->tensor), map_.files[twice->file], map_.files[std::next(twice)->file]);
    }
    if (map_.entries.empty()) fail(subject_, "weight_map is empty; it must list every tensor");
    return std::move(map_);
  }

  bool null() override { return value("null"); }
  bool boolean(bool) override { return value("a boolean"); }
  bool number_integer(number_integer_t) override { return value("a number"); }
  bool number_unsigned(number_unsigned_t) override { return value("a number"); }
  bool number_float(number_float_t, const string_t&) override { return value("a number"); }
  bool binary(binary_t&) override { return value("bytes"); }
  bool string(string_t& text) override {
    if (!inside_) return value("a string");
    if (!is_plain_file_name(text)) {
      fail(subject_,
           "weight_map: tensor {} has file \"{}\", needs the plain name of a .safetensors file in "
           "the "
           "same folder",
           one_line(key_), one_line(text));
    }
    const auto number = static_cast<std::uint32_t>(map_.files.size());
    const auto [known, is_new] = numbers_.try_emplace(text, number);
    if (is_new) map_.files.push_back(text);
    map_.entries.push_back({std::move(key_), known->second});
    return true;
  }
  bool key(string_t& text) override {
    key_ = std::move(text);
    return true;
  }
  bool start_object(std::size_t) override {
    if (inside_) value("an object");
    if (depth_ == 1 && key_ == "weight_map") {
      if (found_) fail(subject_, "has two objects \"weight_map\"; keep one of them");
      inside_ = found_ = true;
    }
    return descend();
  }
  bool end_object() override {
    --depth_;
    if (depth_ == 1) inside_ = false;
    return true;
  }
  bool start_array(std::size_t) override {
    value("a list");
    return descend();
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const json::exception& problem) override {
    fail_not_json(subject_, problem.what());
  }

 private:
  bool value(std::string_view kind) const {
    if (inside_) {
      fail(subject_, "weight_map: tensor {} has {}, needs a file name", one_line(key_), kind);
    }
    if (depth_ == 0) fail(subject_, "holds {}, needs a JSON object", kind);
    return true;
  }
  bool descend() {
    if (++depth_ > kMaxJsonDepth) {
      fail(subject_, "JSON is nested deeper than {} levels; no known file of this kind is",
           kMaxJsonDepth);
    }
    return true;
  }

  std::string subject_;
  WeightMap map_;
  std::unordered_map<std::string, std::uint32_t> numbers_;
  std::string key_;
  int depth_ = 0;
  bool inside_ = false;
  bool found_ = false;
};

}  // namespace

WeightMap read_weight_map(const std::filesystem::path& index_file) {
  const std::string text = read_json_text(index_file, kMaxIndexBytes);
  WeightMapReader reader(index_file.string());
  json::sax_parse(text, &reader);
  return reader.take();
}

}  // namespace moeref
