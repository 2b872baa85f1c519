#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

#include "cli/commands.hpp"
#include "cli/prepared_file.hpp"
#include "layout/explain.hpp"

// Places in prepared tensors, as `moeref layout explain` reads and tells them.

namespace moeref::cli {

/// The layer to explain, and its bytes if there is a file.
struct Subject {
  PreparedFile file;
  std::string tensor;  ///< empty: every tensor

  const PreparedLayer& layer() const { return file.layer; }
  /// The bytes, or an empty span without a file.
  std::span<const std::byte> bytes(const PreparedTensor& planned) const {
    return file.file != nullptr ? file.stored(planned).bytes : std::span<const std::byte>{};
  }
};

/// Bits [first, first + count) of a tensor.
struct BitRange {
  std::int64_t first;
  std::int64_t count;
};
/// A number from 0, decimal or 0x... Error: anything else.
std::int64_t parse_number(std::string_view text);
/// "17" (element of the tensor's dtype), "byte:0x1f3c0" or "[1,2,3]" of a tensor of `bytes` bytes.
/// Error: anything else; outside the tensor.
BitRange parse_at(const std::string& text, const PreparedTensor& tensor, std::int64_t bytes);

/// Bits of a stored tensor as a number; `count` at most 64.
std::uint64_t bits_at(std::span<const std::byte> bytes, std::int64_t first, std::int64_t count);
std::string hex_bits(std::uint64_t value, std::int64_t bits);
/// "bits 0..3"; empty if `count` is all of `whole`.
std::string bits_text(std::string_view what, std::int64_t first, int count, std::int64_t whole);
nlohmann::json to_json(const Meaning& meaning);

/// How the numbers of a tensor made from scalars belong to experts.
struct ScalarOwners {
  std::int64_t count = 0;  ///< numbers in the tensor
  std::int64_t each = 0;   ///< for one expert; 0 = the numbers are no expert's
  std::int64_t first = 0;  ///< global id of the first expert
};
ScalarOwners scalar_owners(const Subject& subject, const PreparedTensor& tensor);
/// The recipe of a tensor made from scalars.
const ScalarRecipe& scalar_of(const PreparedLayer& layer, const PreparedTensor& tensor);
/// Tells one number of a tensor made from scalars: formula, value, its expert if it is one
/// expert's. Error: outside the tensor.
void explain_scalar(const Subject& subject, const PreparedTensor& tensor, std::int64_t index,
                    const GlobalOptions& global);
/// Tells where the element stands that `text` names, "expert=3 gate row=17 col=5".
/// Error: a text that names none; no such element.
void explain_find(const Subject& subject, const std::string& text, const GlobalOptions& global);

}  // namespace moeref::cli
