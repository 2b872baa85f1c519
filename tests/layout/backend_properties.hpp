#pragma once

#include <cstdint>
#include <string>

#include "engine/audit.hpp"
#include "layout/prepare.hpp"
#include "layout_zoo.hpp"

namespace moeref::testing {

/// What is wrong with a prepared matrix of `bytes`, found the slow way, in words; empty = nothing:
///  - its map: every input element stands at exactly one place, or at as many as a RepeatRows step
///    says, which no other move precedes; a place is a pad or an element;
///  - its bytes: what Origin says of every place, one by one: the recoded element, or the fill;
///  - its undo: gives back what was loaded, or what the last recoding without an inverse made of
///  it,
///    and finds no wrong pad or copy.
std::string fault_in_matrix(const TensorRecipe& recipe, const PreparedTensor& tensor,
                            std::span<const std::byte> bytes);
/// The first fault in a matrix of the layer, or in its shape.
std::string fault_in_layer(const PreparedLayer& prepared);

/// Whether the text of a rejection names the backend, one of its tensors, or the option of the
/// command line that cuts a rank.
bool names_its_subject(const std::string& text, const Backend& backend);

/// What a zoo showed of a backend.
struct ZooResult {
  std::int64_t accepted = 0;
  std::int64_t rejected = 0;
  std::int64_t survived = 0;  ///< audits that kept the function
  std::int64_t broke = 0;
  std::string fault;     ///< the first fault, with its case; empty = none
  std::string breakage;  ///< the first audit that found a difference
};
/// The first case on which the backend does not keep the function of the layer, in words; empty =
/// none of those that it accepts.
std::string find_breakage(const Backend& backend, const std::vector<std::string>& choice,
                          const std::vector<ZooCase>& cases);
/// Prepares every case and checks it; stops at the first fault, or at the first breakage if
/// `stop_at_breakage`.
ZooResult walk_zoo(const Backend& backend, const std::vector<std::string>& choice,
                   const std::vector<ZooCase>& cases, bool stop_at_breakage);

}  // namespace moeref::testing
