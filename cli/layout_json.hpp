#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "layout/layer_tensors.hpp"
#include "layout/prepare.hpp"

namespace moeref::cli {

/// Fields of a JSON object in a file that may be hostile. Error (names the file and the field):
/// absent, of another type, outside its range.
class Fields {
 public:
  Fields(std::string subject, const nlohmann::json& object);

  /// Any value. Error: absent.
  const nlohmann::json& at(const char* key) const;
  bool has(const char* key) const { return object_->contains(key); }
  std::int64_t integer(const char* key, std::int64_t least, std::int64_t most) const;
  bool boolean(const char* key) const;
  std::string string(const char* key) const;
  Fields object(const char* key) const;
  const nlohmann::json& all() const { return *object_; }
  const std::string& subject() const { return subject_; }

 private:
  std::string subject_;
  const nlohmann::json* object_;
};

/// The most that sizes in a file's metadata may be: a file of `bytes` data holds no more elements.
std::int64_t most_elements(std::int64_t bytes);

/// {dtype, bits, halves, half_rows, cols, block_rows, block_cols}; a block of 0 is the whole axis
nlohmann::json to_json(const TensorStack& stack);
/// A stack without data. Error: sizes that no tensor of at most `most` elements has.
TensorStack stack_from_json(const Fields& fields, std::int64_t experts, std::int64_t most);

/// {shape, sources, scalars}: all that undo, explain and a later preparation need to know of a
/// layer, beside its data. Scalars are stored as f32 bit patterns.
nlohmann::json to_json(const LayerTensors& layer);
/// The layer without data. Error: fields that contradict each other or exceed `most`.
LayerTensors layer_from_json(const Fields& fields, std::int64_t most);

/// {tp: "R/N", ep: "R/N", range: {begin, count, stride}}
void add_rank(nlohmann::json& params, const Shard& rank, const LoadedRange& range);
struct StoredRank {
  Shard rank;
  LoadedRange range;
};
StoredRank rank_from_json(const Fields& fields, const LayerShape& shape);

}  // namespace moeref::cli
