#include "cli/destination.hpp"

#include <algorithm>
#include <system_error>

#include "quant/error.hpp"

namespace moeref::cli {
namespace {

namespace fs = std::filesystem;

bool is_same(const fs::path& left, const fs::path& right) {
  std::error_code absent;
  return fs::equivalent(left, right, absent);
}

}  // namespace

void check_destination(const fs::path& out, const fs::path& source, const fs::path& checkpoint) {
  if (is_same(out, source)) fail(out.string(), "is the input itself; choose another -o");
  if (checkpoint.empty()) return;
  const fs::path parent = out.has_parent_path() ? out.parent_path() : fs::path(".");
  if (is_same(parent, checkpoint)) {
    fail(out.string(), "lies in the folder of the checkpoint that is read; choose another -o");
  }
  std::error_code unreadable;
  const fs::directory_iterator files(checkpoint, unreadable);
  const auto linked = std::find_if(begin(files), end(files),
                                   [&out](const auto& file) { return is_same(out, file.path()); });
  if (linked != end(files)) {
    fail(out.string(), "is {} of the checkpoint that is read; choose another -o",
         linked->path().filename().string());
  }
}

}  // namespace moeref::cli
