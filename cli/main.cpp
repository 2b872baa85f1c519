// moeref: the command line. Parses global options, hands over to one command, turns errors into
// exit codes: 0 done and right, 1 compared and different, 2 bad usage or input, 3 fault of moeref.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "cli/commands.hpp"
#include "cli/version.hpp"
#include "quant/error.hpp"
#include "simd/float_environment.hpp"
#include "simd/kernels.hpp"

namespace moeref::cli {
namespace {

std::string available_names() {
  std::string names;
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    names += (names.empty() ? "" : ", ") + std::string(*isa);
  }
  return names;
}

void choose_kernels(const std::string& isa) {
  if (!isa.empty() && !simd::use_kernels(isa.c_str())) {
    fail("--isa", "{} is not available here; available: {}", isa, available_names());
  }
  if (simd::active_kernels() == nullptr) {
    fail("MOEREF_ISA", "{} is not available here; available: {}", std::getenv("MOEREF_ISA"),
         available_names());
  }
}

void add_commands(CLI::App& app, const GlobalOptions& global) {
  add_golden_command(app, global);
  add_run_command(app, global);
  add_check_command(app, global);
  add_inspect_command(app, global);
  add_synth_command(app, global);
  add_quantize_command(app, global);
  add_dequantize_command(app, global);
  add_conform_command(app, global);
  add_layout_command(app, global);
  add_backends_command(app, global);
  add_formats_command(app, global);
  add_models_command(app, global);
  add_routing_command(app, global);
}

int run(int argc, char** argv) {
  CLI::App app{
      "moeref: the exact answer key for Mixture-of-Experts GPU kernels.\n"
      "Reads a published checkpoint, computes one MoE layer with every stage correctly rounded."};
  app.name("moeref");
  app.set_version_flag("--version", std::string("moeref ") + kVersion);
  app.require_subcommand(1);
  app.fallthrough();
  app.footer(
      "Examples:\n"
      "  moeref golden CHECKPOINT --layer 0 --tokens 64 --stages -o golden   make golden outputs\n"
      "  moeref check gpu.safetensors golden/CASE.safetensors                compare a GPU's "
      "output\n"
      "  moeref COMMAND --help                                               options and examples");
  GlobalOptions global;
  std::string isa;
  app.add_flag("-q,--quiet", global.quiet, "no progress bar, no summary");
  app.add_flag("--json", global.json, "machine-readable result on stdout");
  app.add_option("--threads", global.threads, "threads to use, 0 = all; never changes a result")
      ->check(CLI::Range(0, 4096));
  app.add_option(
      "--isa", isa,
      "instruction set: scalar, sse42, avx2, avx512, avx512vnni, neon (also MOEREF_ISA); never "
      "changes a result");
  app.parse_complete_callback([&isa] { choose_kernels(isa); });
  add_commands(app, global);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::CallForAllHelp& help) {
    return app.exit(help);
  } catch (const CLI::CallForVersion& version) {
    return app.exit(version);
  } catch (const CLI::ParseError& error) {
    const std::vector<std::string> unknown = app.remaining();
    if (app.get_subcommands().empty() && !unknown.empty()) {
      fail(unknown.front(), "is no command; see moeref --help");
    }
    std::string reason = error.what();
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    fmt::print(stderr, "moeref: {}; see moeref --help\n", reason);
    return 2;
  }
  return 0;
}

/// A report that could not be written is no report.
int flushed(int code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  fmt::print(stderr, "moeref: stdout: the report could not be written (closed, or disk full)\n");
  return 2;
}

}  // namespace
}  // namespace moeref::cli

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is an error of the write, not the end
  const moeref::simd::DefaultFloatEnvironment environment;
  std::setlocale(LC_ALL, "C");
  try {
    return moeref::cli::flushed(moeref::cli::run(argc, argv));
  } catch (const moeref::cli::ExitWith& exit) {
    return moeref::cli::flushed(exit.code);
  } catch (const moeref::Error& error) {
    fmt::print(stderr, "moeref: {}\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "moeref: not enough memory; take fewer tokens or a smaller layer\n");
    return 2;
  } catch (const std::exception& error) {
    if (std::ferror(stdout) != 0) return moeref::cli::flushed(0);
    fmt::print(stderr, "moeref: internal fault: {}\n", error.what());
    return 3;
  }
}
