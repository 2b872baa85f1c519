#include "cli/conform/comparison.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::conform {
namespace {

std::string rule_name(const CompareRule& rule) {
  switch (rule.kind) {
    case CompareKind::bits:
      return "bits";
    case CompareKind::set:
      return "set";
    case CompareKind::info:
      return "info";
    case CompareKind::mask:
      return "mask";
    case CompareKind::masked:
      return "bits where " + rule.mask;
    case CompareKind::bound:
      return fmt::format("bound {}", moeref::name(rule.precision));
  }
  return {};
}

/// The bytes of one element, most significant first.
std::string hex(const std::byte* element, std::size_t size) {
  std::string digits = "0x";
  for (std::size_t i = size; i-- > 0;)
    digits += fmt::format("{:02X}", std::to_integer<unsigned>(element[i]));
  return digits;
}

void describe(Finding& finding, const TensorView& stored) {
  finding.shape = stored.shape;
  finding.elements = stored.size();
}

Finding failed(const GoldenCase& golden, const std::string& name, std::string detail) {
  Finding finding =
      statement("out." + name, rule_name(golden.rule(name)), false, std::move(detail));
  if (const TensorView* stored = golden.find_output(name)) describe(finding, *stored);
  return finding;
}

/// Whether element `index` of the mask tensor is not zero.
bool is_defined(const TensorView& mask, std::int64_t index) {
  const std::size_t size = static_cast<std::size_t>(info(mask.dtype).bits) / 8;
  const std::byte* element = mask.bytes.data() + static_cast<std::size_t>(index) * size;
  return std::any_of(element, element + size, [](std::byte byte) { return byte != std::byte{0}; });
}

Finding compare_bits(const GoldenCase& golden, const std::string& name, const TensorView& stored,
                     const TensorView& computed) {
  if (stored.dtype != computed.dtype || stored.shape != computed.shape) {
    return failed(golden, name,
                  fmt::format("stored {} {}, moeref has {} {}", moeref::name(stored.dtype),
                              to_string(stored.shape), moeref::name(computed.dtype),
                              to_string(computed.shape)));
  }
  const CompareRule& rule = golden.rule(name);
  const TensorView* mask =
      rule.kind == CompareKind::masked ? golden.file->find(rule.mask) : nullptr;
  if (mask != nullptr && mask->shape != stored.shape) {
    return failed(golden, name,
                  fmt::format("mask {} has shape {}, needs {}", rule.mask, to_string(mask->shape),
                              to_string(stored.shape)));
  }
  const bool whole_bytes =
      info(stored.dtype).bits % 8 == 0;  // sub-byte dtypes are compared by bytes
  if (!whole_bytes && mask != nullptr)
    return failed(golden, name, "a mask needs elements of whole bytes");
  const std::size_t size = whole_bytes ? static_cast<std::size_t>(info(stored.dtype).bits) / 8 : 1;
  Finding finding = statement("out." + name, rule_name(rule), true, {});
  describe(finding, stored);
  if (!whole_bytes)
    finding.shape = {finding.elements = static_cast<std::int64_t>(stored.bytes.size())};
  for (std::int64_t i = 0; i < finding.elements; ++i) {
    if (mask != nullptr && !is_defined(*mask, i)) continue;
    const std::size_t offset = static_cast<std::size_t>(i) * size;
    if (std::memcmp(stored.bytes.data() + offset, computed.bytes.data() + offset, size) == 0)
      continue;
    if (finding.differing++ == 0) {
      finding.first = i;
      finding.detail = fmt::format("stored {}, moeref {}", hex(stored.bytes.data() + offset, size),
                                   hex(computed.bytes.data() + offset, size));
    }
  }
  finding.passed = finding.differing == 0;
  return finding;
}

Finding compare_sets(const GoldenCase& golden, const std::string& name, const TensorView& stored,
                     const ComputedSets& computed) {
  if (stored.size() != computed.tokens * computed.width) {
    return failed(golden, name,
                  fmt::format("stored {}, moeref has [{}, {}]", to_string(stored.shape),
                              computed.tokens, computed.width));
  }
  Finding finding = statement("out." + name, rule_name(golden.rule(name)), true, {});
  describe(finding, stored);
  const std::vector<std::int64_t> ids = to_integers(stored);
  for (std::int64_t token = 0; token < computed.tokens; ++token) {
    if (computed.stored_agrees[static_cast<std::size_t>(token)]) continue;
    const std::int64_t begin = token * computed.width;
    if (finding.differing++ == 0) {
      finding.first = begin;
      finding.detail =
          fmt::format("token {}: stored {{{}}}, moeref {{{}}}", token,
                      fmt::join(ids.begin() + begin, ids.begin() + begin + computed.width, ", "),
                      fmt::join(computed.ids.begin() + begin,
                                computed.ids.begin() + begin + computed.width, ", "));
    }
  }
  finding.passed = finding.differing == 0;
  return finding;
}

/// Values in the dtype of the stored tensor: what moeref delivers when an output with a bound is
/// compared by bits.
Tensor delivered(const TensorView& like, const bounds::BoundedOutput& computed) {
  if (like.dtype == DType::f64) {
    return make_tensor<double>(like.name, DType::f64, like.shape, std::span(computed.value));
  }
  std::vector<float> narrow;
  for (const double value : computed.value) narrow.push_back(static_cast<float>(value));
  return make_tensor<float>(like.name, DType::f32, like.shape, std::span<const float>(narrow));
}

/// Whether a stored number may be what an evaluation within `bound` of `value` gives. Where that
/// evaluation may overflow the bound is infinite and nothing can be said of a finite value; an
/// infinite one may have met an overflow of the other sign.
bool within(double stored, double value, double bound) {
  if (std::isnan(value)) return std::isnan(stored);
  if (std::isinf(value)) return stored == value || std::isnan(stored);
  if (std::isinf(bound)) return true;
  return std::fabs(stored - value) <= bound;
}

}  // namespace

Finding statement(std::string subject, std::string rule, bool passed, std::string detail) {
  Finding finding;
  finding.output = std::move(subject);
  finding.rule = std::move(rule);
  finding.passed = passed;
  finding.detail = std::move(detail);
  return finding;
}

std::vector<double> to_doubles(const TensorView& tensor) {
  std::vector<double> values(static_cast<std::size_t>(tensor.size()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto index = static_cast<std::int64_t>(i);
    switch (tensor.dtype) {
      case DType::f64:
        values[i] = tensor.at<double>(index);
        break;
      case DType::f32:
        values[i] = static_cast<double>(tensor.at<float>(index));
        break;
      case DType::bf16:
        values[i] = static_cast<double>(decode(Format::bf16, tensor.at<std::uint16_t>(index)));
        break;
      case DType::f16:
        values[i] = static_cast<double>(decode(Format::f16, tensor.at<std::uint16_t>(index)));
        break;
      default:
        fail(tensor.name, "has dtype {}, needs F64, F32, BF16 or F16", name(tensor.dtype));
    }
  }
  return values;
}

std::vector<std::int64_t> to_integers(const TensorView& tensor) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(tensor.size()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto index = static_cast<std::int64_t>(i);
    switch (tensor.dtype) {
      case DType::i64:
        values[i] = tensor.at<std::int64_t>(index);
        break;
      case DType::i32:
        values[i] = tensor.at<std::int32_t>(index);
        break;
      case DType::u32:
        values[i] = tensor.at<std::uint32_t>(index);
        break;
      case DType::i16:
        values[i] = tensor.at<std::int16_t>(index);
        break;
      case DType::u16:
        values[i] = tensor.at<std::uint16_t>(index);
        break;
      case DType::i8:
        values[i] = tensor.at<std::int8_t>(index);
        break;
      case DType::u8:
        values[i] = tensor.at<std::uint8_t>(index);
        break;
      default:
        fail(tensor.name, "has dtype {}, needs an integer type", name(tensor.dtype));
    }
  }
  return values;
}

Finding compare_bound(const std::string& name, const std::string& rule, const TensorView& stored,
                      const bounds::BoundedOutput& computed) {
  Finding finding = statement(name, rule, true, {});
  describe(finding, stored);
  const bool fits = stored.size() == static_cast<std::int64_t>(computed.value.size()) &&
                    !stored.shape.empty() && stored.shape.back() == computed.cols;
  if (!fits) {
    finding.passed = false;
    finding.detail = fmt::format("stored {}, moeref has [{}, {}]", to_string(stored.shape),
                                 computed.rows, computed.cols);
    return finding;
  }
  const std::vector<double> values = to_doubles(stored);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double difference = values[i] - computed.value[i];
    if (within(values[i], computed.value[i], computed.bound[i])) {
      if (std::isfinite(difference) && computed.bound[i] > 0.0) {
        finding.worst_ratio =
            std::max(finding.worst_ratio, std::fabs(difference) / computed.bound[i]);
      }
      continue;
    }
    finding.worst_ratio = std::max(finding.worst_ratio, std::fabs(difference) / computed.bound[i]);
    if (finding.differing++ == 0) {
      finding.first = static_cast<std::int64_t>(i);
      finding.detail = fmt::format("stored {}, moeref {}, difference {:.3e}, bound {:.3e}",
                                   values[i], computed.value[i], difference, computed.bound[i]);
    }
  }
  finding.passed = finding.differing == 0;
  return finding;
}

Finding compare_output(const GoldenCase& golden, const std::string& name,
                       const Computed& computed) {
  const TensorView& stored = golden.output(name);
  const CompareRule& rule = golden.rule(name);
  if (const auto* sets = std::get_if<ComputedSets>(&computed)) {
    if (rule.kind == CompareKind::set) return compare_sets(golden, name, stored, *sets);
    const Tensor ids = make_tensor<std::int32_t>(name, DType::i32, stored.shape,
                                                 std::span<const std::int32_t>(sets->ids));
    if (stored.size() != static_cast<std::int64_t>(sets->ids.size())) {
      return failed(golden, name,
                    fmt::format("stored {}, moeref has [{}, {}]", to_string(stored.shape),
                                sets->tokens, sets->width));
    }
    return compare_bits(golden, name, stored, ids.view());
  }
  if (const auto* bounded = std::get_if<bounds::BoundedOutput>(&computed)) {
    if (rule.kind == CompareKind::bound) {
      return compare_bound("out." + name, rule_name(rule), stored, *bounded);
    }
    if (stored.size() != static_cast<std::int64_t>(bounded->value.size())) {
      return failed(golden, name,
                    fmt::format("stored {}, moeref has [{}, {}]", to_string(stored.shape),
                                bounded->rows, bounded->cols));
    }
    return compare_bits(golden, name, stored, delivered(stored, *bounded).view());
  }
  if (rule.kind == CompareKind::bits || rule.kind == CompareKind::masked) {
    return compare_bits(golden, name, stored, std::get<Tensor>(computed).view());
  }
  return failed(golden, name,
                "this output is made of bits; its compare rule needs numbers or sets");
}

std::string coordinates(const Shape& shape, std::int64_t index) {
  std::vector<std::int64_t> position(shape.size());
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    position[axis] = index % shape[axis];
    index /= shape[axis];
  }
  return to_string(position);
}

std::vector<std::string> compared_outputs(const GoldenCase& golden) {
  std::vector<std::string> names;
  for (const auto& [name, stored] : golden.outputs) {
    const CompareKind kind = golden.rule(name).kind;
    if (kind != CompareKind::info && kind != CompareKind::mask) names.push_back(name);
  }
  return names;
}

std::vector<Finding> compare_outputs(const GoldenCase& golden, const ComputedOutputs& computed) {
  std::vector<Finding> findings;
  for (const std::string& name : compared_outputs(golden)) {
    const auto found = computed.find(name);
    if (found == computed.end()) {
      findings.push_back(
          failed(golden, name, fmt::format("op {} has no such output here", golden.op)));
    } else {
      findings.push_back(compare_output(golden, name, found->second));
    }
  }
  // Chosen experts first: where they differ, everything after them differs too.
  std::stable_partition(findings.begin(), findings.end(),
                        [](const Finding& finding) { return finding.rule == "set"; });
  return findings;
}

}  // namespace moeref::conform
