#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/case_writer.hpp"
#include "cli/prepared_file.hpp"
#include "layout/transform.hpp"

namespace moeref::cli {

/// How far the recodings of a tensor can be undone.
struct Restoration {
  Recoders recoders;  ///< those that can
  DType dtype = DType::u8;
  int bits = 8;
  std::vector<std::string> kept;  ///< names of those that cannot, and of those before them
};

/// One prepared tensor to undo, and what is found on the way.
struct Undoing {
  const PreparedTensor* tensor = nullptr;
  const TensorView* stored = nullptr;
  Restoration restoration;
  std::string written_as;          ///< the logical tensor's name
  std::vector<Undoing*> checkers;  ///< made from the same logical tensor; compared, not written
  UndoReport report;
  std::int64_t missing = 0;            ///< logical elements that the prepared tensor does not hold
  std::int64_t differing_experts = 0;  ///< checkers: experts that differ from the written tensor
  std::string first_wrong;             ///< what the first wrong pad or copy is, where

  bool is_right() const {
    return report.wrong_pads == 0 && report.wrong_copies == 0 && differing_experts == 0;
  }
};

/// Every matrix of a prepared file. The first of several that come from one logical tensor, with
/// the fewest recodings left, is written; the others check it. `single`: the tensor has its own
/// name. Error: a tensor that is absent or does not fit its metadata.
std::vector<Undoing> plan_undo(const PreparedFile& file, bool single);

/// Adds the logical tensors; the reports are there after `write`. `undoings` must outlive it.
void add_undone(CaseWriter& writer, const PreparedFile& file, std::vector<Undoing>& undoings,
                int threads);

/// A prepared tensor of factors, held against its formula.
struct FactorCheck {
  std::string name;
  std::int64_t count = 0;   ///< factors in the file
  bool recomputed = false;  ///< false: all block scales enter the formula; only the size is checked
  std::int64_t wrong = 0;   ///< factors of other bits than the formula gives
  std::string first_wrong;
};

/// Every factor tensor that the backend passes for the layer. Error: one is missing, is not F32,
/// has another number of factors, or is there although the backend passes none.
std::vector<FactorCheck> check_factors(const PreparedFile& file);

/// What stands where a pad or a copy is wrong: fills first_wrong.
void explain_wrong(const PreparedFile& file, Undoing& undoing);

}  // namespace moeref::cli
