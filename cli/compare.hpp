#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "quant/tensor.hpp"

namespace moeref::cli {

/// identical: the same bits. allowed: inside the bound that comes with the golden values. wrong:
/// anything else.
enum class Verdict : std::uint8_t { identical, allowed, wrong };

std::string_view name(Verdict verdict);

/// One element that differs.
struct Difference {
  std::int64_t index = 0;   ///< flat
  std::string coordinates;  ///< "token 3, hidden 17"
  double actual = 0.0;
  double golden = 0.0;
  std::string actual_bits;  ///< hexadecimal
  std::string golden_bits;
  std::int64_t ulps = 0;  ///< in the tensor's own type; -1 if one of them is NaN
  std::string allowed;    ///< "[low, high]"; empty = no bounds known
};

/// A row (token) or an expert with its differences.
struct Group {
  std::int64_t index = 0;
  std::int64_t wrong = 0;  ///< wrong elements (tokens), or slots with wrong elements (experts)
  std::int64_t total = 0;
  double largest = 0.0;  ///< |actual - golden|
};

/// How one tensor compares.
struct Comparison {
  std::string tensor;
  Verdict verdict = Verdict::identical;
  std::string mismatch;  ///< shapes or dtypes that disagree, then nothing else is filled in
  std::int64_t elements = 0;
  std::int64_t differing = 0;  ///< other bits
  std::int64_t outside = 0;    ///< outside the bound (without a bound: differing)
  std::int64_t nan_actual = 0, nan_golden = 0;
  std::int64_t inf_actual = 0, inf_golden = 0;
  std::int64_t zero_actual = 0, zero_golden = 0;
  std::int64_t largest_ulps = 0;
  double largest_difference = 0.0;
  double nmse = 0.0;       ///< sum of squared differences / sum of squared golden values
  double calc_diff = 0.0;  ///< 1 - 2 <a, g> / (|a|^2 + |g|^2)
  double cosine = 0.0;
  double ratio = 0.0;               ///< least-squares factor: actual = ratio * golden
  std::optional<Difference> first;  ///< the first wrong element
  std::vector<Difference> worst;    ///< by |actual - golden|, NaN first
  std::vector<Group> worst_rows;    ///< tokens
  std::vector<Group>
      worst_experts;  ///< experts whose tokens differ most often, if the routing is known
};

/// What a golden file knows beside a tensor; each part may be null.
struct Context {
  const TensorView* low = nullptr;   ///< same dtype and shape: smallest allowed value
  const TensorView* high = nullptr;  ///< largest allowed value
  const TensorView* topk_ids =
      nullptr;  ///< I32 or I64 [tokens, top_k]: attributes tokens to experts
};

/// Compares element by element. Error: a dtype that is no number, bounds of another form.
Comparison compare_tensors(const std::string& name, const TensorView& actual,
                           const TensorView& golden, const Context& context);

/// Whether a tensor holds experts: [tokens, top_k], I32 or I64.
bool is_id_tensor(const TensorView& ids);
/// An element of such a tensor, by its flat index.
std::int64_t id_at(const TensorView& ids, std::int64_t index);

/// The GPU may list the experts of a token in another order than the golden file. Returns `tensor`
/// ([tokens, top_k] or [tokens, top_k, n]) with the slots of each token in the order of the golden
/// ids, where both hold the same experts once each; other tokens stay. Nothing if no token had to
/// change or the shapes do not fit.
std::optional<Tensor> align_slots(const TensorView& tensor, const TensorView& actual_ids,
                                  const TensorView& golden_ids);

nlohmann::json to_json(const Comparison& comparison);
/// A paragraph for people.
std::string to_text(const Comparison& comparison);

}  // namespace moeref::cli
