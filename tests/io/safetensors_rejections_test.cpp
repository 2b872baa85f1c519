#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <string_view>

#include "tests/io/safetensors_text.hpp"

namespace moeref {
namespace {

using testing::f32;
using testing::one;
using testing::refusal_of_bytes;
using testing::safetensors_bytes;
using testing::zeros;

struct Rejection {
  const char* name;
  std::string header;
  std::size_t data_bytes;
  std::string message;
};

void PrintTo(const Rejection& rejection, std::ostream* out) { *out << rejection.name; }

class SafetensorsHeader : public ::testing::TestWithParam<Rejection> {};

TEST_P(SafetensorsHeader, IsRejected) {
  const Rejection& rejection = GetParam();
  EXPECT_EQ(refusal_of_bytes(safetensors_bytes(rejection.header, zeros(rejection.data_bytes))),
            rejection.message);
}

std::string repeat(std::string_view text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

const std::string kKnown =
    "BOOL, U8, I8, U16, I16, U32, I32, U64, I64, F16, BF16, F32, F64, F8_E4M3, F8_E5M2, F8_E8M0, "
    "F8_E4M3FNUZ, F8_E5M2FNUZ, F4, F6_E2M3, F6_E3M2, C64";
const std::string kRange = ", it must hold whole numbers from 0 to 2^63 - 1";

INSTANTIATE_TEST_SUITE_P(
    Text, SafetensorsHeader,
    ::testing::Values(
        Rejection{"array", "[1,2]   ", 0, "header starts with '[', it must start with '{'"},
        Rejection{"string", "\"abc\"", 0, "header starts with '\"', it must start with '{'"},
        Rejection{"leading_space", " {}", 0, "header starts with ' ', it must start with '{'"},
        Rejection{"byte_order_mark", "\xEF\xBB\xBF{}", 0,
                  "header starts with '\\xef', it must start with '{'"},
        Rejection{"nul_padding", std::string("{}\0\0", 4), 0,
                  "header holds a NUL at its byte 2; pad it with spaces"},
        Rejection{"nul_in_name", std::string("{\"a\0b\":1}", 9), 0,
                  "header holds a NUL at its byte 3; pad it with spaces"},
        Rejection{"stray_continuation", "{\"a\x80\":{}}", 0, "header is not UTF-8 at its byte 3"},
        Rejection{"overlong_utf8", "{\"\xC0\xAF\":{}}", 0, "header is not UTF-8 at its byte 2"},
        Rejection{"utf8_surrogate", "{\"\xED\xA0\x80\":{}}", 0,
                  "header is not UTF-8 at its byte 2"},
        Rejection{"cut_utf8", "{\"ab\xE2\x82", 0, "header is not UTF-8 at its byte 4"},
        Rejection{"lone_escaped_surrogate", R"({"\ud800":{}})", 0,
                  "header is not JSON at its byte 8, the last of '{\"\\ud800\"'"},
        Rejection{"cut_json", R"({"w":)", 0,
                  "header is not JSON: it ends in the middle, with '{\"w\":'"},
        Rejection{"cut_string", R"({"w)", 0,
                  "header is not JSON: it ends in the middle, with '{\"w'"},
        Rejection{
            "trailing_comma", R"({"__metadata__":{"a":"b",}})", 0,
            "header is not JSON at its byte 25, the last of '{\"__metadata__\":{\"a\":\"b\",}'"},
        Rejection{"comment", "{} // x", 0, "header is not JSON at its byte 3, the last of '{} /'"},
        Rejection{"second_value", "{}{}", 0, "header is not JSON at its byte 2, the last of '{}{'"},
        Rejection{"control_in_string", "{\"a\nb\":{}}", 0,
                  "header is not JSON at its byte 3, the last of '{\"a\\x0a'"},
        Rejection{"number_overflow", one("\"U8\"", "[1e999]", "[0,1]"), 1,
                  "header is not JSON at its byte 32, the last of "
                  "'{\"w\":{\"dtype\":\"U8\",\"shape\":[1e999'"},
        Rejection{"deep_arrays", R"({"w":{"x":)" + repeat("[", 100000), 0,
                  "header is nested deeper than 16 levels"},
        Rejection{"deep_objects", R"({"w":)" + repeat(R"({"x":)", 100000), 0,
                  "header is nested deeper than 16 levels"}),
    [](const auto& case_info) { return case_info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Entry, SafetensorsHeader,
    ::testing::Values(
        Rejection{"number", R"({"w":1})", 0,
                  "'w': is the number 1, it must be an object with dtype, shape, data_offsets"},
        Rejection{"null", R"({"w":null})", 0,
                  "'w': is null, it must be an object with dtype, shape, data_offsets"},
        Rejection{"array", R"({"w":[]})", 0,
                  "'w': is an array, it must be an object with dtype, shape, data_offsets"},
        Rejection{"twice",
                  "{" + f32("w", "[]", 0, 4) + "," + f32("v", "[]", 4, 8) + "," +
                      f32("w", "[]", 0, 4) + "}",
                  8, "two entries of the header are named 'w'"},
        Rejection{"twice_by_escape",
                  "{" + f32("w", "[]", 0, 4) + "," + f32("\\u0077", "[]", 4, 8) + "}", 8,
                  "two entries of the header are named 'w'"},
        Rejection{"metadata_twice", R"({"__metadata__":{},"__metadata__":{}})", 0,
                  "two entries of the header are named '__metadata__'"},
        Rejection{"dtype_twice",
                  R"({"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
                  "'w': has the key 'dtype' twice"},
        Rejection{"key_twice_deep_inside",
                  R"({"w":{"dtype":"U8","x":[{"y":1,"y":2}],"shape":[1],"data_offsets":[0,1]}})", 1,
                  "'w': has the key 'y' twice"},
        Rejection{"no_dtype", R"({"w":{"shape":[1],"data_offsets":[0,1]}})", 1,
                  "'w': has no dtype"},
        Rejection{"no_shape", R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", 1,
                  "'w': has no shape"},
        Rejection{"no_offsets", R"({"w":{"dtype":"U8","shape":[1]}})", 1,
                  "'w': has no data_offsets"},
        Rejection{"empty", R"({"w":{}})", 0, "'w': has no dtype"},
        Rejection{"control_in_name", R"({"a\nb\u001b[0m":{}})", 0,
                  "'a\\x0ab\\x1b[0m': has no dtype"},
        Rejection{"long_name", "{\"" + repeat("n", 5000) + "\":{}}", 0,
                  "'" + repeat("n", 140) + "... (4800 bytes left out) ..." + repeat("n", 60) +
                      "': has no dtype"}),
    [](const auto& case_info) { return case_info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Dtype, SafetensorsHeader,
    ::testing::Values(Rejection{"unknown", one("\"F7\"", "[1]", "[0,1]"), 1,
                                "'w': unknown dtype 'F7'; known: " + kKnown},
                      Rejection{"wrong_case", one("\"f32\"", "[1]", "[0,4]"), 4,
                                "'w': unknown dtype 'f32'; known: " + kKnown},
                      Rejection{"number", one("32", "[1]", "[0,4]"), 4,
                                "'w': dtype is the number 32, it must be a string"},
                      Rejection{"null", one("null", "[1]", "[0,4]"), 4,
                                "'w': dtype is null, it must be a string"},
                      Rejection{"array", one("[\"U8\"]", "[1]", "[0,1]"), 1,
                                "'w': dtype is an array, it must be a string"},
                      Rejection{"half_a_byte", one("\"F4\"", "[3]", "[0,2]"), 2,
                                "'w': F4 [3] takes 12 bits, which make no whole bytes"},
                      Rejection{"part_of_a_byte", one("\"F6_E2M3\"", "[2,3]", "[0,5]"), 5,
                                "'w': F6_E2M3 [2, 3] takes 36 bits, which make no whole bytes"}),
    [](const auto& case_info) { return case_info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Shape, SafetensorsHeader,
    ::testing::Values(
        Rejection{"string", one("\"U8\"", "\"[1]\"", "[0,1]"), 1,
                  "'w': shape is the string '[1]', it must be an array of whole numbers"},
        Rejection{"object", one("\"U8\"", "{}", "[0,1]"), 1,
                  "'w': shape is an object, it must be an array of whole numbers"},
        Rejection{"negative", one("\"U8\"", "[-1]", "[0,1]"), 1,
                  "'w': shape holds the negative number -1" + kRange},
        Rejection{"fraction", one("\"U8\"", "[1.0]", "[0,1]"), 1,
                  "'w': shape holds a number that is fractional or too large, '1.0'" + kRange},
        Rejection{"exponent", one("\"U8\"", "[1e0]", "[0,1]"), 1,
                  "'w': shape holds a number that is fractional or too large, '1e0'" + kRange},
        Rejection{
            "above_u64", one("\"U8\"", "[18446744073709551617]", "[0,1]"), 1,
            "'w': shape holds a number that is fractional or too large, '18446744073709551617'" +
                kRange},
        Rejection{"above_i64", one("\"U8\"", "[9223372036854775808]", "[0,1]"), 1,
                  "'w': shape holds the number 9223372036854775808" + kRange},
        Rejection{"true_size", one("\"U8\"", "[true]", "[0,1]"), 1,
                  "'w': shape holds true" + kRange},
        Rejection{"string_size", one("\"U8\"", "[\"1\"]", "[0,1]"), 1,
                  "'w': shape holds the string '1'" + kRange},
        Rejection{"nested", one("\"U8\"", "[[1]]", "[0,1]"), 1,
                  "'w': shape holds an array" + kRange},
        Rejection{"product_overflow", one("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0,
                  "'w': U8 [4294967296, 4294967296] overflows: more than 2^63 - 1 bits"},
        Rejection{"bits_overflow", one("\"F64\"", "[1152921504606846976]", "[0,0]"), 0,
                  "'w': F64 [1152921504606846976] overflows: more than 2^63 - 1 bits"},
        Rejection{"overflow_hidden_by_zero", one("\"U8\"", "[4294967296,4294967296,0]", "[0,0]"), 0,
                  "'w': U8 [4294967296, 4294967296, 0] overflows: more than 2^63 - 1 bits"},
        Rejection{"too_many_dimensions", one("\"U8\"", "[1" + repeat(",1", 64) + "]", "[0,1]"), 1,
                  "'w': shape has 65 dimensions, at most 64 are supported"}),
    [](const auto& case_info) { return case_info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Offsets, SafetensorsHeader,
    ::testing::Values(
        Rejection{"number", one("\"U8\"", "[1]", "1"), 1,
                  "'w': data_offsets is the number 1, it must be an array of whole numbers"},
        Rejection{"one", one("\"U8\"", "[1]", "[0]"), 1,
                  "'w': data_offsets has 1 numbers, it must have 2: begin and end"},
        Rejection{"three", one("\"U8\"", "[1]", "[0,1,2]"), 1,
                  "'w': data_offsets has 3 numbers, it must have 2: begin and end"},
        Rejection{"negative", one("\"U8\"", "[1]", "[-1,0]"), 1,
                  "'w': data_offsets holds the negative number -1" + kRange},
        Rejection{
            "fraction", one("\"U8\"", "[1]", "[0,1.5]"), 1,
            "'w': data_offsets holds a number that is fractional or too large, '1.5'" + kRange},
        Rejection{"huge", one("\"U8\"", "[1]", "[0,18446744073709551615]"), 1,
                  "'w': data_offsets holds the number 18446744073709551615" + kRange},
        Rejection{"backwards", one("\"U8\"", "[1]", "[1,0]"), 1,
                  "'w': data_offsets [1, 0] end before they begin"},
        Rejection{"too_few_bytes", one("\"F32\"", "[2,3]", "[0,16]"), 16,
                  "'w': data_offsets [0, 16] hold 16 bytes, F32 [2, 3] needs 24"},
        Rejection{"too_many_bytes", one("\"F32\"", "[]", "[0,8]"), 8,
                  "'w': data_offsets [0, 8] hold 8 bytes, F32 [] needs 4"},
        Rejection{"bytes_for_an_empty_tensor", one("\"F32\"", "[0]", "[0,4]"), 4,
                  "'w': data_offsets [0, 4] hold 4 bytes, F32 [0] needs 0"},
        Rejection{"overlap", "{" + f32("a", "[2]", 0, 8) + "," + f32("b", "[2]", 4, 12) + "}", 12,
                  "tensors 'a' and 'b' overlap in data bytes [4, 8)"},
        Rejection{"same_place", "{" + f32("a", "[2]", 0, 8) + "," + f32("b", "[2]", 0, 8) + "}", 8,
                  "tensors 'a' and 'b' overlap in data bytes [0, 8)"},
        Rejection{"hole", "{" + f32("a", "[1]", 0, 4) + "," + f32("b", "[1]", 8, 12) + "}", 12,
                  "data bytes [4, 8) before tensor 'b' belong to no tensor"},
        Rejection{"hole_in_front", one("\"U8\"", "[1]", "[1,2]"), 2,
                  "data bytes [0, 1) before tensor 'w' belong to no tensor"},
        Rejection{"empty_tensor_outside", one("\"U8\"", "[0]", "[1,1]"), 0,
                  "'w': data_offsets [1, 1] lie outside the 0 bytes of data"},
        Rejection{"truncated", "{" + f32("a", "[1]", 0, 4) + "," + f32("b", "[2]", 4, 12) + "}", 7,
                  "truncated: 5 bytes are missing (the header describes 12 bytes of data, the file "
                  "has 7); "
                  "copy or download it again"},
        Rejection{"trailing_bytes", one("\"U8\"", "[1]", "[0,1]"), 3,
                  "2 trailing bytes after the last tensor (the header describes 1 bytes of data, "
                  "the file "
                  "has 3)"},
        Rejection{"trailing_bytes_without_tensors", "{}", 1,
                  "1 trailing bytes after the last tensor (the header describes 0 bytes of data, "
                  "the file "
                  "has 1)"}),
    [](const auto& case_info) { return case_info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Metadata, SafetensorsHeader,
    ::testing::Values(Rejection{"null", R"({"__metadata__":null})", 0,
                                "__metadata__ is null, it must be an object of strings"},
                      Rejection{"string", R"({"__metadata__":"x"})", 0,
                                "__metadata__ is the string 'x', it must be an object of strings"},
                      Rejection{"array", R"({"__metadata__":[]})", 0,
                                "__metadata__ is an array, it must be an object of strings"},
                      Rejection{"number_value", R"({"__metadata__":{"total_size":123}})", 0,
                                "__metadata__ 'total_size' is the number 123, it must be a string"},
                      Rejection{"null_value", R"({"__metadata__":{"a":null}})", 0,
                                "__metadata__ 'a' is null, it must be a string"},
                      Rejection{"object_value", R"({"__metadata__":{"a":{}}})", 0,
                                "__metadata__ 'a' is an object, it must be a string"},
                      Rejection{"key_twice", R"({"__metadata__":{"a":"x","a":"x"}})", 0,
                                "__metadata__ has the key 'a' twice"}),
    [](const auto& case_info) { return case_info.param.name; });

}  // namespace
}  // namespace moeref
