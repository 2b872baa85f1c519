#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>

namespace moeref::cli {

/// Options that every command takes.
struct GlobalOptions {
  bool quiet = false;  ///< no progress, no summary
  bool json = false;   ///< machine-readable result on stdout
  int threads = 0;     ///< 0 = all
};

/// Thrown by a command whose work is done and whose exit code is not 0: 1 = compared and different.
struct ExitWith {
  int code;
};

/// Prints a report; bytes that are no UTF-8 (file names) are replaced.
void print_json(const nlohmann::json& report);

void add_golden_command(CLI::App& app, const GlobalOptions& global);
void add_run_command(CLI::App& app, const GlobalOptions& global);
void add_check_command(CLI::App& app, const GlobalOptions& global);
void add_inspect_command(CLI::App& app, const GlobalOptions& global);
void add_synth_command(CLI::App& app, const GlobalOptions& global);
void add_quantize_command(CLI::App& app, const GlobalOptions& global);
void add_dequantize_command(CLI::App& app, const GlobalOptions& global);
void add_conform_command(CLI::App& app, const GlobalOptions& global);
void add_layout_command(CLI::App& app, const GlobalOptions& global);
void add_backends_command(CLI::App& app, const GlobalOptions& global);
void add_formats_command(CLI::App& app, const GlobalOptions& global);
void add_models_command(CLI::App& app, const GlobalOptions& global);
void add_routing_command(CLI::App& app, const GlobalOptions& global);

}  // namespace moeref::cli
