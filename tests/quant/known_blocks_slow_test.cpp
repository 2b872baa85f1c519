// Rows of known blocks against the coder one number at a time, every amax of 16 bits.

#include <gtest/gtest.h>

#include "tests/quant/known_blocks_check.hpp"

namespace moeref {
namespace {

class KnownBlocksOf : public testing::TestWithParam<QuantizerCase> {};

TEST_P(KnownBlocksOf, HaveTheCodesOfEveryNumber) { check_known_blocks(GetParam(), 1); }

INSTANTIATE_TEST_SUITE_P(All, KnownBlocksOf, testing::ValuesIn(known_block_cases()),
                         [](const auto& one) { return case_name(one.param); });

}  // namespace
}  // namespace moeref
