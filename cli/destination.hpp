#pragma once

#include <filesystem>

namespace moeref::cli {

/// Error: `out` would replace what is read: it is the file `source`, or it lies in the folder of
/// the checkpoint `checkpoint`, or a file there is a link to it. An empty `checkpoint` is none.
void check_destination(const std::filesystem::path& out, const std::filesystem::path& source,
                       const std::filesystem::path& checkpoint);

}  // namespace moeref::cli
