#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace moeref::conform {

/// The CRC-32 of zlib (IEEE 802.3, polynomial 0xEDB88320).
std::uint32_t crc32(std::span<const std::byte> bytes);

}  // namespace moeref::conform
