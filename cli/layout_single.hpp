#pragma once

#include <string>
#include <string_view>

#include "cli/layout_commands.hpp"
#include "cli/prepared_file.hpp"
#include "layout/tensor_stack.hpp"

// Single tensors and the steps that the command line names.

namespace moeref::cli {

/// How a single tensor is to be read: --order, --bits, --block.
struct SingleTensor {
  std::string steps;
  std::string order;  ///< empty = not given
  int bits = 0;       ///< 0 = as many as its dtype has
  std::string block;
};
void add_single_options(CLI::App& command, SingleTensor& single);
/// Error: one of --order, --bits, --block or --dtype, which go with --steps. `instead`: what says
/// it without --steps.
void refuse_single(const SingleTensor& single, const std::string& dtype, std::string_view instead);
/// Element size and block of a stack as the options say. Error: bits that do not fit the dtype.
int element_bits(const SingleTensor& single, const std::string& subject, DType dtype);
/// Error: steps that depend on halves, and no --order that says where the halves are.
void need_order(const SingleTensor& single);
void set_block(const SingleTensor& single, TensorStack& stack);

/// A prepared tensor of any file, of which the command line tells the steps and what was prepared.
struct ForeignTensor {
  std::string file;
  std::string tensor;
  std::string shape;  ///< "experts,rows,columns" of the logical tensor, in elements
  std::string dtype;  ///< of the logical tensor; empty = the stored one
};
/// Error: absent parts; steps that do not fit; a stored tensor of another size.
PreparedFile open_foreign(const ForeignTensor& foreign, const SingleTensor& single);

}  // namespace moeref::cli
