#pragma once

#include <vector>

#include "engine/audit.hpp"
#include "engine/audit_trial.hpp"

namespace moeref {

/// What the recodings and folded factors of a pipeline change, matrix by matrix: `loaded` is the
/// rank's part as stored, `recoded` what recoded_layer makes of it. A weight's value after is
/// code * block scale * factor / input scale in f64. Matrices that only move are left out.
std::vector<RecodingEffect> measure_effects(const PreparedLayer& prepared, const MoeLayer& loaded,
                                            const MoeLayer& recoded, const AuditTrial& trial);

}  // namespace moeref
