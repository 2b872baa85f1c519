#include "cli/case_writer.hpp"

#include <map>
#include <string>

namespace moeref::cli {

void CaseWriter::add(const TensorView& tensor) {
  entries_.push_back(
      {{tensor.name, tensor.dtype, tensor.shape},
       [bytes = tensor.bytes](const std::function<void(std::span<const std::byte>)>& sink) {
         sink(bytes);
       }});
}

void CaseWriter::add(TensorSpec spec, Producer produce) {
  entries_.push_back({std::move(spec), std::move(produce)});
}

void CaseWriter::write(const std::filesystem::path& path,
                       const SafetensorsWriter::Metadata& metadata) const {
  std::vector<TensorSpec> specs;
  std::map<std::string, const Producer*> producers;
  for (const Entry& entry : entries_) {
    specs.push_back(entry.spec);
    producers[entry.spec.name] = &entry.produce;
  }
  SafetensorsWriter writer(path, std::move(specs), metadata);
  for (const TensorSpec& spec : writer.order()) {
    (*producers.at(spec.name))(
        [&writer](std::span<const std::byte> bytes) { writer.append(bytes); });
  }
  writer.commit();
}

}  // namespace moeref::cli
