#pragma once

#include <benchmark/benchmark.h>

#include <string>
#include <vector>

namespace moeref::bench {

/// Rows of Markdown: the name and what its arguments are, the time, and every counter that a row
/// has. One table a family (the name up to the first slash).
class MarkdownReporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& context) override;
  void ReportRuns(const std::vector<Run>& runs) override;

 private:
  std::string family_;
};

}  // namespace moeref::bench
