#pragma once

#include "layout/step.hpp"

namespace moeref::recode {

/// E4M3FN codes for a device that reads E4M3FNUZ: 0x80 -> 0x00, every other byte as it is; it then
/// means half, so that the scales double. NaN (0x7F, 0xFF) becomes +-240. Not invertible: -0 is
/// lost. Source: sglang fp8_utils.py normalize_e4m3fn_to_e4m3fnuz
Recode e4m3fn_to_fnuz();
/// f32 scales times 2. Above FLT_MAX / 2 a scale becomes infinite, which undo cannot take back; a
/// NaN keeps sign and payload and is made quiet.
Recode double_scales();

/// What double_scales makes of one scale.
float doubled_scale(float scale);

}  // namespace moeref::recode
