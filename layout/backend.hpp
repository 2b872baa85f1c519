#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "layout/loader.hpp"
#include "layout/step.hpp"
#include "quant/numerics.hpp"
#include "quant/options.hpp"

namespace moeref {

/// One tensor that a backend prepares from a tensor of the logical layer.
struct TensorRecipe {
  std::string name;  ///< of the prepared tensor: "w13", "w13_scale", ...
  Slot from = Slot::w13;
  /// From the loaded tensor (gate rows, then up rows) to the kernel's bytes.
  std::vector<Step> steps;
  /// The last `kernel_steps` steps are the kernel's own order: it reads the tensor as the halves,
  /// sizes and columns of KernelReading after undoing them. The steps before are the framework's.
  std::size_t kernel_steps = 0;
};

/// Numbers that a backend passes beside the tensors.
struct ScalarRecipe {
  std::string name;     ///< "g1_alphas"
  std::string formula;  ///< as evaluated, f32, left to right: "a1 * w13_scale_2[e][gate]"
  bool per_expert = true;
  /// Empty result: the backend does not pass this tensor for this layer.
  std::function<std::vector<float>(const ExpertScalars&, const LayerShape&)> values = nullptr;
  /// Instead of `values`, where stored tensors enter the formula (Marlin: the scale factor of all
  /// block scales).
  std::function<std::vector<float>(const LayerTensors&)> values_of_layer = nullptr;
  std::int64_t each = 1;  ///< numbers of one expert: one, one for each half, or one for each row
  bool of_all_experts = false;  ///< of the model, not of the rank
};

/// Scales as a kernel decodes them: prepared bytes of an expert's scales, the kernel's order
/// undone, to f32 [rows, cols].
using ScaleDecoder = std::function<std::vector<float>(std::span<const std::byte> scales)>;
/// The prepared scalars by name.
using ScalarValues = std::map<std::string, std::vector<float>, std::less<>>;
/// A number that a kernel takes for expert `expert` of the rank from the prepared scalars.
using ScalarReader = std::function<float(const ScalarValues&, std::int64_t expert)>;

/// What the kernel takes the prepared tensors for: written down from the kernel, not from the
/// preparation, so that an audit can hold one against the other.
struct KernelReading {
  GateOrder order = GateOrder::gate_up;  ///< of the halves of w13: gate_up or up_gate; none
  std::int64_t intermediate = 0;  ///< rows of a half of w13 = columns of w2, padding included
  std::int64_t hidden = 0;        ///< columns of w13 = rows of w2, padding included
  std::int64_t unread_k = 0;      ///< last columns of w13 and of w2 that the kernel leaves out
  Format codes = Format::bf16;
  std::int64_t block_rows = 0;  ///< of the block scales; 0 = the kernel reads none
  std::int64_t block_cols = 0;
  ScaleDecoder w13_scale = nullptr;  ///< empty = none
  ScaleDecoder w2_scale = nullptr;
  /// Factor of the whole gate, up and down matrix of expert e from the prepared scalars; empty = 1.
  /// If activation scales a1, a2 are folded into them, input_scale_13 and input_scale_2 tell a1 and
  /// a2: the weight's own factor is factor / a.
  ScalarReader gate_factor = nullptr;
  ScalarReader up_factor = nullptr;
  ScalarReader down_factor = nullptr;
  ScalarReader input_scale_13 = nullptr;
  ScalarReader input_scale_2 = nullptr;
  /// The kernel adds the prepared bias before it multiplies by the factors: the bias itself is the
  /// prepared one times gate_factor, up_factor, down_factor.
  bool bias_before_factor = false;
  /// Parameters of the gated activation; empty = arguments of the call, which the framework takes
  /// from the model.
  ScalarReader alpha = nullptr;
  ScalarReader beta = nullptr;
  ScalarReader limit = nullptr;
  /// Of up, where it is not by its nature that of gate.
  ScalarReader up_limit = nullptr;
  /// The limit comes out of a prepared quotient, and so of the logical one only up to rounding.
  bool limit_is_folded = false;
};

/// What a backend does with the weights of one layer.
struct Recipe {
  std::vector<TensorRecipe> tensors;
  std::vector<ScalarRecipe> scalars = {};
  KernelReading kernel;
  std::vector<std::string> notes =
      {};  ///< facts for the user: "gate's global scale also serves up"
};

/// A size that must be a multiple. A backend refuses no size that its rules do not name, so that
/// what `layout list` shows is what make_recipe checks.
struct AlignmentRule {
  /// "hidden", "intermediate" (the rows that the loader gives every rank), "experts" (of the rank);
  /// "padded hidden", "padded intermediate": of KernelReading, where options choose the padding.
  std::string_view size;
  std::int64_t multiple;
  /// "" = always; else words joined by " and ", all of which must hold: "gated", "not gated", a
  /// weight format, "option=value", "option!=value".
  std::string when;
  std::string_view reason;  ///< who needs it, and what helps: "FlashInfer binding: 128-bit loads"
};

/// What the numerics of a backend depend on beside the backend.
struct NumericsRequest {
  LayerShape shape;  ///< of the rank
  Options options;   ///< of the backend
  Options kernel;    ///< of its kernels: tiles, builds, versions
  std::int64_t tokens = 0;
  std::int64_t top_k = 0;
  float routed_scaling = 1.0f;
  Activation activation;       ///< of the routed experts
  bool static_scales = false;  ///< the checkpoint has calibrated activation scales
  bool weighs_input = false;   ///< router weights on the experts' input
  NumericsLevel level = NumericsLevel::backend;

  /// Whether alpha, beta or a limit of the activation is not that of SiLU.
  bool parametric() const;
};

/// A weight-preparation pipeline and the kernels that take what it prepares. One file in
/// layout/backends/, one line in backends.inc.
struct Backend {
  std::string_view name;
  std::string_view family;
  std::string_view summary;               ///< one line
  std::vector<std::string_view> formats;  ///< weight formats it takes
  /// An option `swiglu` with another value than as_model lets layers pass whose activation the
  /// kernel does not compute.
  std::vector<OptionInfo> options = {};
  std::vector<AlignmentRule> rules = {};
  /// How a tensor-parallel rank's part is cut; null = LoaderKind::even.
  Loader (*loader)(const LayerShape& whole, const Options& options) = nullptr;
  /// The steps for a loaded shape that fits `formats` and `rules` (those about padded sizes aside).
  /// Error: conditions that are no size's.
  Recipe (*recipe)(const LayerShape& shape, const Options& options) = nullptr;

  /// What of the kernels decides bits beside the layer: tiles, builds, versions.
  std::vector<OptionInfo> kernel_options = {};
  /// Rounding points, and with level replay the sums and functions of the kernels.
  /// Error (one line): a layer or kernel option that the kernels do not take; level replay where
  /// this layer or option was not measured.
  /// Null: nothing is known of them.
  Numerics (*numerics)(const NumericsRequest& request) = nullptr;
  ReplayStatus replay = {};
};

namespace backends {
#define MOEREF_BACKEND(name) extern const Backend name;
#include "layout/backends.inc"
#undef MOEREF_BACKEND
}  // namespace backends

/// Every backend, in the order of backends.inc.
std::span<const Backend* const> all_backends();
/// Error: an unknown name; lists the nearest.
const Backend& find_backend(std::string_view name);

/// The defaults, overridden by "key=value" texts. Error: unknown key or value; lists them.
Options parse_options(const Backend& backend, std::span<const std::string> texts);
/// The rules that these options leave; of `when` the words about the layer. Error: a size or word
/// that the backend does not have.
std::vector<AlignmentRule> rules_for(const Backend& backend, const Options& options);
/// The defaults of a backend's kernel options, overridden by "key=value" texts. Error: as
/// parse_options.
Options parse_kernel_options(const Backend& backend, std::span<const std::string> texts);
/// The numerics of a backend. Error: what Backend::numerics says; level replay of a backend that
/// has none (says why, and names --numerics backend).
Numerics numerics_for(const Backend& backend, const NumericsRequest& request);
/// Whether a rule of rules_for is one for this layer.
bool applies(const AlignmentRule& rule, const LayerShape& shape);
/// Checks format and alignment rules and gives the steps. Error: one line with the rule.
Recipe make_recipe(const Backend& backend, const LayerShape& shape, const Options& options);

}  // namespace moeref
