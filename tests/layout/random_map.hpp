#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "layout/transform.hpp"

namespace moeref::testing {

/// What to draw.
struct MapSizes {
  std::int64_t max_experts = 4;
  std::int64_t max_rows = 24;  ///< of a half
  std::int64_t max_cols = 48;
};

/// A map that apply can carry out, a stack that fits it, and what owns its bytes.
struct RandomMap {
  IndexMap map;
  TensorStack stack;
  Recoders recoders;
  std::vector<std::byte> storage;
  std::string text;  ///< for messages
};

/// Any element size, storage order, tables with cuts, copies, pads and permutations, order of
/// digits, bit permutation, recoders.
RandomMap random_map(std::mt19937_64& random, const MapSizes& sizes);

std::int64_t draw(std::mt19937_64& random, std::int64_t low, std::int64_t high);
std::vector<std::byte> random_bytes(std::mt19937_64& random, std::int64_t count);

/// Adds something that depends on the place to each code, modulo its size; both ways.
std::shared_ptr<const Recoder> place_recoder(int bits);
/// Codes of `in_bits` in containers of `out_bits`; the inverse takes the low bits, and exists
/// if nothing is lost.
std::shared_ptr<const Recoder> resize_recoder(int in_bits, int out_bits);

}  // namespace moeref::testing
