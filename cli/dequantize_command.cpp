#include <fmt/format.h>

#include <array>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "cli/case_writer.hpp"
#include "cli/commands.hpp"
#include "cli/destination.hpp"
#include "cli/quantized_file.hpp"
#include "cli/version.hpp"
#include "io/checkpoint.hpp"
#include "io/linear.hpp"
#include "io/model_config.hpp"
#include "io/quantization_config.hpp"
#include "io/tensor_index.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string source;
  std::optional<std::int64_t> layer;
  std::vector<std::string> modules;
  std::string target = "f32";
  std::string order = "once";
  std::string out;
};

struct OrderName {
  std::string_view name;
  DequantizeOrder order;
};

constexpr std::array<OrderName, 5> kOrders{{
    {"once", DequantizeOrder::once},
    {"checkpoint", DequantizeOrder::checkpoint},
    {"modelopt_nvfp4", DequantizeOrder::modelopt_nvfp4},
    {"modelopt_fp8", DequantizeOrder::modelopt_fp8},
    {"sglang_fp16", DequantizeOrder::sglang_fp16},
}};

DequantizeOrder parse_order(const std::string& text) {
  std::string known;
  for (const OrderName& entry : kOrders) {
    if (entry.name == text) return entry.order;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  fail("--order", "'{}' is unknown; known: {}", text, known);
}

Format parse_target(const std::string& text) {
  for (const Format format : {Format::f32, Format::bf16, Format::f16, Format::f64}) {
    if (text == (format == Format::f64 ? "f64" : name(format))) return format;
  }
  fail("--to", "'{}' is unknown; give f32, bf16, f16 or f64", text);
}

DType dtype_of(Format target) {
  switch (target) {
    case Format::bf16:
      return DType::bf16;
    case Format::f16:
      return DType::f16;
    case Format::f64:
      return DType::f64;
    default:
      return DType::f32;
  }
}

using Sink = std::function<void(std::span<const std::byte>)>;

/// Hands the matrix over row by row in the target type.
void put_rows(const ScaledMatrix& matrix, DequantizeOrder order, Format target, const Sink& sink) {
  constexpr std::int64_t kRows = 64;
  for (std::int64_t row = 0; row < matrix.rows; row += kRows) {
    const ScaledMatrix part = row_slice(matrix, row, std::min(kRows, matrix.rows - row));
    const auto count = static_cast<std::size_t>(part.rows * part.cols);
    if (target == Format::f64) {
      std::vector<double> values(count);
      dequantize(part, values);
      sink(std::as_bytes(std::span(values)));
      continue;
    }
    std::vector<float> values(count);
    dequantize(part, order, target, values);
    if (target == Format::f32) {
      sink(std::as_bytes(std::span(values)));
      continue;
    }
    std::vector<std::uint16_t> codes(count);
    for (std::size_t i = 0; i < count; ++i) {
      codes[i] = static_cast<std::uint16_t>(encode(target, values[i], EncodePolicy::eigen));
    }
    sink(std::as_bytes(std::span(codes)));
  }
}

/// Tensors of one output file: `stack` matrices of equal size become [count, rows, cols].
class Dequantizer {
 public:
  Dequantizer(DequantizeOrder order, Format target) : order_(order), target_(target) {}

  /// Not if the matrices are absent. `stack` may be empty where the shape has no elements.
  void add(const std::string& tensor, Shape shape, std::vector<ScaledMatrix> stack) {
    if (!stack.empty() && !stack.front()) return;
    writer_.add({tensor, dtype_of(target_), std::move(shape)},
                [stack = std::move(stack), order = order_, target = target_](const Sink& sink) {
                  for (const ScaledMatrix& matrix : stack) put_rows(matrix, order, target, sink);
                });
    ++count_;
  }
  void copy(const TensorView& tensor) {
    writer_.add(tensor);
    ++copied_;
  }
  void keep(std::shared_ptr<const void> storage) { writer_.keep(std::move(storage)); }
  std::int64_t count() const { return count_; }
  std::int64_t copied() const { return copied_; }
  void write(const std::string& path, const std::string& source) const {
    writer_.write(path, {{"op", "dequantize"},
                         {"source", std::string("moeref ") + kVersion},
                         {"note", "dequantized from " + source}});
  }

 private:
  DequantizeOrder order_;
  Format target_;
  CaseWriter writer_;
  std::int64_t count_ = 0;
  std::int64_t copied_ = 0;
};

void add_layer(Dequantizer& out, const MoeLayer& layer) {
  struct Part {
    const char* name;
    ScaledMatrix Expert::*matrix;
    bool is_vector;
  };
  constexpr std::array<Part, 6> kParts{{{"gate", &Expert::gate, false},
                                        {"up", &Expert::up, false},
                                        {"down", &Expert::down, false},
                                        {"gate_bias", &Expert::gate_bias, true},
                                        {"up_bias", &Expert::up_bias, true},
                                        {"down_bias", &Expert::down_bias, true}}};
  for (const Part& part : kParts) {
    std::vector<ScaledMatrix> stack;
    for (const Expert& expert : layer.experts) stack.push_back(expert.*part.matrix);
    const ScaledMatrix first = stack.front();
    const auto experts = static_cast<std::int64_t>(stack.size());
    out.add(part.name,
            part.is_vector ? Shape{experts, first.cols} : Shape{experts, first.rows, first.cols},
            std::move(stack));
    if (!layer.shared) continue;
    const ScaledMatrix& shared = (*layer.shared).*part.matrix;
    out.add(std::string("shared_") + part.name,
            part.is_vector ? Shape{shared.cols} : Shape{shared.rows, shared.cols}, {shared});
  }
  const auto add_matrix = [&out](const char* tensor, const ScaledMatrix& matrix) {
    out.add(tensor, {matrix.rows, matrix.cols}, {matrix});
  };
  const auto add_vector = [&out](const char* tensor, const ScaledMatrix& vector) {
    out.add(tensor, {vector.cols}, {vector});
  };
  add_matrix("router", layer.router);
  add_vector("router_bias", layer.router_bias);
  add_vector("selection_bias", layer.selection_bias);
  add_matrix("latent_in", layer.latent_in);
  add_matrix("latent_out", layer.latent_out);
}

/// Rows and columns of a linear layer from its stored weight; two FP4 codes a byte.
LinearShape shape_of(const TensorIndex& tensors, const std::string& module) {
  const IndexedTensor* packed = tensors.find(module + ".weight_packed");
  const IndexedTensor& weight = packed != nullptr ? *packed : tensors.at(module + ".weight");
  const Shape& shape = weight.view->shape;
  if (shape.size() != 2) {
    fail(tensors.subject(weight), "is {}; --module takes a matrix, use --layer for stacked experts",
         to_string(shape));
  }
  const DType dtype = weight.view->dtype;
  const bool bytes = dtype == DType::u8 || dtype == DType::i8;
  return {shape[0], bytes ? 2 * shape[1] : shape[1], "the stored rows", "the stored columns"};
}

void add_modules(Dequantizer& out, const Arguments& arguments) {
  const fs::path source = arguments.source;
  std::error_code unreadable;
  const bool is_file = !fs::is_directory(source, unreadable);
  const fs::path folder = is_file ? source.parent_path() : source;
  check_destination(arguments.out, source, folder.empty() ? fs::path(".") : folder);
  const TensorIndex tensors =
      is_file ? TensorIndex::open(folder, source.filename()) : TensorIndex::open(folder);
  const ModelConfig config = ModelConfig::open(folder / "config.json");
  const QuantizationConfig quantization = QuantizationConfig::read(config, config, folder);
  for (const std::string& module : arguments.modules) {
    const LinearLayer linear =
        read_linear(tensors, quantization, module, shape_of(tensors, module));
    out.add(module + ".weight", {linear.weight.rows, linear.weight.cols}, {linear.weight});
    if (linear.bias) out.add(module + ".bias", {linear.bias.cols}, {linear.bias});
    for (const LinearPart& part : linear.parts) out.keep(tensors.file(part.tensor->file));
  }
}

/// Matrices of a global scale per row are one matrix a row.
void add_quantized(Dequantizer& out, const Arguments& arguments, int threads,
                   const std::shared_ptr<const SafetensorsFile>& file) {
  if (arguments.layer || !arguments.modules.empty()) {
    fail(arguments.source, "holds quantized tensors by name; leave out --layer and --module");
  }
  check_destination(arguments.out, arguments.source, {});
  out.keep(file);
  std::set<std::string> parts;
  for (const QuantizedEntry& entry : quantized_entries(*file)) {
    check_stored(*file, entry);
    std::shared_ptr<const std::vector<std::byte>> restored;
    std::span<const std::byte> scales = file->at(entry.scales).bytes;
    const bool has_elements = element_count(entry.shape) > 0;
    if (!entry.scale_steps.empty() && has_elements) {
      restored =
          std::make_shared<const std::vector<std::byte>>(without_steps(*file, entry, threads));
      scales = *restored;
      out.keep(restored);
    }
    std::vector<ScaledMatrix> stack;
    for (std::int64_t expert = 0; has_elements && expert < entry.experts(); ++expert) {
      if (!has_row_scales(*file, entry)) {
        stack.push_back(stored_matrix(*file, entry, scales, expert, std::nullopt));
        continue;
      }
      for (std::int64_t row = 0; row < entry.rows(); ++row) {
        stack.push_back(stored_matrix(*file, entry, scales, expert, row));
      }
    }
    out.add(entry.name, entry.shape, std::move(stack));
    parts.insert({entry.codes, entry.scales, entry.global});
  }
  for (const auto& [name, view] : file->tensors()) {
    if (parts.find(name) == parts.end()) out.copy(view);
  }
}

/// The file, if it was written by moeref quantize.
std::shared_ptr<const SafetensorsFile> quantized_file(const std::string& source) {
  std::error_code unreadable;
  if (!fs::is_regular_file(source, unreadable)) return nullptr;
  const auto file = SafetensorsFile::open(source);
  return is_quantized(*file) ? file : nullptr;
}

void run_dequantize(const Arguments& arguments, const GlobalOptions& global) {
  const Format target = parse_target(arguments.target);
  Dequantizer out(parse_order(arguments.order), target);
  if (const auto file = quantized_file(arguments.source)) {
    add_quantized(out, arguments, global.threads, file);
  } else if (!arguments.modules.empty()) {
    add_modules(out, arguments);
  } else {
    const fs::path source = arguments.source;
    if (source.extension() == ".safetensors" && !fs::exists(source.parent_path() / "config.json")) {
      fail(
          arguments.source,
          "has no config.json beside it, and moeref quantize did not write it; give a model folder "
          "or a file in one");
    }
    const Checkpoint checkpoint = Checkpoint::open(arguments.source);
    if (checkpoint.moe_layers().empty()) fail(arguments.source, "has no layer with experts");
    check_destination(arguments.out, arguments.source, checkpoint.folder());
    const auto loaded = std::make_shared<const MoeLayer>(
        checkpoint.load_layer(arguments.layer.value_or(checkpoint.moe_layers().front())));
    out.keep(loaded);
    add_layer(out, *loaded);
  }
  out.write(arguments.out, arguments.source);
  if (global.json) {
    const nlohmann::json report{{"file", arguments.out},
                                {"tensors", out.count()},
                                {"copied", out.copied()},
                                {"to", arguments.target},
                                {"order", arguments.order}};
    print_json(report);
  } else if (!global.quiet) {
    const std::string copied =
        out.copied() == 0 ? "" : fmt::format(", {} more as they are", out.copied());
    fmt::print("{} tensor{} as {}, order {}{}\n-> {}\n", out.count(), out.count() == 1 ? "" : "s",
               arguments.target, arguments.order, copied, arguments.out);
  }
}

}  // namespace

void add_dequantize_command(CLI::App& app, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "dequantize",
      "decode a layer or linear layers of a checkpoint, or what quantize wrote, to plain floats");
  command
      ->add_option("source", arguments->source,
                   "model folder, or one safetensors file in it; or a file of moeref quantize")
      ->required();
  CLI::Option* layer = command->add_option(
      "--layer", arguments->layer,
      "layer number (default: the first MoE layer): gate, up, down [E, rows, cols], "
      "biases, router, shared expert");
  command
      ->add_option("--module", arguments->modules,
                   "instead of a layer: linear layers by name, e.g. "
                   "model.layers.0.mlp.experts.0.up_proj")
      ->excludes(layer);
  command->add_option("--to", arguments->target, "f32 (default), bf16, f16 or f64");
  command->add_option("--order", arguments->order,
                      "roundings: once (default: the exact value, rounded once), checkpoint, "
                      "modelopt_nvfp4, modelopt_fp8, sglang_fp16");
  command->add_option("-o,--out", arguments->out, "file to write")->required();
  command->footer(
      "Examples:\n"
      "  moeref dequantize gpt-oss-20b --layer 3 --to bf16 -o layer3.safetensors\n"
      "  moeref dequantize Qwen3 --module model.layers.0.mlp.experts.5.up_proj -o up.safetensors\n"
      "  moeref dequantize quantized.safetensors -o values.safetensors");
  command->callback([arguments, &global] { run_dequantize(*arguments, global); });
}

}  // namespace moeref::cli
