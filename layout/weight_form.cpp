#include "layout/weight_form.hpp"

#include <array>
#include <string>

#include "quant/error.hpp"

namespace moeref {
namespace {

using enum GlobalScaleRule;

constexpr std::array<WeightForm, 10> kForms{{
    {"mxfp4", Format::e2m1, Format::e8m0, 1, 32},
    {"nvfp4", Format::e2m1, Format::ue4m3, 1, 16, multiply, true},
    {"nvfp4_ct", Format::e2m1, Format::ue4m3, 1, 16, divide, true},
    {"fp8_tensor", Format::e4m3, Format::f32, kWholeAxis, kWholeAxis, none, true},
    {"fp8_channel", Format::e4m3, Format::f32, 1, kWholeAxis},
    {"fp8_block", Format::e4m3, Format::f32, 128, 128},
    {"mxfp8", Format::e4m3, Format::e8m0, 1, 32},
    {"bf16", Format::bf16},
    {"f16", Format::f16},
    {"f32", Format::f32},
}};

}  // namespace

std::span<const WeightForm> weight_forms() { return kForms; }

const WeightForm& find_weight_form(std::string_view subject, std::string_view name) {
  std::string known;
  for (const WeightForm& form : kForms) {
    if (form.name == name) return form;
    known += (known.empty() ? "" : ", ") + std::string(form.name);
  }
  fail(subject, "'{}' is no weight format; known: {}", name, known);
}

bool has_block_scales(const WeightForm& form) {
  return form.has_scales && form.block_rows != kWholeAxis;
}

}  // namespace moeref
