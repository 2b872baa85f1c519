#pragma once

#include "quant/moe_layer.hpp"

namespace moeref {

/// Checks that a layer is whole and its shapes fit together, before anything is computed: at least
/// one local expert, all of one shape; gate present exactly if the activation is gated; matrices
/// and biases of the sizes that `hidden`, `latent` and `intermediate` say; one activation parameter
/// per local expert, or none. Error: names the tensor, what it has, what is needed.
void check_layer(const MoeLayer& layer);
/// The same where the experts' matrices have padding: `width` is hidden (latent) without it.
void check_layer(const MoeLayer& layer, std::int64_t width);

}  // namespace moeref
