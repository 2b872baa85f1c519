#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.hpp"
#include "cli/layout_json.hpp"
#include "layout/backend.hpp"
#include "layout/sample_layer.hpp"

// The subcommands of `moeref layout`, and what they share.

namespace moeref::cli {

void add_layout_list(CLI::App& layout, const GlobalOptions& global);
void add_layout_apply(CLI::App& layout, const GlobalOptions& global);
void add_layout_undo(CLI::App& layout, const GlobalOptions& global);
void add_layout_explain(CLI::App& layout, const GlobalOptions& global);
void add_layout_audit(CLI::App& layout, const GlobalOptions& global);

/// Which preparation: --backend, --option, --tp, --ep.
struct BackendChoice {
  std::string backend;
  std::vector<std::string> options;
  std::string tp;
  std::string ep;
};
void add_rank_options(CLI::App& command, BackendChoice& choice);

/// Numbers with names from "experts=2,hidden=256". Error: a name that is not among `known`, a value
/// that is no text of the form name=value.
std::vector<std::pair<std::string, std::string>> parse_pairs(std::string_view option,
                                                             const std::string& text,
                                                             const std::vector<std::string>& known);
/// An integer from `least` to `most`. Error: anything else.
std::int64_t parse_size(std::string_view option, const std::string& text, std::int64_t least,
                        std::int64_t most);

/// "experts=8,hidden=2880,intermediate=2880,gated=true,bias=false,format=mxfp4,limit=7"; what is
/// left out is as in SampleShape, the format the backend's first.
SampleShape parse_sample_shape(const std::string& text, const Backend& backend);
/// The layer without data of which `rank` has a part, and what part it is.
struct EmptyRank {
  LayerTensors tensors;
  StoredRank rank;
};
EmptyRank empty_rank(const Backend& backend, const Options& options, const SampleShape& shape,
                     const Shard& rank);

/// "gate_up", "up_gate", "interleaved", "none". Error: another text.
GateOrder parse_order(const std::string& text);
std::string_view order_name(GateOrder order);

/// Lines of at most `width` columns; each but the first begins with `indent` blanks.
std::string wrapped(const std::string& text, std::size_t indent, std::size_t width = 120);

}  // namespace moeref::cli
