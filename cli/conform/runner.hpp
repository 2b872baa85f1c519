#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "cli/conform/comparison.hpp"

namespace moeref::conform {

enum class Verdict : std::uint8_t { passed, failed, skipped };

/// The verdict on one case.
struct CaseResult {
  std::filesystem::path path;
  std::string op;
  Verdict verdict = Verdict::skipped;
  std::vector<Finding> findings;
  std::string error;  ///< why the operation could not be carried out; the case has failed then
};

/// The cases named by `paths`: files, and folders searched recursively for *.safetensors, in order
/// of path. In folders, files without an op (checkpoints) and files of an unknown op without
/// outputs (tables, weights of other cases) are no cases. Error: a path that does not exist, a
/// malformed file, a named file without an op, no case at all.
std::vector<GoldenCase> find_cases(std::span<const std::filesystem::path> paths);

/// Carries out the operation of a case and compares every output. A known op with nothing to
/// compare fails.
CaseResult run_case(const GoldenCase& golden);

/// One line: the file, the first output that differs, how many elements, the first index, both
/// values. A case that passed or was skipped says so.
std::string describe(const CaseResult& result);

/// {"file", "op", "verdict", "error", "outputs": [...]}.
nlohmann::json to_json(const CaseResult& result);

}  // namespace moeref::conform
