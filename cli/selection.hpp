#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "layout/shard.hpp"
#include "quant/dtype.hpp"

namespace moeref::cli {

/// Numbers from "3", "0,2,5-7" or "*" (all of `available`). Order and repeats are dropped: rising,
/// each once. Numbers need not be in `available`. Error: anything else.
std::vector<std::int64_t> parse_numbers(std::string_view option, const std::string& text,
                                        std::span<const std::int64_t> available);

/// For CLI11's check(): what is wrong with an option's text that must not be empty.
std::string not_empty(const std::string& text);

/// "R/N" for a rank in a group. Error: anything else.
void parse_rank(std::string_view option, const std::string& text, std::int64_t& rank,
                std::int64_t& size);

/// The shard that --tp and --ep name; empty texts are the whole.
Shard parse_shard(const std::string& tp, const std::string& ep);

/// f32, bf16 or f16. Error: another name.
Format parse_output_format(const std::string& name);

/// Names of backends from "a,b" or "*" (all), each once. Error: unknown, with the nearest ones.
std::vector<std::string> parse_backends(const std::string& text);

}  // namespace moeref::cli
