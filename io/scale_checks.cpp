#include "io/scale_checks.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {

float float_at(const TensorView& tensor, std::int64_t index) {
  std::uint32_t code = 0;
  const std::size_t width = static_cast<std::size_t>(info(tensor.dtype).bits) / 8;
  std::memcpy(&code, tensor.bytes.data() + static_cast<std::size_t>(index) * width, width);
  return decode(*float_format(tensor.dtype), code);
}

void check_finite_scales(const std::string& subject, const TensorView& scales) {
  for (std::int64_t i = 0; i < scales.size(); ++i) {
    const float value = float_at(scales, i);
    if (std::isfinite(value)) continue;
    fail(subject,
         "scale {} of {} is {}, needs a finite number; the checkpoint is damaged, export it again",
         i, to_string(scales.shape), std::isnan(value) ? "NaN" : "infinite");
  }
}

void check_ue4m3_scales(const std::string& subject, std::span<const std::byte> codes) {
  constexpr std::byte kNan{0x7F};  // and everything above has the sign bit
  std::size_t bad = 0;             // counted without a branch: most layers have none of millions
  for (const std::byte code : codes) bad += code >= kNan ? 1u : 0u;
  if (bad == 0) return;
  const auto first =
      std::find_if(codes.begin(), codes.end(), [&](std::byte code) { return code >= kNan; });
  fail(subject,
       "block scale {} is 0x{:02X}, {} ({} such codes), needs E4M3 codes 0x00 to 0x7E; the "
       "checkpoint is "
       "damaged, export it again",
       first - codes.begin(), static_cast<unsigned>(*first),
       (*first & kNan) == kNan ? "a NaN" : "with the sign bit set", bad);
}

void check_e8m0_scales(const std::string& subject, std::span<const std::byte> codes) {
  if (codes.empty()) return;
  const void* found = std::memchr(codes.data(), 0xFF, codes.size());
  if (found == nullptr) return;
  fail(subject,
       "E8M0 scale {} is 0xFF, a NaN, needs 0x00 to 0xFE; the checkpoint is damaged, export it "
       "again",
       static_cast<const std::byte*>(found) - codes.data());
}

}  // namespace moeref
