#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace moeref::simd {

/// For its lifetime the calling thread rounds to nearest even and keeps subnormals, whatever the
/// host program set; then the host's setting is back. Needed at API entry and inside every parallel
/// region: pool threads keep their own setting.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() : saved_(read()) { write(kDefault); }
  ~DefaultFloatEnvironment() { write(saved_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  using Register = unsigned int;
  static constexpr Register kDefault =
      0x1F80;  // MXCSR: all exceptions masked, nearest, no FTZ, no DAZ
  static Register read() { return _mm_getcsr(); }
  static void write(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = std::uint64_t;
  static constexpr Register kDefault = 0;  // FPCR: nearest, no flush, IEEE NaNs
  static Register read() {
    Register value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void write(Register value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
  using Register = int;
  static constexpr Register kDefault = 0;
  static Register read() { return 0; }
  static void write(Register) {}
#endif
  Register saved_;
};

}  // namespace moeref::simd
