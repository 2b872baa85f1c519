// Options of backends and quantizers: defaults, texts, and what is refused.

#include "quant/options.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

const std::vector<OptionInfo> kOptions{{"mode", {"one", "two"}, "which"},
                                       {"group", {"N", "128"}, "columns"},
                                       {"eps", {"X", "1e-10"}, "the least amax"}};

Options parse(const std::vector<std::string>& texts) {
  return parse_options("sample", kOptions, texts);
}
std::string message(const std::vector<std::string>& texts) {
  return error_of([&] { parse(texts); });
}

TEST(ParseOptions, TakesDefaultsAndTexts) {
  EXPECT_EQ(parse({})["mode"], "one");
  EXPECT_EQ(parse({}).integer("group"), 128);
  const Options options = parse({"group=64", "mode=two"});
  EXPECT_TRUE(options.is("mode", "two"));
  EXPECT_EQ(options.integer("group"), 64);
  EXPECT_TRUE(options.has("group"));
  EXPECT_FALSE(options.has("groups"));
  EXPECT_EQ(parse({}).number("eps"), 1e-10f);
  EXPECT_EQ(parse({"eps=0.37"}).number("eps"), 0.37f);
  EXPECT_EQ(parse({"eps=0"}).number("eps"), 0.0f);
  EXPECT_EQ(parse({"group=0"}).integer("group"), 0);
  EXPECT_EQ(parse({"group=1048576"}).integer("group"), 1048576);
}

TEST(ParseOptions, RefusesWhatThereIsNot) {
  EXPECT_EQ(message({"colour=red"}),
            "sample: 'colour=red' is no option; write key=value with one of: mode, group, eps");
  EXPECT_EQ(message({"mode"}),
            "sample: 'mode' is no option; write key=value with one of: mode, group, eps");
  EXPECT_EQ(message({"=two"}),
            "sample: '=two' is no option; write key=value with one of: mode, group, eps");
  EXPECT_EQ(message({"mode=three"}), "sample: option mode=three does not exist; choose one, two");
  EXPECT_EQ(message({"mode="}), "sample: option mode= does not exist; choose one, two");
  EXPECT_EQ(message({"mode=one", "mode=one"}), "sample: option mode is given twice; give it once");
  for (const char* number :
       {"", "-1", "1048577", "12x", " 12", "1e3", "0x10", "99999999999999999999999999"}) {
    EXPECT_EQ(
        message({std::string("group=") + number}),
        std::string("sample: option group=") + number + " needs an integer from 0 to 1048576");
  }
  for (const char* number : {"", "-1", "-0", "nan", "inf", "1e40", "1e-60", "0.5x", " 1", "+1"}) {
    EXPECT_EQ(message({std::string("eps=") + number}),
              std::string("sample: option eps=") + number + " needs a number, 0 or more");
  }
  EXPECT_EQ(error_of([] { parse_options("bare", {}, std::vector<std::string>{"a=b"}); }),
            "bare: 'a=b' is no option; write key=value with one of: (none)");
}

}  // namespace
}  // namespace moeref
