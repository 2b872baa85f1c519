#include "layout_zoo.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "engine/audit.hpp"
#include "layout/weight_form.hpp"
#include "quant/formats.hpp"

namespace moeref::testing {
namespace {

struct Size {
  std::int64_t hidden;
  std::int64_t intermediate;
};

// Aligned, then multiples of 32 only, then odd multiples of 16 and less, then the smallest.
constexpr Size kFewSizes[] = {{256, 256}, {512, 128}, {320, 96}, {128, 176}};
constexpr Size kUsualSizes[] = {{256, 256}, {512, 256}, {256, 512}, {320, 96}, {192, 160},
                                {96, 320},  {128, 192}, {128, 176}, {64, 48},  {128, 61},
                                {160, 33},  {128, 128}, {64, 64},   {32, 32},  {16, 16}};
constexpr Size kOddSizes[] = {{64, 48}, {128, 61}, {32, 32}};
constexpr Size kMainSizes[] = {{256, 256}, {320, 96}, {128, 192}};
constexpr Size kLargeSizes[] = {{512, 512}, {1024, 256}, {256, 1024}, {736, 736},
                                {736, 320}, {320, 736},  {576, 2880}, {2880, 96},
                                {256, 961}, {512, 720},  {384, 1856}, {1536, 192},
                                {640, 352}, {48, 976},   {128, 8},    {1024, 384}};

struct Kind {
  bool gated;
  bool bias;
  bool interleaved;
  float limit;
  Format tile_scales = Format::f32;
};
constexpr Kind kSilu{true, false, false, kNoLimit};
/// A limit that values of every format reach.
constexpr Kind kLimited{true, false, false, 0.5f};
/// Gate and up in one tensor, with one global scale.
constexpr Kind kLimitedFile{true, false, true, 0.5f};
constexpr Kind kGptOss{true, true, false, kNoLimit};
constexpr Kind kGptOssFile{true, true, true, kNoLimit};
constexpr Kind kRelu2{false, false, false, kNoLimit};
constexpr Kind kRelu2Bias{false, true, false, kNoLimit};
constexpr Kind kPowersOfTwo{true, false, false, kNoLimit, Format::e8m0};
constexpr Kind kHalfScales{true, false, false, kNoLimit, Format::bf16};

/// Collects the cases of one weight format.
class Keeper {
 public:
  Keeper(std::string_view format, std::vector<ZooCase>& cases) : format_(format), cases_(cases) {}

  void add(const Size& size, const Kind& kind, std::int64_t experts = 2, const Shard& rank = {}) {
    const std::int64_t block = block_of(format_);
    if (size.hidden % block != 0 || size.intermediate % block != 0) return;
    const bool rows_share_scales = format_ == "fp8_block" || format_ == "fp8_tensor";
    if (kind.interleaved && rows_share_scales) return;
    if (kind.tile_scales != Format::f32 && format_ != "fp8_block") return;
    ZooCase made;
    made.shape = {.experts = experts,
                  .hidden = size.hidden,
                  .intermediate = size.intermediate,
                  .gated = kind.gated,
                  .bias = kind.bias,
                  .weight_format = std::string(format_),
                  .seed = static_cast<std::uint64_t>(size.hidden * 4096 + size.intermediate),
                  .interleaved = kind.interleaved,
                  .limit = kind.limit,
                  .tile_scales = kind.tile_scales};
    made.rank = rank;
    cases_.push_back(std::move(made));
  }

 private:
  std::string_view format_;
  std::vector<ZooCase>& cases_;
};

constexpr Shard tp(std::int64_t rank, std::int64_t size) {
  return {.tp_rank = rank, .tp_size = size};
}
constexpr Shard ep(std::int64_t rank, std::int64_t size) {
  return {.ep_rank = rank, .ep_size = size};
}

/// Ranks of a layer: the first, one inside, the last (which may be empty); TP and EP together.
void add_groups(Keeper& keeper, const Kind& kind, const Size& even, const Size& ragged) {
  keeper.add(even, kind, 2, tp(1, 2));
  keeper.add(even, kind, 4, ep(3, 4));
  keeper.add(ragged, kind, 2, tp(0, 8));
  keeper.add(ragged, kind, 2, tp(7, 8));
  keeper.add(even, kind, 4, {.tp_rank = 1, .tp_size = 2, .ep_rank = 1, .ep_size = 4});
}

void add_few(Keeper& keeper) {
  for (const Kind& kind : {kSilu, kLimited, kGptOss, kRelu2}) {
    for (const Size& size : kFewSizes) keeper.add(size, kind);
  }
  for (const Kind& kind : {kPowersOfTwo, kHalfScales}) {
    for (const Size& size : kFewSizes) keeper.add(size, kind);
  }
  for (const Kind& kind : {kSilu, kLimited, kGptOss}) {
    add_groups(keeper, kind, {256, 256}, {256, 768});
  }
}

void add_usual(Keeper& keeper) {
  for (const Size& size : kUsualSizes) keeper.add(size, kSilu);
  for (const Kind& kind : {kGptOss, kRelu2}) {
    for (const Size& size : kFewSizes) keeper.add(size, kind);
    for (const Size& size : kOddSizes) keeper.add(size, kind);
  }
  for (const Kind& kind :
       {kLimited, kLimitedFile, kGptOssFile, kRelu2Bias, kPowersOfTwo, kHalfScales}) {
    for (const Size& size : kMainSizes) keeper.add(size, kind);
  }
  for (const Kind& kind : {kSilu, kLimited, kGptOss}) {
    for (const std::int64_t experts : {std::int64_t{1}, std::int64_t{7}}) {
      keeper.add({256, 128}, kind, experts);
    }
    add_groups(keeper, kind, {128, 256}, {320, 736});
  }
  for (const Kind& kind : {kSilu, kLimited, kGptOss, kRelu2, kPowersOfTwo}) {
    add_groups(keeper, kind, {256, 256}, {128, 1024});
  }
}

void add_large(Keeper& keeper) {
  for (const Size& size : kLargeSizes) {
    for (const Kind& kind :
         {kSilu, kLimited, kGptOss, kGptOssFile, kRelu2, kRelu2Bias, kPowersOfTwo, kHalfScales}) {
      keeper.add(size, kind);
    }
  }
  for (std::int64_t rank = 0; rank < 8; ++rank) {
    for (const Kind& kind : {kSilu, kLimited, kGptOss, kRelu2}) {
      keeper.add({256, 1536}, kind, 1, tp(rank, 8));
      keeper.add({320, 2880}, kind, 1, tp(rank, 8));
      keeper.add({128, 7688}, kind, 1, tp(rank, 8));
    }
  }
}

auto key_of(const SampleShape& shape) {
  return std::tuple(shape.experts, shape.hidden, shape.intermediate, shape.gated, shape.bias,
                    shape.weight_format, shape.seed, shape.interleaved, shape.limit,
                    shape.tile_scales);
}

}  // namespace

std::int64_t block_of(std::string_view format) {
  const WeightForm& form = find_weight_form("layout zoo", format);
  return form.block_rows == 1 && form.block_cols != kWholeAxis ? form.block_cols : 1;
}

std::string describe(const ZooCase& animal) {
  const SampleShape& shape = animal.shape;
  std::string text = fmt::format("{} e{} h{} i{}", shape.weight_format, shape.experts, shape.hidden,
                                 shape.intermediate);
  text += shape.gated ? " gated" : " not gated";
  if (shape.bias) text += " bias";
  if (shape.interleaved) text += " interleaved";
  if (shape.limit != kNoLimit) text += " limit";
  if (shape.tile_scales != Format::f32) {
    text += fmt::format(" {} scales", name(shape.tile_scales));
  }
  const Shard& rank = animal.rank;
  if (rank.tp_size > 1) text += fmt::format(" tp{}/{}", rank.tp_rank, rank.tp_size);
  if (rank.ep_size > 1) text += fmt::format(" ep{}/{}", rank.ep_rank, rank.ep_size);
  return text;
}

std::vector<ZooCase> layout_zoo(const std::vector<std::string_view>& formats, ZooSize size) {
  std::vector<ZooCase> cases;
  for (const std::string_view format : formats) {
    Keeper keeper(format, cases);
    if (size == ZooSize::few) add_few(keeper);
    if (size == ZooSize::usual) add_usual(keeper);
    if (size == ZooSize::large) add_large(keeper);
  }
  return cases;
}

const MoeLayer& layer_of(const SampleShape& shape) {
  static std::map<decltype(key_of(shape)), MoeLayer> made;
  const auto found = made.find(key_of(shape));
  if (found != made.end()) return found->second;
  return made.emplace(key_of(shape), sample_layer(shape)).first->second;
}

std::vector<OptionValue> other_values(const Backend& backend) {
  std::vector<OptionValue> all;
  for (const OptionInfo& option : backend.options) {
    const bool is_integer = option.is_integer();
    const std::vector<std::string_view> values =
        is_integer ? std::vector<std::string_view>{"2", "4", "64", "128"} : option.values;
    for (const std::string_view value : values) {
      const std::string_view fallback = option.default_value();
      if (value == fallback) continue;
      all.push_back(
          {fmt::format("{}={}", option.name, value), is_integer, is_upstream_defect(value)});
    }
  }
  return all;
}

}  // namespace moeref::testing
