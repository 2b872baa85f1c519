#include "cli/logical_weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "cli/layout_commands.hpp"
#include "cli/layout_formats.hpp"
#include "cli/layout_undoing.hpp"
#include "cli/prepared_file.hpp"
#include "io/json_file.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/tensor.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

/// The tensors of a file of logical weights, under their names without prefix.
class Reader {
 public:
  Reader(const std::shared_ptr<const SafetensorsFile>& file, const LogicalHints& hints)
      : file_(file), prefix_(file->find("w13") != nullptr ? "" : "weights.") {
    read_metadata();
    set_format(hints);
    w13_ = &matrix("w13");
    w2_ = &matrix("w2");
    experts_ = w13_->shape[0];
    hidden_ = codes_in_row(*w13_);
    intermediate_ = codes_in_row(*w2_);
    set_halves(hints);
    check_sizes();
  }

  LogicalFile read() {
    LogicalFile logical;
    fill_layer(logical.layer);
    logical.origins = origins();
    if (!stored_) return logical;
    logical.layer.model_type = stored_->shape.model;
    if (logical_rank_) logical.rank = *logical_rank_;
    if (!logical.rank.rank.is_whole()) logical.part = stored_;
    return logical;
  }

 private:
  std::string subject(const std::string& tensor) const {
    return fmt::format("{}: {}{}", file_->path().string(), prefix_, tensor);
  }
  const TensorView* find(const std::string& tensor) const { return file_->find(prefix_ + tensor); }

  const TensorView& matrix(const std::string& tensor) const {
    const TensorView& view = file_->at(prefix_ + tensor);
    const bool empty_rank = stored_ && stored_->shape.intermediate == 0;
    if (view.shape.size() != 3 || (element_count(view.shape) == 0 && !empty_rank)) {
      fail(subject(tensor), "is {}; needed is [experts, rows, columns]", to_string(view.shape));
    }
    return view;
  }

  void read_metadata() {
    const auto text = file_->metadata().find("params");
    if (text == file_->metadata().end()) return;
    const std::string name = file_->path().string() + ": metadata params";
    params_ = parse_json_object(name, text->second);
    const auto op = file_->metadata().find("op");
    if (op == file_->metadata().end()) return;
    if (op->second == "moe_forward" && params_.contains("prepared")) {
      params_ = json(params_["prepared"]);
    } else if (op->second != kLogicalWeights && op->second != kPreparedWeights) {
      return;
    }
    std::int64_t bytes = 0;
    for (const auto& [tensor, view] : file_->tensors()) {
      bytes += static_cast<std::int64_t>(view.bytes.size());
    }
    const Fields fields(name, params_);
    is_logical_ = op->second == kLogicalWeights;
    if (!is_logical_) check_not_prepared();
    check_not_recoded(fields);
    stored_ = layer_from_json(fields, most_elements(bytes));
    logical_rank_ = rank_from_json(fields, stored_->shape);
  }

  Origins origins() const {
    Origins origins{file_->path().filename().string(), std::nullopt};
    if (!stored_) return origins;
    const Fields fields(file_->path().string() + ": metadata params", params_);
    if (fields.has("checkpoint")) origins.checkpoint = one_line(fields.string("checkpoint"));
    if (fields.has("layer")) origins.layer = fields.integer("layer", 0, INT64_MAX);
    return origins;
  }

  /// Error: weights that a backend's steps have moved; factors that are not the metadata's.
  void check_not_prepared() const {
    const PreparedFile prepared = open_prepared(file_->path());
    for (const TensorRecipe& recipe : prepared.layer.recipe.tensors) {
      if (recipe.steps.empty()) continue;
      fail(file_->path().string(),
           "holds weights prepared for {}; give the checkpoint, or take them back with `moeref "
           "layout undo` first",
           prepared.layer.backend->name);
    }
    for (const FactorCheck& check : check_factors(prepared)) {
      if (check.wrong > 0) fail(subject(check.name), "{}", check.first_wrong);
    }
  }

  void check_not_recoded(const Fields& fields) const {
    if (!fields.has("recoded")) return;
    for (const auto& [tensor, steps] : fields.object("recoded").all().items()) {
      fail(file_->path().string(),
           "{} holds codes that {} has rewritten, no longer the checkpoint's; give the checkpoint",
           one_line(tensor), shown(steps));
    }
  }

  void set_format(const LogicalHints& hints) {
    std::string format = hints.format;
    if (format.empty() && stored_) format = stored_->shape.weight_format;
    if (format.empty() && params_.contains("weight_format") &&
        params_["weight_format"].is_string()) {
      format = params_["weight_format"].get<std::string>();
    }
    if (format.empty()) {
      fail(file_->path().string(), "does not say its weight format; give it with --format");
    }
    form_ = &find_weight_form(hints.format.empty() ? file_->path().string() : "--format",
                              one_line(format));
  }

  bool is_packed() const { return form_->codes == Format::e2m1; }
  /// Columns of a code tensor, counted in codes.
  std::int64_t codes_in_row(const TensorView& view) const {
    return view.shape[2] * (is_packed() ? info(view.dtype).bits / 4 : 1);
  }

  void set_halves(const LogicalHints& hints) {
    const std::int64_t rows = w13_->shape[1];
    if (stored_ ? !stored_->shape.gated : rows == intermediate_) {
      order_ = GateOrder::none;
      return;
    }
    if (rows != 2 * intermediate_) {
      fail(subject("w13"), "has {} rows; w2 has {} columns, so {} rows (gate and up) or {} fit",
           rows, intermediate_, 2 * intermediate_, intermediate_);
    }
    if (!hints.order.empty()) {
      order_ = parse_order(hints.order);
      if (order_ == GateOrder::none) {
        fail("--order", "none does not fit: w13 has gate and up rows, {} for {} columns of w2",
             rows, intermediate_);
      }
    } else if (stored_ || params_.contains("weight_format")) {
      order_ = GateOrder::gate_up;
    } else {
      fail(subject("w13"),
           "has gate and up rows in an order that the file does not say; give --order gate_up, "
           "up_gate or interleaved");
    }
  }

  void check_sizes() const {
    const Shape& w2 = w2_->shape;
    if (w2[0] != experts_ || w2[1] != hidden_) {
      fail(subject("w2"), "is {}; w13 is {}, so w2 needs {} experts of {} rows", to_string(w2),
           to_string(w13_->shape), experts_, hidden_);
    }
    for (const TensorView* codes : {w13_, w2_}) {
      const bool raw = codes->dtype == DType::u8 || codes->dtype == DType::i8;
      const bool packed_f4 = is_packed() && codes->dtype == DType::f4;
      if (codes->dtype == stored_dtype(form_->codes) || packed_f4 ||
          (raw && (is_packed() || form_->codes == Format::e4m3))) {
        continue;
      }
      fail(file_->path().string() + ": " + codes->name, "is {}; {} weights are {}",
           name(codes->dtype), form_->name, name(stored_dtype(form_->codes)));
    }
    if (!stored_) return;
    const LayerShape& shape = stored_->shape;
    if (shape.experts != experts_ || shape.hidden != hidden_ ||
        shape.intermediate != intermediate_ || shape.gated != (order_ != GateOrder::none)) {
      fail(subject("w13"), "is {}, its metadata say {} experts, hidden {}, intermediate {}",
           to_string(w13_->shape), shape.experts, shape.hidden, shape.intermediate);
    }
  }

  /// Where one half of an expert's rows begins, and the step between its rows, in rows.
  struct HalfRows {
    std::int64_t first;
    std::int64_t step;
  };
  HalfRows half_rows(std::int64_t expert, int half, int halves, std::int64_t rows) const {
    const std::int64_t begin = expert * halves * rows;
    if (halves == 1) return {begin, 1};
    if (order_ == GateOrder::interleaved) return {begin + half, 2};
    return {begin + (order_ == GateOrder::up_gate ? 1 - half : half) * rows, 1};
  }

  ScaledMatrix code_matrix(const TensorView& view, std::int64_t expert, int half, int halves,
                           std::int64_t rows, std::int64_t cols) const {
    const HalfRows at = half_rows(expert, half, halves, rows);
    ScaledMatrix part;
    part.name = view.name;
    part.rows = rows;
    part.cols = cols;
    part.codes = {.data = view.bytes.data(),
                  .format = form_->codes,
                  .origin = at.first * cols,
                  .row_stride = at.step * cols};
    return part;
  }

  /// The block of a scale tensor: as the file was written, else that of the format.
  struct Block {
    std::int64_t rows;
    std::int64_t cols;
  };
  Block block_of(Slot slot) const {
    if (stored_ && stored_->find(slot) != nullptr) {
      return {stored_->find(slot)->block_rows, stored_->find(slot)->block_cols};
    }
    return {form_->block_rows, form_->block_cols};
  }

  Format scale_format(const TensorView& view) const {
    if (const std::optional<Format> format = float_format(view.dtype)) return *format;
    switch (view.dtype) {
      case DType::f8_e8m0:
        return Format::e8m0;
      case DType::f8_e4m3:
        return Format::ue4m3;
      case DType::u8:
      case DType::i8:
        return info(stored_dtype(form_->scales)).bits == 8 ? form_->scales : Format::e8m0;
      default:
        fail(file_->path().string() + ": " + view.name, "is {}, which holds no scales",
             name(view.dtype));
    }
  }

  void add_scales(ScaledMatrix& part, const TensorView& view, Slot slot, std::int64_t expert,
                  int half, int halves) const {
    const Block block = block_of(slot);
    const std::int64_t rows = block_count(part.rows, block.rows);
    const std::int64_t cols = block_count(part.cols, block.cols);
    const auto block_text = [](std::int64_t size) {
      return size == kWholeAxis ? std::string("all") : std::to_string(size);
    };
    if (element_count(view.shape) != experts_ * halves * rows * cols) {
      fail(file_->path().string() + ": " + view.name, "is {}; needed is {}, one scale for {} x {}",
           to_string(view.shape), to_string(Shape{experts_, halves * rows, cols}),
           block_text(block.rows), block_text(block.cols));
    }
    if (order_ == GateOrder::interleaved && halves == 2 && block.rows != 1 &&
        block.rows != kWholeAxis) {
      fail(file_->path().string() + ": " + view.name,
           "has blocks of {} rows; rows of gate and up that alternate have scales per row",
           block.rows);
    }
    const Format format = scale_format(view);
    const HalfRows at = half_rows(expert, half, halves, rows);
    part.scales =
        ScaleGrid{.data = view.bytes.data() + at.first * cols * (info(view.dtype).bits / 8),
                  .format = format,
                  .block_rows = block.rows,
                  .block_cols = block.cols,
                  .row_stride = block.rows == kWholeAxis ? 0 : at.step * cols,
                  .col_stride = block.cols == kWholeAxis ? 0 : 1};
  }

  ScaledMatrix bias(const std::string& tensor, std::int64_t expert, int half, int halves,
                    std::int64_t width) const {
    const TensorView* view = find(tensor);
    if (view == nullptr) return {};
    const bool is_float =
        view->dtype == DType::f32 || view->dtype == DType::bf16 || view->dtype == DType::f16;
    if (!is_float || view->shape.empty() || view->shape[0] != experts_ ||
        view->size() != experts_ * halves * width) {
      fail(subject(tensor), "is {} {}; needed is F32, BF16 or F16 {}", name(view->dtype),
           to_string(view->shape), to_string(Shape{experts_, halves * width}));
    }
    const HalfRows at = half_rows(expert, half, halves, width);
    ScaledMatrix part;
    part.name = view->name;
    part.rows = 1;
    part.cols = width;
    part.codes = {.data = view->bytes.data(),
                  .format = scale_format(*view),
                  .origin = at.first,
                  .row_stride = width,
                  .col_stride = at.step};
    return part;
  }

  ScaledMatrix weight(const TensorView& view, const std::string& tensor, Slot scale_slot,
                      std::int64_t expert, int half, int halves, std::int64_t rows,
                      std::int64_t cols) const {
    ScaledMatrix part = code_matrix(view, expert, half, halves, rows, cols);
    if (form_->has_scales) {
      add_scales(part, file_->at(prefix_ + tensor + "_scale"), scale_slot, expert, half, halves);
    }
    return part;
  }

  /// An f32 tensor of `count` numbers, or nothing if it is absent.
  std::vector<float> numbers(const std::string& tensor, std::int64_t count) const {
    const TensorView* view = find(tensor);
    if (view == nullptr) return {};
    if (view->dtype != DType::f32 || view->size() != count) {
      fail(subject(tensor), "is {} {}; needed are {} F32 numbers", name(view->dtype),
           to_string(view->shape), count);
    }
    std::vector<float> values(static_cast<std::size_t>(count));
    std::memcpy(values.data(), view->bytes.data(), view->bytes.size());
    return values;
  }

  /// Global scales that multiply; one that divides as its reciprocal in f32.
  std::vector<float> globals(const std::string& tensor, std::int64_t count) const {
    std::vector<float> values = numbers(tensor + "_scale_2", count);
    if (!values.empty()) return values;
    values = numbers(tensor + "_global_scale", count);
    for (float& value : values) value = 1.0f / value;
    if (values.empty()) {
      fail(subject(tensor), "is {} without its global scales; add {}_scale_2, {} F32 numbers",
           form_->name, tensor, count);
    }
    return values;
  }

  /// Error: factors of the file that are not those of its metadata.
  void check_stored(const std::string& tensor, const std::vector<float>& stored) const {
    const std::vector<float> found = numbers(tensor, static_cast<std::int64_t>(stored.size()));
    for (std::size_t i = 0; i < found.size(); ++i) {
      const auto has = std::bit_cast<std::uint32_t>(found[i]);
      const auto needs = std::bit_cast<std::uint32_t>(stored[i]);
      if (has == needs) continue;
      fail(subject(tensor), "[{}] is {} ({:#010x}), the file's metadata say {} ({:#010x})", i,
           found[i], has, stored[i], needs);
    }
  }

  ExpertScalars scalars(int halves) const {
    ExpertScalars read;
    if (stored_) {
      if (is_logical_) {
        for_each_logical_scalar(
            *stored_, [this](const std::string& tensor, const Shape&,
                             const std::vector<float>& values) { check_stored(tensor, values); });
      }
      return stored_->scalars;
    }
    if (form_->has_globals) {
      read.w13_scale = globals("w13", experts_ * halves);
      read.w2_scale = globals("w2", experts_);
    }
    read.w13_input_scale = numbers("w13_input_scale", experts_ * halves);
    read.w2_input_scale = numbers("w2_input_scale", experts_);
    read.alpha = numbers("swiglu_alpha", experts_);
    read.beta = numbers("swiglu_beta", experts_);
    read.limit = numbers("swiglu_limit", experts_);
    return read;
  }

  void set_scalars(Expert& expert, const ExpertScalars& numbers_of, std::size_t index) const {
    const bool gated = order_ != GateOrder::none;
    const std::size_t halves = gated ? 2 : 1;
    const auto set_global = [this](ScaledMatrix& part, const std::vector<float>& values,
                                   std::size_t at) {
      if (!form_->has_globals || at >= values.size()) return;
      part.global_rule = GlobalScaleRule::multiply;
      part.global_scale = values[at];
    };
    const auto input = [](const std::vector<float>& values, std::size_t at) {
      return at < values.size() ? std::optional<float>(values[at]) : std::nullopt;
    };
    if (gated) {
      set_global(expert.gate, numbers_of.w13_scale, halves * index);
      expert.gate_input_scale = input(numbers_of.w13_input_scale, halves * index);
    }
    set_global(expert.up, numbers_of.w13_scale, halves * index + halves - 1);
    set_global(expert.down, numbers_of.w2_scale, index);
    expert.up_input_scale = input(numbers_of.w13_input_scale, halves * index + halves - 1);
    expert.down_input_scale = input(numbers_of.w2_input_scale, index);
  }

  Expert expert(std::int64_t index) const {
    const bool gated = order_ != GateOrder::none;
    const int halves = gated ? 2 : 1;
    Expert read;
    const auto w13 = [&](int half) {
      return weight(*w13_, "w13", Slot::w13_scale, index, half, halves, intermediate_, hidden_);
    };
    if (gated) {
      read.gate = w13(0);
      read.gate_bias = bias("w13_bias", index, 0, halves, intermediate_);
    }
    read.up = w13(halves - 1);
    read.up_bias = bias("w13_bias", index, halves - 1, halves, intermediate_);
    read.down = weight(*w2_, "w2", Slot::w2_scale, index, 0, 1, hidden_, intermediate_);
    read.down_bias = bias("w2_bias", index, 0, 1, hidden_);
    return read;
  }

  void fill_layer(MoeLayer& layer) const {
    layer.model_type = file_->path().filename().string();
    layer.hidden = hidden_;
    layer.intermediate = intermediate_;
    layer.weight_format = form_->name;
    layer.gate_order = order_;
    layer.storage.push_back(file_);
    const bool gated = order_ != GateOrder::none;
    layer.activation.form = gated ? ActivationForm::swiglu : ActivationForm::relu2;
    const ExpertScalars numbers_of = scalars(gated ? 2 : 1);
    layer.activation.alphas = numbers_of.alpha;
    layer.activation.betas = numbers_of.beta;
    layer.activation.limits = numbers_of.limit;
    for (std::int64_t index = 0; index < experts_; ++index) {
      layer.experts.push_back(expert(index));
      set_scalars(layer.experts.back(), numbers_of, static_cast<std::size_t>(index));
    }
  }

  std::shared_ptr<const SafetensorsFile> file_;
  std::string prefix_;
  json params_ = json::object();
  std::optional<LayerTensors> stored_;  ///< what the metadata say, without data
  bool is_logical_ = false;             ///< what undo wrote; else weights that no step has moved
  std::optional<StoredRank> logical_rank_;
  const WeightForm* form_ = nullptr;
  const TensorView* w13_ = nullptr;
  const TensorView* w2_ = nullptr;
  GateOrder order_ = GateOrder::none;
  std::int64_t experts_ = 0;
  std::int64_t hidden_ = 0;
  std::int64_t intermediate_ = 0;
};

}  // namespace

bool holds_logical_weights(const SafetensorsFile& file) {
  return file.find("w13") != nullptr || file.find("weights.w13") != nullptr;
}

LogicalFile read_logical_weights(const std::shared_ptr<const SafetensorsFile>& file,
                                 const LogicalHints& hints) {
  if (!holds_logical_weights(*file)) {
    fail(file->path().string(),
         "has no tensor w13 (or weights.w13); give a checkpoint folder, a "
         "file of logical tensors, or a tensor's name and --steps");
  }
  return Reader(file, hints).read();
}

}  // namespace moeref::cli
