#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/moe.hpp"
#include "layout/backend.hpp"
#include "layout/kernel_view.hpp"
#include "layout/shard.hpp"

namespace moeref::testing {

/// The activations that layers of the tests have.
enum class Kind { silu, limited, gpt_oss, relu2 };
inline constexpr Kind kAllKinds[] = {Kind::silu, Kind::limited, Kind::gpt_oss, Kind::relu2};
const char* name(Kind kind);

/// A small random layer for a backend, and what it is run on.
struct LayerRequest {
  std::string format;  ///< of the weights
  Kind kind = Kind::silu;
  bool bias = false;
  bool shared = false;
  bool latent = false;
  std::int64_t experts = 10;
  std::int64_t tokens = 4;
  std::int64_t top_k = 2;
  bool absent_slots = true;  ///< some slots have no expert
  bool calibrated = true;    ///< the checkpoint has activation scales, if its format may
  Shard rank;
  std::vector<std::string> options = {};
  std::vector<std::string> kernel = {};
  NumericsLevel level = NumericsLevel::backend;
  float routed_scaling = 1.0f;
  bool weighs_input = false;
  std::optional<Activation> activation = std::nullopt;  ///< instead of that of `kind`
};

/// bf16 hidden states that can be changed.
struct HiddenStates {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::shared_ptr<std::vector<std::uint16_t>> codes;

  ScaledMatrix matrix() const;
  std::uint16_t& at(std::int64_t row, std::int64_t col) {
    return (*codes)[static_cast<std::size_t>(row * cols + col)];
  }
  /// Rows in another order, or some of them.
  HiddenStates picked(const std::vector<std::int64_t>& rows) const;
};
Route picked(const Route& route, const std::vector<std::int64_t>& tokens);

/// A layer as a backend's kernel takes it, inputs and routing.
struct BackendCase {
  const Backend* backend = nullptr;
  MoeLayer logical;
  KernelLayer kernel;
  NumericsRequest request;
  HiddenStates hidden;
  Route route;
  ForwardOptions options;

  Numerics numerics() const { return numerics_for(*backend, request); }
  /// Of the hidden states and routing as they are now.
  ForwardResult run() const;
  ForwardResult run(const HiddenStates& some, const Route& their_route) const;
};

/// A layer of the smallest size that the backend, its rules and its quantizers take, with
/// calibrated activation scales. Weights of slots are not bf16 numbers; one is negative, one is 0;
/// one expert has no token. Error: what the backend says of the largest size tried.
BackendCase make_case(const Backend& backend, const LayerRequest& wanted);

/// The first of SiLU, a limit, GPT-OSS's activation and relu2 that the backend takes at a level, in
/// the first of its formats.
LayerRequest usual_layer(const Backend& backend, NumericsLevel level = NumericsLevel::backend);

/// A backend at level backend, or replay if it has one.
struct BackendLevel {
  const Backend* backend = nullptr;
  NumericsLevel level = NumericsLevel::backend;
};
std::vector<BackendLevel> all_backend_levels();
/// "triton_bf16_replay"
std::string name(const BackendLevel& level);

/// "mxfp4 gpt_oss bias top-4 tokens 3 combine=deepep": names a case in messages.
std::string describe(const LayerRequest& wanted);

}  // namespace moeref::testing
