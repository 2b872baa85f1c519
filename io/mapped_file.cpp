#include "io/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "quant/error.hpp"

namespace moeref {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

/// What a path names, where that is not a regular file.
const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "not a regular file";
}

[[noreturn]] void fail_to_open(const std::filesystem::path& path, int error) {
  const std::string name = path.string();
  std::error_code ignored;
  switch (error) {
    case ENOENT:
      if (name.empty()) fail("file", "no name given; name a file");
      if (std::filesystem::is_symlink(path, ignored)) {
        fail(name, "symbolic link to a file that does not exist; restore the file or the link");
      }
      fail(name, "no such file; check the path");
    case ENOTDIR:
      fail(name, "a part of the path is a file, not a folder; check the path");
    case EACCES:
    case EPERM:
      fail(name, "not readable ({}); change its permissions or its folder's", reason(error));
    case ENXIO:  // what opening a socket gives
      fail(name, "not a regular file; name a file on disk");
    default:
      fail(name, "cannot be opened: {}", reason(error));
  }
}

}  // namespace

Mapping::Mapping(Mapping&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

InputFile::InputFile(std::filesystem::path path) : path_(std::move(path)) {
  struct stat status = {};
  // Looked at before it is opened: opening a device or FIFO may have effects of its own.
  if (::stat(path_.c_str(), &status) != 0) fail_to_open(path_, errno);
  if (!S_ISREG(status.st_mode)) {
    fail(path_.string(), "is {}; name a file on disk", kind_of(status.st_mode));
  }
  do {
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) fail_to_open(path_, errno);
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    fail(path_.string(), "is {}; name a file on disk", kind_of(status.st_mode));
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

InputFile::~InputFile() { ::close(descriptor_); }

std::string InputFile::read(std::uint64_t offset, std::size_t count) const {
  std::string text(count, '\0');
  // Without this, read-ahead would fetch the pages that follow. A file system that knows no advice
  // is no error.
  (void)::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_RANDOM);
  for (std::size_t done = 0; done < count;) {
    const ::ssize_t got =
        ::pread(descriptor_, text.data() + done, count - done, static_cast<::off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path_.string(), "cannot be read: {}", reason(errno));
    if (got == 0) fail(path_.string(), "became shorter while it was read; try again");
    done += static_cast<std::size_t>(got);
  }
  (void)::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_NORMAL);
  return text;
}

Mapping InputFile::map() const {
  const auto length = static_cast<std::size_t>(size_);
  void* address = ::mmap(nullptr, length, PROT_READ, MAP_PRIVATE, descriptor_, 0);
  if (address == MAP_FAILED) {
    fail(path_.string(), "{} bytes cannot be mapped into memory: {}", size_, reason(errno));
  }
  return Mapping({static_cast<const std::byte*>(address), length});
}

}  // namespace moeref
