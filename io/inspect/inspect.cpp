#include "io/inspect/inspect.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/nearest_names.hpp"

namespace moeref {
namespace {

/// `*` any characters, `?` one; linear in both but for one step back per star.
bool glob_matches(std::string_view pattern, std::string_view text) {
  std::size_t p = 0;
  std::size_t t = 0;
  std::size_t star = std::string_view::npos;
  std::size_t resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

bool is_wanted(std::string_view pattern, std::string_view name) {
  if (pattern.empty()) return true;
  const bool glob = pattern.find_first_of("*?") != std::string_view::npos;
  return glob ? glob_matches(pattern, name) : name.find(pattern) != std::string_view::npos;
}

/// What a tensor is for, known from the weight it belongs to.
struct Meaning {
  ElementFormat format;
  std::string text;
  std::int64_t stack = 1;
};

std::string block_text(const WeightForm& form) {
  if (form.block_rows == form.rows && form.block_cols == form.cols) return "tensor";
  if (form.block_rows == 1 && form.block_cols == form.cols) return "row";
  return fmt::format("{}x{} block", form.block_rows, form.block_cols);
}

std::map<const TensorView*, Meaning> meanings(std::span<const WeightForm> forms) {
  std::map<const TensorView*, Meaning> result;
  for (const WeightForm& form : forms) {
    const std::string shape = form.stack == 1 ? to_string({form.rows, form.cols})
                                              : to_string({form.stack, form.rows, form.cols});
    result[form.weight] = {form.element, form.quantized() ? form.format + " " + shape : "",
                           form.stack};
    if (form.scale != nullptr) {
      const std::string_view spelling = name(form.scale_element);
      result[form.scale] = {form.scale_element,
                            fmt::format("{} scale of a {}", spelling, block_text(form)), 1};
    }
    if (form.global_scale != nullptr) {
      result[form.global_scale] = {
          format_of(form.global_scale->dtype),
          form.global_divides ? "global scale, divides" : "global scale, multiplies", 1};
    }
    if (form.input_scale != nullptr) {
      result[form.input_scale] = {format_of(form.input_scale->dtype), "activation scale", 1};
    }
  }
  return result;
}

Meaning meaning_of(const std::map<const TensorView*, Meaning>& known, const TensorView& view) {
  const auto found = known.find(&view);
  return found == known.end() ? Meaning{format_of(view.dtype), "", 1} : found->second;
}

TensorValues read_values(const TensorView& view, const Meaning& meaning) {
  TensorValues values;
  values.statistics = value_statistics(view.bytes, view.dtype, meaning.format);
  const auto stack = static_cast<std::size_t>(std::max<std::int64_t>(1, meaning.stack));
  const std::size_t slice = view.bytes.size() / stack;
  for (std::size_t expert = 0; expert < stack; ++expert) {
    values.experts.push_back(digest(view.bytes.subspan(expert * slice, slice)));
  }
  return values;
}

/// Reads all `views` on several threads; the largest first, so that none is left alone at the end.
ValuesByTensor read_all(std::vector<const TensorView*> views,
                        const std::map<const TensorView*, Meaning>& known,
                        const InspectOptions& options) {
  ValuesByTensor values;
  std::uint64_t total = 0;
  for (const TensorView* view : views) {
    values[view];
    total += view->bytes.size();
  }
  std::ranges::stable_sort(views, [](const TensorView* left, const TensorView* right) {
    return left->bytes.size() > right->bytes.size();
  });
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t done = 0;
  std::size_t finished = 0;
  std::exception_ptr error;
  const std::size_t all = std::max(1U, std::thread::hardware_concurrency());
  const std::size_t workers =
      std::clamp<std::size_t>(options.threads > 0 ? static_cast<std::size_t>(options.threads) : all,
                              1, std::max<std::size_t>(1, views.size()));
  const auto work = [&] {
    try {
      for (std::size_t i = next++; i < views.size(); i = next++) {
        values.at(views[i]) = read_values(*views[i], meaning_of(known, *views[i]));
        const std::lock_guard lock(mutex);
        done += views[i]->bytes.size();
        changed.notify_one();
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    ++finished;
    changed.notify_one();
  };
  {
    std::vector<std::jthread> pool;
    for (std::size_t worker = 0; worker < workers; ++worker) pool.emplace_back(work);
    std::unique_lock lock(mutex);
    while (finished < workers) {
      changed.wait(lock);
      const std::uint64_t shown = done;
      if (!options.progress) continue;
      lock.unlock();
      options.progress(shown, total);
      lock.lock();
    }
  }
  if (error) std::rethrow_exception(error);
  return values;
}

std::vector<TensorRow> make_rows(const std::vector<const TensorView*>& views, bool one_each,
                                 const std::map<const TensorView*, Meaning>& known,
                                 const ValuesByTensor& values) {
  struct Gathered {
    NameGroup group;
    TensorRow row;
  };
  using Key = std::tuple<std::string, DType, Shape, std::string>;
  std::map<Key, Gathered> gathered;
  for (const TensorView* view : views) {
    const Meaning meaning = meaning_of(known, *view);
    const NumberedName name = split_numbers(view->name);
    Gathered& group =
        gathered[{one_each ? view->name : name.form, view->dtype, view->shape, meaning.text}];
    group.group.add(name);
    TensorRow& row = group.row;
    row.dtype = view->dtype;
    row.shape = view->shape;
    row.meaning = meaning.text;
    row.bytes += view->bytes.size();
    ++row.count;
    if (const auto found = values.find(view); found != values.end()) {
      if (!row.values) row.values.emplace();
      row.values->add(found->second.statistics);
    }
  }
  std::vector<TensorRow> rows;
  for (auto& [key, group] : gathered) {
    group.row.name = group.group.shown();
    rows.push_back(std::move(group.row));
  }
  return rows;
}

}  // namespace

ExpertPlace expert_place(const WeightForm& form) {
  constexpr std::string_view kMark = ".experts.";
  const std::string name = "." + form.prefix;
  const std::size_t mark = name.rfind(kMark);
  if (mark == std::string::npos) return {};
  const std::size_t begin = mark + kMark.size();
  ExpertPlace place;
  place.layer = name.substr(1, begin - 1);
  const NumberedName rest = split_numbers(std::string_view(name).substr(begin));
  if (form.stack > 1 || rest.numbers.empty() || !rest.form.starts_with("#.")) {
    place.projection = name.substr(begin);
  } else {
    place.expert = rest.numbers.front();
    place.projection = rest.form.substr(2);
  }
  return place;
}

InspectReport inspect(const std::filesystem::path& path, const InspectOptions& options) {
  Findings findings;
  const TensorSet set = open_tensor_set(path, findings);
  const std::vector<WeightForm> forms = recognise_weights(set, findings);
  check_structure(set, forms, findings);

  std::vector<const TensorView*> wanted;
  std::vector<std::string> names;
  InspectReport report;
  report.files = set.files.size();
  report.tensors = set.tensors.size();
  for (const auto& [name, view] : set.tensors) {
    report.bytes += view->bytes.size();
    names.push_back(name);
    if (is_wanted(options.tensor_pattern, name)) wanted.push_back(view);
  }
  if (wanted.empty() && !options.tensor_pattern.empty()) {
    const auto nearest = nearest_names(options.tensor_pattern, names, 1);
    fail(path.string(), "no tensor matches '{}'; {}", options.tensor_pattern,
         nearest.empty() ? "there are no tensors"
                         : fmt::format("the nearest name is {}", nearest.front()));
  }
  const auto known = meanings(forms);
  ValuesByTensor values;
  if (options.values) {
    values = read_all(wanted, known, options);
    check_values(set, forms, values, findings);
    check_experts(set, forms, values, findings);
  }
  report.rows = make_rows(wanted, !options.tensor_pattern.empty(), known, values);
  report.findings = findings.list();
  return report;
}

}  // namespace moeref
