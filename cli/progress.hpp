#pragma once

#include <cstdint>
#include <string>

namespace moeref::cli {

/// A bar on stderr, drawn only if stderr is a terminal and the command is not quiet; it clears its
/// line at the end.
class Progress {
 public:
  Progress(std::string label, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Shows `done` of `total`; `note` names what is under way.
  void show(std::int64_t done, std::int64_t total, const std::string& note = "");

 private:
  std::string label_;
  bool visible_;
  int last_percent_ = -1;
};

}  // namespace moeref::cli
