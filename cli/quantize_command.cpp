// moeref quantize: tensors of a file through a named quantizer.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "cli/case_writer.hpp"
#include "cli/commands.hpp"
#include "cli/destination.hpp"
#include "cli/moe_case.hpp"
#include "cli/progress.hpp"
#include "cli/quantized_file.hpp"
#include "cli/quantizer_list.hpp"
#include "cli/version.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

struct Arguments {
  std::string source;
  std::string quantizer;
  std::vector<std::string> options;
  std::vector<std::string> tensors;
  std::string scale;
  std::string scale_steps;
  std::string out;
};

/// The format of the numbers of a tensor, if the quantizer takes it.
std::optional<Format> number_format(const Quantizer& quantizer, DType dtype) {
  std::optional<Format> format = float_format(dtype);
  if (dtype == DType::f8_e4m3 || dtype == DType::u8) format = Format::e4m3;
  const bool taken = format && std::find(quantizer.inputs.begin(), quantizer.inputs.end(),
                                         *format) != quantizer.inputs.end();
  return taken ? format : std::nullopt;
}

std::string input_names(const Quantizer& quantizer) {
  std::vector<std::string_view> names;
  for (const Format format : quantizer.inputs) names.push_back(name(format));
  return fmt::format("{}", fmt::join(names, ", "));
}

/// The tensors to quantize: those named, or every matrix that the quantizer takes.
std::vector<const TensorView*> chosen_tensors(const SafetensorsFile& file,
                                              const Quantizer& quantizer,
                                              const std::vector<std::string>& names) {
  std::vector<const TensorView*> chosen;
  for (const std::string& name : names) {
    const TensorView& view = file.at(name);
    if (std::find(chosen.begin(), chosen.end(), &view) != chosen.end()) {
      fail("--tensor", "{} is given twice; give it once", name);
    }
    if (view.shape.size() < 2 || !number_format(quantizer, view.dtype)) {
      fail(file.path().string() + ": " + name, "is {} {}; the quantizer {} takes matrices of {}",
           moeref::name(view.dtype), to_string(view.shape), quantizer.name, input_names(quantizer));
    }
    chosen.push_back(&view);
  }
  if (!names.empty()) return chosen;
  for (const auto& [name, view] : file.tensors()) {
    // U8 can be anything: taken for E4M3 only where it is named.
    const bool numbers = view.dtype != DType::u8 && number_format(quantizer, view.dtype);
    if (view.shape.size() >= 2 && numbers) chosen.push_back(&view);
  }
  if (chosen.empty()) {
    fail(file.path().string(), "holds no matrix that the quantizer {} takes: {}", quantizer.name,
         input_names(quantizer));
  }
  return chosen;
}

/// The largest magnitude of finite numbers and infinities; NaNs are passed over.
float amax_of(const ValueMatrix& values) {
  float amax = 0.0f;
  const std::int64_t width = info(values.format).bits / 8;
  for (std::int64_t i = 0; i < values.rows * values.cols; ++i) {
    std::uint32_t code = 0;
    std::memcpy(&code, values.bytes.data() + i * width, static_cast<std::size_t>(width));
    amax = std::fmax(amax, std::fabs(decode(values.format, code)));
  }
  return amax;
}

/// The calibrated scale as frameworks make it: amax is the largest number that the form holds.
float scale_of_amax(const QuantizedForm& form, float amax) {
  if (form.global_rule == GlobalScaleRule::none) return amax / 448.0f;
  const float most = form.codes == Format::e2m1 ? 448.0f * 6.0f : 448.0f;
  const float divisor = most * (1.0f / amax);
  return form.global_rule == GlobalScaleRule::divide ? divisor : 1.0f / divisor;
}

/// --scale: a number, or made of the matrix as frameworks calibrate it.
std::optional<float> given_scale(const Arguments& arguments, const QuantizePlan& plan,
                                 const ValueMatrix& values) {
  if (plan.form.global != GlobalScaleOf::given) {
    if (arguments.scale.empty()) return std::nullopt;
    fail("--scale", "is not for {}, which makes its own scales; leave it out", arguments.quantizer);
  }
  if (arguments.scale.empty()) {
    fail("--scale",
         "is needed: {} takes a calibrated scale; give a number, or amax for one made "
         "of each matrix",
         arguments.quantizer);
  }
  if (arguments.scale == "amax") {
    const float amax = amax_of(values);
    const float scale = scale_of_amax(plan.form, amax);
    if (std::isfinite(scale) && scale > 0.0f) return scale;
    fail(values.name, "has the largest magnitude {}, which makes no scale; give --scale a number",
         amax);
  }
  const char* end = arguments.scale.data() + arguments.scale.size();
  float scale = 0.0f;
  const auto [stop, status] = std::from_chars(arguments.scale.data(), end, scale);
  if (status != std::errc{} || stop != end || !std::isfinite(scale) || scale <= 0.0f) {
    fail("--scale", "'{}' is no f32 above 0; give one, or amax", arguments.scale);
  }
  return scale;
}

/// A tensor to quantize: how, and what it becomes.
struct Job {
  const TensorView& view;
  Format format;  ///< of its numbers
  QuantizePlan plan;
  QuantizedEntry entry;
};

Job make_job(const TensorView& view, const Quantizer& quantizer, const Options& options,
             const Arguments& arguments) {
  const Format format = *number_format(quantizer, view.dtype);
  Job job{view, format, quantizer.plan(options, format), {}};
  const QuantizedForm& form = job.plan.form;
  job.entry.name = view.name;
  job.entry.shape = view.shape;
  job.entry.form = form;
  job.entry.codes = view.name + std::string(form.codes_suffix);
  job.entry.scales = view.name + std::string(form.scales_suffix);
  job.entry.scale_steps = arguments.scale_steps;
  if (form.global_rule != GlobalScaleRule::none) {
    job.entry.global = view.name + std::string(form.global_suffix);
  }
  return job;
}

/// Error: a name that the file would have twice.
void refuse_twice(const SafetensorsFile& file, const std::vector<Job>& jobs) {
  std::set<std::string> names;
  for (const auto& [name, view] : file.tensors()) names.insert(name);
  for (const Job& job : jobs) names.erase(job.entry.name);
  for (const Job& job : jobs) {
    for (const std::string& name : {job.entry.codes, job.entry.scales, job.entry.global}) {
      if (name.empty() || names.insert(name).second) continue;
      fail(file.path().string() + ": " + name,
           "is there already, and the result would have that name; choose other tensors");
    }
  }
}

/// The tensors that one has become.
struct Result {
  Tensor codes;
  Tensor scales;
  std::optional<Tensor> global;
};

void append(std::vector<std::byte>& to, std::span<const std::byte> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}

Result quantize_tensor(const SafetensorsFile& file, const Job& job, const Arguments& arguments,
                       int threads) {
  const auto& [view, format, plan, entry] = job;
  Result result;
  const bool has_global = !entry.global.empty();
  std::vector<std::byte> global;
  const std::int64_t bytes = entry.rows() * entry.cols() * info(format).bits / 8;
  for (std::int64_t expert = 0; expert < entry.experts(); ++expert) {
    const std::string number = entry.experts() > 1 ? fmt::format("[{}]", expert) : "";
    const ValueMatrix values{file.path().string() + ": " + view.name + number, format, entry.rows(),
                             entry.cols(),
                             view.bytes.subspan(static_cast<std::size_t>(expert * bytes),
                                                static_cast<std::size_t>(bytes))};
    const Quantized q = quantize(plan, values, given_scale(arguments, plan, values), threads);
    append(result.codes.bytes, q.codes);
    append(result.scales.bytes, q.scales);
    if (has_global) append(global, std::as_bytes(std::span(q.global)));
  }
  Shape code_shape = view.shape;
  if (plan.form.codes == Format::e2m1) code_shape.back() /= 2;
  result.codes = {entry.codes, stored_dtype(plan.form.codes), code_shape,
                  std::move(result.codes.bytes)};
  result.scales = {entry.scales, stored_dtype(plan.form.scales), entry.row_scales_shape(),
                   std::move(result.scales.bytes)};
  if (!arguments.scale_steps.empty()) {
    result.scales = with_steps(result.scales.view(), entry, threads);
  }
  if (has_global) {
    Shape shape(view.shape.begin(), view.shape.end() - 2);
    if (plan.form.global == GlobalScaleOf::row) shape.push_back(entry.rows());
    if (shape.empty()) shape = {1};
    result.global = Tensor{entry.global, DType::f32, shape, std::move(global)};
  }
  return result;
}

std::string describe(const TensorView& view) {
  return fmt::format("{} {} {}", view.name, name(view.dtype), to_string(view.shape));
}

void report(const std::vector<Job>& jobs, const std::vector<Result>& results, std::size_t copied,
            const Arguments& arguments, const nlohmann::json& params, const GlobalOptions& global) {
  if (global.json) {
    nlohmann::json out = params;
    out["file"] = arguments.out;
    out["copied"] = copied;
    print_json(out);
    return;
  }
  if (global.quiet) return;
  std::vector<std::string> options;
  for (const auto& [key, value] : params["options"].items()) {
    options.push_back(key + "=" + value.get<std::string>());
  }
  fmt::print("{}{}{}\n", arguments.quantizer, options.empty() ? "" : ": ",
             fmt::join(options, ", "));
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const Result& result = results[i];
    fmt::print("  {} {} -> {}, {}", jobs[i].entry.name, to_string(jobs[i].entry.shape),
               describe(result.codes.view()), describe(result.scales.view()));
    if (result.global) fmt::print(", {}", describe(result.global->view()));
    fmt::print("\n");
  }
  if (copied > 0) fmt::print("  {} other tensor{} as they are\n", copied, copied == 1 ? "" : "s");
  fmt::print("-> {}\n", arguments.out);
}

void run_quantize(const Arguments& arguments, const GlobalOptions& global) {
  const Quantizer& quantizer = find_quantizer(arguments.quantizer);
  const Options options = parse_options(quantizer.name, quantizer.options, arguments.options);
  check_destination(arguments.out, arguments.source, {});
  const auto file = SafetensorsFile::open(arguments.source);
  if (is_quantized(*file)) {
    fail(arguments.source, "was written by moeref quantize; quantize what it was made of");
  }
  std::vector<Job> jobs;
  for (const TensorView* view : chosen_tensors(*file, quantizer, arguments.tensors)) {
    jobs.push_back(make_job(*view, quantizer, options, arguments));
  }
  refuse_twice(*file, jobs);
  std::vector<Result> results;
  {
    Progress progress("quantize", global.quiet);
    for (const Job& job : jobs) {
      progress.show(static_cast<std::int64_t>(results.size()),
                    static_cast<std::int64_t>(jobs.size()), job.entry.name);
      results.push_back(quantize_tensor(*file, job, arguments, global.threads));
    }
  }

  CaseWriter writer;
  nlohmann::json params{{"quantizer", quantizer.name},
                        {"options", options.values()},
                        {"tensors", nlohmann::json::array()}};
  for (const Job& job : jobs) params["tensors"].push_back(to_json(job.entry));
  for (const Result& result : results) {
    writer.add(result.codes.view());
    writer.add(result.scales.view());
    if (result.global) writer.add(result.global->view());
  }
  std::set<std::string> replaced;
  for (const Job& job : jobs) replaced.insert(job.entry.name);
  std::size_t copied = 0;
  for (const auto& [name, view] : file->tensors()) {
    if (replaced.contains(name)) continue;
    writer.add(view);
    ++copied;
  }
  writer.write(arguments.out, {{"op", std::string(kQuantizedTensors)},
                               {"params", metadata_text(params)},
                               {"source", std::string("moeref ") + kVersion}});
  report(jobs, results, copied, arguments, params, global);
}

}  // namespace

void add_quantize_command(CLI::App& app, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  auto listed = std::make_shared<bool>(false);
  auto explained = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "quantize", "quantize the matrices of a file as a GPU stack does, bit for bit");
  command->add_option("source", arguments->source,
                      "safetensors file with BF16, F16 or F32 matrices");
  command->add_option("--quantizer", arguments->quantizer, "name of the quantizer");
  command
      ->add_option("--option", arguments->options,
                   "key=value: a choice that the quantizer leaves open")
      ->allow_extra_args(false);
  command
      ->add_option("--tensor", arguments->tensors,
                   "only this tensor, or these (default: every matrix); the others are copied")
      ->allow_extra_args(false);
  command->add_option("--scale", arguments->scale,
                      "of quantizers that take a calibrated scale: a number, or amax (448 * 6 / "
                      "amax of each matrix for NVFP4, amax / 448 for FP8, the reciprocal where "
                      "the quantizer takes that)");
  command->add_option("--scale-steps", arguments->scale_steps,
                      "layout steps for the scales, as in \"swizzle_128x4\" (moeref layout list "
                      "--steps)");
  command->add_option("-o,--out", arguments->out, "file to write");
  command->add_flag("--list", *listed, "list the quantizers");
  command->add_option("--explain", *explained, "a quantizer's formula, special values and options");
  command->footer(
      "Tensors with more than two dimensions are stacks of matrices, each quantized by itself.\n"
      "T becomes T (T_packed), T_scale and T_global_scale (T_scale_2), as the quantizer's stack "
      "names them.\nThe result is held in memory until it is written.\n\nExamples:\n"
      "  moeref quantize --list\n"
      "  moeref quantize --explain flashinfer_nvfp4\n"
      "  moeref quantize x.safetensors --quantizer flashinfer_nvfp4 --scale amax --scale-steps "
      "swizzle_128x4 "
      "-o q.safetensors\n"
      "  moeref quantize layer.safetensors --quantizer modelopt_mxfp4 --tensor gate --tensor up -o "
      "q.safetensors\n"
      "  moeref dequantize q.safetensors -o values.safetensors");
  command->callback([arguments, listed, explained, &global] {
    if (*listed) return list_quantizers(global);
    if (!explained->empty()) return explain_quantizer(*explained, global);
    if (arguments->source.empty() || arguments->quantizer.empty() || arguments->out.empty()) {
      fail("quantize", "takes a file, --quantizer and --out; --list shows the quantizers");
    }
    run_quantize(*arguments, global);
  });
}

}  // namespace moeref::cli
