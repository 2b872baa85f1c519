#pragma once

#include <string>
#include <vector>

#include "layout/backend.hpp"
#include "layout/sample_layer.hpp"
#include "layout/shard.hpp"

namespace moeref::testing {

/// A layer and a rank on which backends are tried.
struct ZooCase {
  SampleShape shape;
  Shard rank;
};
/// "mxfp4 e2 h256 i96 gated bias tp1/2"
std::string describe(const ZooCase& animal);

/// Columns of a scale block, which K must be a multiple of; 1 where the format has no such blocks.
std::int64_t block_of(std::string_view format);

/// How many cases: a few with one of each kind; sizes x activations x groups; all of them larger.
enum class ZooSize { few, usual, large };

/// Aligned, awkward and minimal sizes; SiLU with and without limit, GPT-OSS's activation with
/// biases, not gated; 1, 2 and 7 experts; TP 1, 2, 8 and EP 1, 4. In every weight format of
/// `formats`; sizes that a format cannot store are left out.
std::vector<ZooCase> layout_zoo(const std::vector<std::string_view>& formats, ZooSize size);

/// The layer of a case; made once for each shape.
const MoeLayer& layer_of(const SampleShape& shape);

/// "key=value" of every option value but the defaults; integers: 2, 4, 64, 128.
struct OptionValue {
  std::string text;
  bool is_integer = false;
  bool is_defect = false;  ///< reproduces a fault of a framework
};
std::vector<OptionValue> other_values(const Backend& backend);

}  // namespace moeref::testing
