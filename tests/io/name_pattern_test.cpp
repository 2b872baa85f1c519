#include "io/name_pattern.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

namespace moeref {
namespace {

constexpr std::string_view kModule = "model.layers.12.mlp.experts.3.up_proj";

bool expression_matches(const std::string& expression, std::string_view module = kModule) {
  const NamePattern pattern("re:" + expression);
  EXPECT_TRUE(pattern.understood()) << expression;
  return pattern.matches(module);
}

TEST(NamePattern, MatchesExpressionsFromTheStart) {
  EXPECT_TRUE(expression_matches("model"));
  EXPECT_FALSE(expression_matches("layers"));
  EXPECT_TRUE(expression_matches(".*mlp"));
  EXPECT_TRUE(expression_matches(".*up_proj$"));
  EXPECT_FALSE(expression_matches(".*mlp$"));
  EXPECT_TRUE(
      expression_matches("^model\\.layers\\.\\d+\\.mlp\\.experts\\.[0-9]+\\.(gate|up)_proj$"));
  EXPECT_FALSE(expression_matches("model\\.layers\\.\\d\\.mlp"));
  EXPECT_TRUE(expression_matches("model\\.layers\\.\\d{2}\\.mlp"));
  EXPECT_TRUE(expression_matches("model\\.layers\\.(?:1|12|13)\\.mlp"));
  EXPECT_TRUE(expression_matches("model\\.layers\\.1[^0-15-9]?\\."));
  EXPECT_FALSE(expression_matches("model\\.layers\\.1[^0-29]\\."));
  EXPECT_TRUE(expression_matches("\\w+\\.\\w*?\\.\\d{1,3}\\.\\S+\\.3"));
  EXPECT_FALSE(expression_matches("\\W"));
  EXPECT_TRUE(expression_matches("(a|b|)model"));
  EXPECT_TRUE(expression_matches("(mod(el\\.)?){1,}layers"));
  EXPECT_TRUE(expression_matches("x*"));
  EXPECT_FALSE(expression_matches("x+"));
  EXPECT_TRUE(expression_matches("m{,1}odel"));
  EXPECT_TRUE(expression_matches("[m]odel"));
  EXPECT_TRUE(expression_matches("a]|model"));
}

TEST(NamePattern, DoesNotPretendToUnderstandOtherSyntax) {
  for (const char* text :
       {"re:(?!model).*", "re:(a", "re:a)", "re:[a", "re:\\bmodel", "re:(.)\\1", "re:*a",
        "re:a{2,1}", "re:a{99999}", "re:a\\", "re:(?P<x>a)", "re:a++"}) {
    const NamePattern pattern(text);
    EXPECT_FALSE(pattern.understood()) << text;
    EXPECT_FALSE(pattern.matches("model")) << text;
  }
}

TEST(NamePattern, StaysLinearOnHostileExpressions) {
  const std::string name(200, 'a');
  EXPECT_FALSE(expression_matches("(a*)*b", name));
  EXPECT_FALSE(expression_matches("(a|aa)+$b", name));
  EXPECT_FALSE(NamePattern("re:((a{100}){100}){100}").understood());
  EXPECT_FALSE(NamePattern("re:" + std::string(100000, '(')).understood());
  EXPECT_FALSE(NamePattern("re:" + std::string(100000, 'a')).understood());
  EXPECT_FALSE(NamePattern(std::string(100000, '*')).understood());
}

TEST(NamePattern, MatchesGlobsOfTheModuleOrAParent) {
  EXPECT_TRUE(NamePattern("model.layers.*.mlp.experts").matches(kModule));
  EXPECT_TRUE(NamePattern("model.layers.1*").matches(kModule));
  EXPECT_TRUE(NamePattern("*.up_proj").matches(kModule));
  EXPECT_TRUE(NamePattern("model.layers.??.mlp").matches(kModule));
  EXPECT_FALSE(NamePattern("model.layers.?.mlp").matches(kModule));
  EXPECT_FALSE(NamePattern("layers.*").matches(kModule));
  EXPECT_FALSE(NamePattern("model.layers.12.mlp.exp?").matches(kModule));
}

TEST(NameList, FindsExactNamesParentsEndsAndClasses) {
  NameList list;
  list.add("model.layers.12.mlp.experts.3", 1);
  list.add("lm_head", 2);
  list.add("re:.*gate$", 3);
  list.add("model.layers.4*", 4);
  EXPECT_EQ(list.find(kModule), 1u);
  EXPECT_EQ(list.find("model.lm_head"), 2u);
  EXPECT_EQ(list.find("model.layers.3.mlp.gate"), 3u);
  EXPECT_EQ(list.find("model.layers.40.mlp.up_proj"), 4u);
  EXPECT_EQ(list.find("model.layers.12.mlp.experts.30"), std::nullopt);
  EXPECT_EQ(list.find("model.my_lm_head"), std::nullopt);
  list.add("Linear", 5);
  EXPECT_EQ(list.find("anything.at.all"), 5u);
}

TEST(NameList, RefusesAnAbsurdNumberOfPatterns) {
  NameList list;
  EXPECT_THROW(
      {
        for (int i = 0; i < 100000; ++i) list.add("re:a" + std::to_string(i));
      },
      std::length_error);
}

}  // namespace
}  // namespace moeref
