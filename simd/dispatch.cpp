#include <atomic>
#include <cstdlib>
#include <cstring>

#include "simd/isa.hpp"
#include "simd/kernels.hpp"
#include "simd/kernels_scalar.hpp"

namespace moeref::simd {

#if defined(MOEREF_HAVE_X86_KERNELS)
namespace sse42 {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
extern const GemmKernels gemm_kernels;
extern const EncodeKernels encode_kernels;
extern const DecodeKernels decode_kernels;
extern const MatrixKernels matrix_kernels;
extern const ApproxKernels approx_kernels;
extern const FunctionKernels function_kernels;
}  // namespace avx512
namespace avx512vnni {
extern const SliceKernels slice_kernels;
extern const LineKernels line_kernels;

/// AVX-512's loops and those that need byte products.
const KernelTable table{"avx512vnni",
                        &avx512::gemm_kernels,
                        &slice_kernels,
                        &line_kernels,
                        &avx512::encode_kernels,
                        &avx512::decode_kernels,
                        &avx512::matrix_kernels,
                        &avx512::approx_kernels,
                        &avx512::function_kernels};
}  // namespace avx512vnni
#endif
#if defined(MOEREF_HAVE_NEON_KERNELS)
namespace neon {
extern const KernelTable table;
}
#endif

namespace {

struct Candidate {
  const KernelTable* table;
  bool (*works)();
};

bool always() { return true; }

// From the plainest to the fastest.
const Candidate kCandidates[] = {
    {&scalar::table, always},
#if defined(MOEREF_HAVE_X86_KERNELS)
    {&sse42::table, cpu_has_sse42},   {&avx2::table, cpu_has_avx2},
    {&avx512::table, cpu_has_avx512}, {&avx512vnni::table, cpu_has_avx512vnni},
#endif
#if defined(MOEREF_HAVE_NEON_KERNELS)
    {&neon::table, always},
#endif
};
constexpr std::size_t kCandidateCount = sizeof(kCandidates) / sizeof(kCandidates[0]);

std::atomic<const KernelTable*> chosen{nullptr};

const KernelTable* default_kernels() {
  if (const char* wanted = std::getenv("MOEREF_ISA"); wanted != nullptr && *wanted != '\0') {
    return find_kernels(wanted);
  }
  const KernelTable* best = nullptr;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.works()) best = candidate.table;
  }
  return best;
}

}  // namespace

const KernelTable* find_kernels(const char* isa) {
  for (const Candidate& candidate : kCandidates) {
    if (std::strcmp(candidate.table->isa, isa) == 0) {
      return candidate.works() ? candidate.table : nullptr;
    }
  }
  return nullptr;
}

const char* const* available_isas() {
  static const char* names[kCandidateCount + 1] = {};
  static const bool filled = [] {
    std::size_t count = 0;
    for (const Candidate& candidate : kCandidates) {
      if (candidate.works()) names[count++] = candidate.table->isa;
    }
    return true;
  }();
  static_cast<void>(filled);
  return names;
}

const KernelTable* active_kernels() {
  const KernelTable* table = chosen.load(std::memory_order_acquire);
  if (table != nullptr) return table;
  static const KernelTable* const fallback = default_kernels();
  return fallback;
}

bool use_kernels(const char* isa) {
  const KernelTable* table = find_kernels(isa);
  if (table == nullptr) return false;
  chosen.store(table, std::memory_order_release);
  return true;
}

}  // namespace moeref::simd
