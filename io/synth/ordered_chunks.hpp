#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace moeref {

/// Makes chunks 0 .. count - 1 on `threads` threads (0 = all) and hands them to `take` in order on
/// the calling thread. At most two chunks a thread exist at a time. `size` gives a chunk's bytes;
/// `make` fills it and must not throw anything but std::bad_alloc; an exception of `take` stops all
/// and is passed on.
void make_in_order(std::size_t count, int threads,
                   const std::function<std::size_t(std::size_t)>& size,
                   const std::function<void(std::size_t, std::span<std::byte>)>& make,
                   const std::function<void(std::span<const std::byte>)>& take);

}  // namespace moeref
