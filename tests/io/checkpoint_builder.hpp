#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.hpp"
#include "quant/tensor.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref::testing {

/// How a linear layer is written; the suffixes and dtypes of real releases.
enum class Storage {
  bf16,
  f16,
  f32,
  fp8_block,         ///< weight_scale_inv, F32
  fp8_block_bf16,    ///< weight_scale_inv, BF16
  fp8_block_f16,     ///< weight_scale_inv, F16
  fp8_block_v4,      ///< scale, F8_E8M0
  fp8_block_v4_u8,   ///< scale, U8
  fp8_block_v4_f32,  ///< scale, F32
  fp8_block_ct,      ///< weight_scale, F32: compressed-tensors strategy "block"
  fp8_channel,       ///< weight_scale F32 [N, 1]
  fp8_channel_flat,  ///< weight_scale BF16 [N]
  fp8_tensor,        ///< weight_scale F32 [], input_scale []
  fp8_tensor_1,      ///< weight_scale F32 [1], input_scale [1]
  fp8_tensor_bf16,   ///< weight_scale BF16 [1, 1], no input_scale
  mxfp8,             ///< weight_scale U8 [N, K/32]
  mxfp4_v4,          ///< weight I8, scale F8_E8M0
  mxfp4_v4_u8,       ///< weight U8, scale U8
  nvfp4,             ///< weight U8, weight_scale, weight_scale_2 [], input_scale []
  nvfp4_i8,          ///< weight I8, scalars [1]
  nvfp4_ct,          ///< weight_packed U8, weight_global_scale [1], input_global_scale [1]
  nvfp4_ct_weight_only,
  mxfp4_ct,  ///< weight_packed U8, weight_scale U8
};

/// The name that MoeLayer::weight_format has for it.
std::string format_name(Storage storage);

/// Puts a small checkpoint together in a temporary folder. Bytes are pseudo-random, but valid for
/// what they mean.
class CheckpointBuilder {
 public:
  nlohmann::json config;

  /// A tensor of valid random content: FP8 and FP4 codes, positive scales, moderate floats, by
  /// dtype.
  void add(const std::string& name, DType dtype, Shape shape);
  /// U8 or F8_E8M0 bytes that are E8M0 scales of moderate size.
  void add_e8m0(const std::string& name, DType dtype, Shape shape);
  template <typename T>
  void add_values(const std::string& name, DType dtype, Shape shape, const std::vector<T>& values) {
    tensors[name] = make_tensor<T>(name, dtype, std::move(shape), values);
  }
  /// All tensors of a linear layer [rows, cols]. `block` is the FP8 block size.
  void add_linear(const std::string& module, Storage storage, std::int64_t rows, std::int64_t cols,
                  std::int64_t block = 128);
  /// gate_proj, up_proj (if `gated`), down_proj or other names of one expert.
  void add_expert(const std::string& module, Storage storage, std::int64_t intermediate,
                  std::int64_t width, const std::vector<std::string>& up_like,
                  const std::string& down, std::int64_t block = 128);

  /// Writes config.json and the tensors: one file, or `shards` files with an index, neighbours by
  /// name in different files.
  void write(int shards = 1);
  Checkpoint open() const { return Checkpoint::open(folder.path()); }
  MoeLayer write_and_load(std::int64_t layer, int shards = 1) {
    write(shards);
    return open().load_layer(layer);
  }

  std::map<std::string, Tensor> tensors;
  TempFolder folder;

 private:
  std::uint64_t random();
  std::uint64_t state_ = 0x9E3779B97F4A7C15u;
};

/// Value of a stored element, by formulas that share nothing with the library. `nibble` counts FP4
/// codes.
double stored_value(const Tensor& tensor, std::int64_t index);
double stored_e8m0(const Tensor& tensor, std::int64_t index);
double stored_fp4(const Tensor& tensor, std::int64_t nibble);

/// What element (row, col) of a linear layer must be, without a global scale.
double linear_value(const CheckpointBuilder& builder, const std::string& module, Storage storage,
                    std::int64_t row, std::int64_t col, std::int64_t block = 128);

/// Element times block scale as the library reads it; exact in f64.
double read_value(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col);

/// EXPECTs every element of `matrix` to be what was written for `module`.
void expect_linear(const CheckpointBuilder& builder, const ScaledMatrix& matrix,
                   const std::string& module, Storage storage, std::int64_t rows, std::int64_t cols,
                   std::int64_t block = 128);
/// As above for gate, up (if there), down of one expert.
void expect_expert(const CheckpointBuilder& builder, const Expert& expert,
                   const std::string& module, Storage storage, std::int64_t intermediate,
                   std::int64_t width, const std::vector<std::string>& up_like,
                   const std::string& down, std::int64_t block = 128);

/// "value from source" of a provenance item, or "absent".
std::string fact(const MoeLayer& layer, std::string_view item);

inline const std::vector<std::string> kGated{"gate_proj", "up_proj"};

/// Ready-made models: config, router and experts of the layers [first, last]. Sizes are small and
/// ragged.
struct Sizes {
  std::int64_t hidden = 64;
  std::int64_t intermediate = 96;
  std::int64_t experts = 4;
  std::int64_t top_k = 2;
  std::int64_t layers = 1;
};

/// quantization_config of a DeepSeek or Qwen3 FP8 release.
nlohmann::json fp8_config(std::int64_t block = 128);

void build_qwen3(CheckpointBuilder& builder, Storage storage, const Sizes& sizes);
void build_deepseek_v3(CheckpointBuilder& builder, Storage storage, const Sizes& sizes);
void build_deepseek_v4(CheckpointBuilder& builder, Storage experts, Storage shared,
                       const Sizes& sizes, std::int64_t block = 128);
void build_nemotron_h(CheckpointBuilder& builder, Storage up, Storage down, const Sizes& sizes,
                      const std::string& root = "backbone.", std::int64_t latent = 0);
void build_gpt_oss(CheckpointBuilder& builder, const Sizes& sizes);

}  // namespace moeref::testing
