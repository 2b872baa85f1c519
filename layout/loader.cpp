#include "layout/loader.hpp"

#include <algorithm>

#include "quant/error.hpp"
#include "quant/tensor.hpp"

namespace moeref {

LoadedRange loaded_range(const Loader& loader, std::int64_t intermediate, std::int64_t rank,
                         std::int64_t ranks) {
  if (ranks < 1 || rank < 0 || rank >= ranks) {
    fail("--tp", "rank {}/{} does not exist; give R/N with N >= 1 and 0 <= R < N", rank, ranks);
  }
  if (intermediate % ranks != 0) {
    fail("--tp",
         "the intermediate size is {}, which {} ranks do not divide; choose a divisor "
         "of {}",
         intermediate, ranks, intermediate);
  }
  std::int64_t stride = intermediate / ranks;
  switch (loader.kind) {
    case LoaderKind::even:
      break;
    case LoaderKind::padded:
      stride = ceil_div(stride, loader.multiple) * loader.multiple;
      break;
    case LoaderKind::blocks:
      if (intermediate % loader.multiple != 0) {
        fail("--tp", "the intermediate size is {}; this loader cuts blocks of {}", intermediate,
             loader.multiple);
      }
      stride = ceil_div(intermediate / loader.multiple, ranks) * loader.multiple;
      break;
  }
  const std::int64_t begin = std::min(rank * stride, intermediate);
  const std::int64_t end = std::min(begin + stride, intermediate);
  return {begin, end - begin, stride};
}

}  // namespace moeref
