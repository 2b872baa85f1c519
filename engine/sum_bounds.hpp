#pragma once

#include <cstdint>

namespace moeref {

/// |f64 sum - sum| / sum of |terms| is at most this where every term goes through `additions`
/// rounded additions: each rounds by half an ulp of what it gives at most.
double sum_bound(std::int64_t additions);

/// What high + low of simd::GemmKernels::add_segment lack at most of the sum of `count` products of
/// |total| at most together, all multiples of 2^lowest; infinity where their rests leave the f64
/// range.
///
/// high is summed without a loss: each product and each carry is known exactly. What is added to
/// low, two numbers a product, is at most 2^-53 (count + 1) total together, so each of its
/// 2 count roundings is off by at most 2^-106 (count + 1) total. If low has room for the bits of
/// all that is added, nothing is rounded.
double fold_bound(std::int64_t count, double total, int lowest);

}  // namespace moeref
