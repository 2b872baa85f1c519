#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "layout/move/copy.hpp"

namespace moeref::move {

/// Whether a piece can be written by stream_16.
inline bool streams_16([[maybe_unused]] const std::byte* to, [[maybe_unused]] std::int64_t bytes) {
#if defined(__SSE2__)
  return reinterpret_cast<std::uintptr_t>(to) % 16 == 0 && bytes % 16 == 0;
#else
  return false;
#endif
}

/// Writes 16 bytes past the caches, to a place that is a multiple of 16. The bytes that follow must
/// be written next, until a cache line is whole.
inline void stream_16(const std::byte* from, std::byte* to) {
#if defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to),
                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  std::memcpy(to, from, 16);
#endif
}

/// memcpy into a tensor far larger than the caches, which usually is not read soon: whole cache
/// lines are written past them and need not be read first. Other threads see them after
/// end_streams().
inline void stream_bytes(const std::byte* from, std::byte* to, std::int64_t bytes) {
  constexpr std::int64_t kLine = 64;
  constexpr std::int64_t kWorthIt = 512;
  if (bytes < kWorthIt) {
    copy_bytes(from, to, bytes);
    return;
  }
  __builtin_prefetch(to, 1);  // the lines shared with neighbours are on their way meanwhile
  __builtin_prefetch(to + bytes - 1, 1);
  const auto head = static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(to) % kLine);
  std::int64_t at = head;
  for (; at + kLine <= bytes; at += kLine) {
    for (std::int64_t i = at; i < at + kLine; i += 16) stream_16(from + i, to + i);
  }
  copy_bytes(from, to, head);
  copy_bytes(from + at, to + at, bytes - at);
}

inline void end_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace moeref::move
