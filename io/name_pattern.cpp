#include "io/name_pattern.hpp"

#include <array>
#include <optional>
#include <stdexcept>

namespace moeref {
namespace {

constexpr std::size_t kMaxProgram = 2000;
constexpr std::size_t kMaxPatterns = 4096;
constexpr int kMaxNesting = 64;
constexpr std::uint32_t kMaxRepeat = 1000;
constexpr std::uint32_t kUnbounded = UINT32_MAX;

/// Module classes that projections of experts have in the frameworks that write such lists.
constexpr std::array<std::string_view, 1> kProjectionClasses{"Linear"};

bool is_word_byte(unsigned byte) {
  return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
         (byte >= '0' && byte <= '9') || byte == '_';
}
bool is_digit_byte(unsigned byte) { return byte >= '0' && byte <= '9'; }
bool is_space_byte(unsigned byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

}  // namespace

/// Recursive descent over the part of Python's syntax that real lists use: literals, `.`, classes,
/// \d \w \s, groups, alternatives, * + ? {m,n} (also lazy: the set of matched names is the same), ^
/// and $.
class PatternParser {
 public:
  PatternParser(NamePattern& pattern, std::string_view text) : pattern_(pattern), rest_(text) {}

  /// Compiles; false if the syntax is not supported or the program would become too long.
  bool compile_expression() {
    const bool good = alternatives(0) && rest_.empty();
    emit({.kind = Step::Kind::accept});
    return good && !too_long_;
  }

  bool compile_glob() {
    for (const char c : rest_) {
      if (c == '*') {
        const auto begin = here();
        emit({.kind = Step::Kind::split, .next = begin + 1, .other = begin + 3});
        emit({.kind = Step::Kind::any});
        emit({.kind = Step::Kind::jump, .next = begin});
      } else if (c == '?') {
        emit({.kind = Step::Kind::any});
      } else {
        emit_byte(c);
      }
    }
    emit({.kind = Step::Kind::at_end});
    emit({.kind = Step::Kind::accept});
    return !too_long_;
  }

 private:
  using Step = NamePattern::Step;
  using ByteSet = NamePattern::ByteSet;

  std::uint32_t here() const { return static_cast<std::uint32_t>(pattern_.program_.size()); }
  void emit(Step step) {
    if (pattern_.program_.size() >= kMaxProgram) {
      too_long_ = true;
    } else {
      pattern_.program_.push_back(step);
    }
  }
  void emit_byte(char c) {
    emit({.kind = Step::Kind::byte, .next = static_cast<unsigned char>(c)});
  }
  void emit_set(ByteSet bytes) {
    emit({.kind = Step::Kind::set, .next = static_cast<std::uint32_t>(pattern_.sets_.size())});
    pattern_.sets_.push_back(std::move(bytes));
  }
  bool take(char c) {
    if (rest_.empty() || rest_.front() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  bool alternatives(int nesting) {
    if (nesting > kMaxNesting) return false;
    std::vector<std::uint32_t> exits;
    for (;;) {
      const std::uint32_t begin = here();
      emit({.kind = Step::Kind::split, .next = begin + 1});  // becomes a jump if no '|' follows
      if (!sequence(nesting)) return false;
      if (too_long_) return false;
      if (!take('|')) {
        pattern_.program_[begin] = {.kind = Step::Kind::jump, .next = begin + 1};
        break;
      }
      exits.push_back(here());
      emit({.kind = Step::Kind::jump});
      if (too_long_) return false;
      pattern_.program_[begin].other = here();
    }
    for (const std::uint32_t exit : exits) pattern_.program_[exit].next = here();
    return true;
  }

  bool sequence(int nesting) {
    while (!rest_.empty() && rest_.front() != '|' && rest_.front() != ')') {
      const std::uint32_t begin = here();
      const bool assertion = rest_.front() == '^' || rest_.front() == '$';
      if (!atom(nesting) || too_long_) return false;
      if (!assertion && !repetition(begin)) return false;
    }
    return true;
  }

  bool atom(int nesting) {
    const char c = rest_.front();
    rest_.remove_prefix(1);
    switch (c) {
      case '^':
        emit({.kind = Step::Kind::at_start});
        return true;
      case '$':
        emit({.kind = Step::Kind::at_end});
        return true;
      case '.':
        emit({.kind = Step::Kind::any});
        return true;
      case '(':
        if (take('?') && !take(':')) return false;  // look-around, flags, names
        return alternatives(nesting + 1) && take(')');
      case '[':
        return bracket();
      case '\\': {
        std::optional<ByteSet> bytes = escape();
        if (!bytes) return false;
        emit_set(*std::move(bytes));
        return true;
      }
      case '*':
      case '+':
      case '?':
      case '{':
        return false;
      default:
        emit_byte(c);
        return true;
    }
  }

  std::optional<ByteSet> escape() {
    if (rest_.empty()) return std::nullopt;
    const char c = rest_.front();
    rest_.remove_prefix(1);
    ByteSet bytes(256, false);
    const auto fill = [&](bool (*member)(unsigned), bool wanted) {
      for (unsigned b = 0; b < 256; ++b) bytes[b] = member(b) == wanted;
    };
    switch (c) {
      case 'd':
        fill(is_digit_byte, true);
        break;
      case 'D':
        fill(is_digit_byte, false);
        break;
      case 'w':
        fill(is_word_byte, true);
        break;
      case 'W':
        fill(is_word_byte, false);
        break;
      case 's':
        fill(is_space_byte, true);
        break;
      case 'S':
        fill(is_space_byte, false);
        break;
      default:
        if (is_word_byte(static_cast<unsigned char>(c))) return std::nullopt;  // \b, \1, \A, ...
        bytes[static_cast<unsigned char>(c)] = true;
    }
    return bytes;
  }

  bool bracket() {
    ByteSet bytes(256, false);
    const bool negated = take('^');
    bool first = true;
    while (first || (!rest_.empty() && rest_.front() != ']')) {
      if (rest_.empty()) return false;
      first = false;
      const char low = rest_.front();
      rest_.remove_prefix(1);
      if (low == '\\') {
        const std::optional<ByteSet> escaped = escape();
        if (!escaped) return false;
        for (std::size_t b = 0; b < 256; ++b) bytes[b] = bytes[b] || (*escaped)[b];
        continue;
      }
      unsigned high = static_cast<unsigned char>(low);
      if (rest_.size() >= 2 && rest_[0] == '-' && rest_[1] != ']') {
        if (rest_[1] == '\\') return false;
        high = static_cast<unsigned char>(rest_[1]);
        rest_.remove_prefix(2);
      }
      for (unsigned b = static_cast<unsigned char>(low); b <= high; ++b) bytes[b] = true;
    }
    if (!take(']')) return false;
    if (negated) bytes.flip();
    emit_set(std::move(bytes));
    return true;
  }

  /// Repeats the steps from `begin` to here as the quantifier that follows says.
  bool repetition(std::uint32_t begin) {
    std::uint32_t least = 1;
    std::uint32_t most = 1;
    if (take('*')) {
      least = 0;
      most = kUnbounded;
    } else if (take('+')) {
      most = kUnbounded;
    } else if (take('?')) {
      least = 0;
    } else if (take('{')) {
      if (!counts(least, most)) return false;
    } else {
      return true;
    }
    take('?');  // lazy
    if (!rest_.empty() && (rest_.front() == '+' || rest_.front() == '*'))
      return false;  // possessive
    const std::vector<Step> body(pattern_.program_.begin() + begin, pattern_.program_.end());
    pattern_.program_.resize(begin);
    for (std::uint32_t i = 0; i < least && !too_long_; ++i) append(body, begin);
    if (most == kUnbounded) {
      const std::uint32_t loop = here();
      emit({.kind = Step::Kind::split, .next = loop + 1});
      append(body, begin);
      emit({.kind = Step::Kind::jump, .next = loop});
      if (!too_long_) pattern_.program_[loop].other = here();
      return !too_long_;
    }
    for (std::uint32_t i = least; i < most && !too_long_; ++i) {
      const std::uint32_t split = here();
      emit({.kind = Step::Kind::split, .next = split + 1});
      append(body, begin);
      if (!too_long_) pattern_.program_[split].other = here();
    }
    return !too_long_;
  }

  /// "m}", "m,}", "m,n}", ",n}"
  bool counts(std::uint32_t& least, std::uint32_t& most) {
    const auto read = [&](std::uint32_t& value) {
      bool any = false;
      for (; !rest_.empty() && is_digit_byte(static_cast<unsigned char>(rest_.front()));
           rest_.remove_prefix(1)) {
        value = (any ? value * 10 : 0) + static_cast<std::uint32_t>(rest_.front() - '0');
        any = true;
        if (value > kMaxRepeat) break;
      }
      return any;
    };
    least = 0;
    const bool low = read(least);
    most = least;
    bool high = false;
    if (take(',')) {
      most = kUnbounded;
      high = read(most);
    }
    return take('}') && (low || high) && most >= least && least <= kMaxRepeat &&
           (most <= kMaxRepeat || most == kUnbounded);
  }

  void append(const std::vector<Step>& body, std::uint32_t from) {
    const std::uint32_t shift = here() - from;
    for (Step step : body) {
      if (step.kind == Step::Kind::split || step.kind == Step::Kind::jump) {
        step.next += shift;
        step.other += shift;
      }
      emit(step);
    }
  }

  NamePattern& pattern_;
  std::string_view rest_;
  bool too_long_ = false;
};

NamePattern::NamePattern(std::string text) : text_(std::move(text)) {
  constexpr std::string_view kExpression = "re:";
  const std::string_view view = text_;
  expression_ = view.starts_with(kExpression);
  understood_ = expression_
                    ? PatternParser(*this, view.substr(kExpression.size())).compile_expression()
                    : PatternParser(*this, view).compile_glob();
}

bool NamePattern::matches(std::string_view module) const {
  if (!understood_) return false;
  if (expression_) return run(module);
  for (std::size_t end = module.size(); end != std::string_view::npos && end > 0;
       end = module.rfind('.', end - 1)) {
    if (run(module.substr(0, end))) return true;
  }
  return false;
}

bool NamePattern::consumes(const Step& step, unsigned char byte) const {
  switch (step.kind) {
    case Step::Kind::any:
      return true;
    case Step::Kind::byte:
      return step.next == byte;
    case Step::Kind::set:
      return sets_[step.next][byte];
    default:
      return false;
  }
}

bool NamePattern::run(std::string_view name) const {
  std::vector<std::uint32_t> threads;
  std::vector<std::uint32_t> following;
  std::vector<std::uint32_t> pending;
  std::vector<std::size_t> seen(program_.size(),
                                0);  // position + 1 at which a step was last reached
  bool accepted = false;
  const auto follow = [&](std::vector<std::uint32_t>& into, std::uint32_t start,
                          std::size_t position) {
    pending.push_back(start);
    while (!pending.empty()) {
      const std::uint32_t at = pending.back();
      pending.pop_back();
      if (seen[at] == position + 1) continue;
      seen[at] = position + 1;
      const Step& step = program_[at];
      switch (step.kind) {
        case Step::Kind::jump:
          pending.push_back(step.next);
          break;
        case Step::Kind::split:
          pending.push_back(step.other);
          pending.push_back(step.next);
          break;
        case Step::Kind::at_start:
          if (position == 0) pending.push_back(at + 1);
          break;
        case Step::Kind::at_end:
          if (position == name.size()) pending.push_back(at + 1);
          break;
        case Step::Kind::accept:
          accepted = true;
          break;
        default:
          into.push_back(at);
      }
    }
  };
  follow(threads, 0, 0);
  for (std::size_t position = 0; position < name.size() && !threads.empty() && !accepted;
       ++position) {
    following.clear();
    for (const std::uint32_t at : threads) {
      if (consumes(program_[at], static_cast<unsigned char>(name[position]))) {
        follow(following, at + 1, position + 1);
      }
    }
    threads.swap(following);
  }
  return accepted;
}

void NameList::add(std::string_view text, std::size_t value) {
  if (!text.starts_with("re:") && text.find_first_of("*?") == std::string_view::npos) {
    exact_.emplace(text, value);
    return;
  }
  if (patterns_.size() >= kMaxPatterns) throw std::length_error("too many name patterns");
  patterns_.emplace_back(std::string(text));
  pattern_values_.push_back(value);
}

std::optional<std::size_t> NameList::find(std::string_view module) const {
  const auto look_up = [&](std::string_view name) -> std::optional<std::size_t> {
    const auto found = exact_.find(std::string(name));
    return found == exact_.end() ? std::nullopt : std::optional(found->second);
  };
  if (!exact_.empty()) {
    for (std::size_t end = module.size(); end != std::string_view::npos && end > 0;
         end = module.rfind('.', end - 1)) {
      if (const auto value = look_up(module.substr(0, end))) return value;
    }
    for (std::size_t dot = module.find('.'); dot != std::string_view::npos;
         dot = module.find('.', dot + 1)) {
      if (const auto value = look_up(module.substr(dot + 1))) return value;
    }
    for (const std::string_view name : kProjectionClasses) {
      if (const auto value = look_up(name)) return value;
    }
  }
  for (std::size_t i = 0; i < patterns_.size(); ++i) {
    if (patterns_[i].matches(module)) return pattern_values_[i];
  }
  return std::nullopt;
}

}  // namespace moeref
