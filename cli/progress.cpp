#include "cli/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace moeref::cli {

Progress::Progress(std::string label, bool quiet)
    : label_(std::move(label)), visible_(!quiet && isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (visible_ && last_percent_ >= 0) fmt::print(stderr, "\r\033[K");
}

void Progress::show(std::int64_t done, std::int64_t total, const std::string& note) {
  if (!visible_ || total <= 0) return;
  const int percent = static_cast<int>(100 * done / total);
  if (percent == last_percent_) return;
  last_percent_ = percent;
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(kWidth * done / total);
  fmt::print(stderr, "\r\033[K{} [{:=<{}}{: <{}}] {:3}% {}", label_, "", filled, "",
             kWidth - filled, percent, note);
  std::fflush(stderr);
}

}  // namespace moeref::cli
