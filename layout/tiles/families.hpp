#pragma once

#include <array>
#include <span>

#include "layout/step.hpp"

// The families of tile layouts: each file holds its layouts as functions that recipes call, and the
// table by which commands name them.

namespace moeref::tiles {

std::span<const NamedStep> nvidia();
std::span<const NamedStep> sm90();
std::span<const NamedStep> marlin();
std::span<const NamedStep> triton();
std::span<const NamedStep> deepgemm();
std::span<const NamedStep> aiter();

inline constexpr std::array kFamilies{nvidia, sm90, marlin, triton, deepgemm, aiter};

}  // namespace moeref::tiles
