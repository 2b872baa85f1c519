#include "io/atomic_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "quant/error.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kPendingBytes = std::size_t{1} << 16;
constexpr int kMaxLinks = 40;  // as the kernel

std::string reason(int error) { return std::generic_category().message(error); }

/// The file behind symbolic links, which need not exist: renaming onto the link would replace the
/// link.
fs::path follow_links(const fs::path& path) {
  fs::path target = path;
  std::error_code error;
  for (int i = 0; i < kMaxLinks && fs::is_symlink(target, error); ++i) {
    const fs::path next = fs::read_symlink(target, error);
    if (error) break;
    target = target.parent_path() / next;  // an absolute `next` replaces all
  }
  return target;
}

[[noreturn]] void fail_for_folder(const std::string& subject, const fs::path& folder, int error) {
  fail(subject, "folder '{}' is not writable ({}); change its permissions or choose another",
       folder.string(), reason(error));
}

/// Throws unless `target` is absent or a regular file, in a folder.
void check_target(const std::string& subject, const fs::path& target, const fs::path& folder) {
  if (target.empty()) fail("output file", "no name given; name a file");
  struct stat status = {};
  if (::stat(folder.c_str(), &status) != 0) {
    if (errno == ENOENT) fail(subject, "folder '{}' does not exist; create it", folder.string());
    if (errno != ENOTDIR) fail_for_folder(subject, folder, errno);
    status.st_mode = 0;  // a file stands where a folder should
  }
  if (!S_ISDIR(status.st_mode)) {
    fail(subject, "'{}' is not a folder; name a file in a folder", folder.string());
  }
  if (!target.has_filename()) fail(subject, "names a folder; name a file in it");
  if (::stat(target.c_str(), &status) == 0) {
    if (S_ISDIR(status.st_mode)) fail(subject, "is a folder; name a file in it");
    if (!S_ISREG(status.st_mode)) {
      fail(subject, "exists and is not a regular file; choose another name");
    }
  } else if (errno == EACCES) {
    fail_for_folder(subject, folder, errno);
  } else if (errno != ENOENT) {
    fail(subject, "cannot be written: {}", reason(errno));
  }
}

/// Bytes that an ordinary user may still write, or nothing where the file system does not tell.
std::optional<std::uint64_t> free_bytes(const fs::path& folder) {
  struct statvfs status = {};
  if (::statvfs(folder.c_str(), &status) != 0 || status.f_blocks == 0) return std::nullopt;
  return std::uint64_t{status.f_bavail} * status.f_frsize;
}

/// A name that no other process and no other file of this one uses; short, since the target's own
/// may be at the limit.
fs::path temporary_name() {
  static std::atomic<std::uint64_t> count{0};
  return fmt::format(".moeref-{}-{}.tmp", ::getpid(), count.fetch_add(1));
}

/// Makes the rename itself last. Some file systems cannot sync a folder, and a folder may be
/// writable but not readable.
void sync_folder(const std::string& subject, const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  int result = 0;
  do {
    result = ::fsync(descriptor);
  } while (result != 0 && errno == EINTR);
  const int error = result != 0 ? errno : 0;
  ::close(descriptor);
  if (error == EIO)
    fail(subject, "was written, but its folder could not be synced: {}", reason(error));
}

}  // namespace

AtomicFile::AtomicFile(fs::path path, std::uint64_t size)
    : path_(std::move(path)), target_(follow_links(path_)), size_(size) {
  const std::string subject = path_.string();
  folder_ = target_.has_parent_path() ? target_.parent_path() : fs::path(".");
  check_target(subject, target_, folder_);
  do {
    temporary_ = folder_ / temporary_name();
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && (errno == EEXIST || errno == EINTR));
  if (descriptor_ < 0) {
    const int error = errno;
    temporary_.clear();
    if (error == ENOSPC || error == EDQUOT) fail_to_write(error);
    fail_for_folder(subject, folder_, error);
  }
  reserve();
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::reserve() {
  // Asked first, so that a file that cannot fit does not fill the disk, for others too, before it
  // is refused.
  if (const auto available = free_bytes(folder_); available && size_ > *available) {
    fail_to_write(ENOSPC);
  }
  if (size_ == 0) return;
  int error = 0;
  do {
    error = ::posix_fallocate(descriptor_, 0, static_cast<::off_t>(size_));
  } while (error == EINTR);
  const bool is_supported = error != EOPNOTSUPP && error != EINVAL;
  if (error != 0 && is_supported) fail_to_write(error);
}

void AtomicFile::append(std::span<const std::byte> bytes) {
  if (descriptor_ < 0) fail(path_.string(), "nothing can be appended after a failure or commit");
  if (bytes.size() > size_ - appended_) {
    const std::uint64_t excess = bytes.size() - (size_ - appended_);
    discard();
    fail(path_.string(), "{} bytes more than the {} declared; append what was declared", excess,
         size_);
  }
  appended_ += bytes.size();
  if (pending_.size() + bytes.size() <= kPendingBytes) {
    pending_.insert(pending_.end(), bytes.begin(), bytes.end());
    return;
  }
  flush();
  write_all(bytes);
}

void AtomicFile::flush() {
  write_all(pending_);
  pending_.clear();
}

void AtomicFile::write_all(std::span<const std::byte> bytes) {
  constexpr std::size_t kMaxWrite = std::size_t{1} << 30;  // some systems refuse 2^31 and more
  while (!bytes.empty()) {
    const ::ssize_t written = ::write(descriptor_, bytes.data(), std::min(bytes.size(), kMaxWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail_to_write(written < 0 ? errno : EIO);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicFile::commit() {
  const std::string subject = path_.string();
  if (descriptor_ < 0) fail(subject, "nothing can be committed after a failure or commit");
  if (appended_ != size_) {
    discard();
    fail(subject, "{} of {} bytes were never appended", size_ - appended_, size_);
  }
  flush();
  int result = 0;
  do {
    result = ::fsync(descriptor_);
  } while (result != 0 && errno == EINTR);
  if (result != 0) fail_to_write(errno);
  if (::close(std::exchange(descriptor_, -1)) != 0 && errno != EINTR) fail_to_write(errno);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
    const int error = errno;
    discard();
    fail(subject, "the finished file cannot be renamed into place: {}", reason(error));
  }
  temporary_.clear();
  sync_folder(subject, folder_);
}

void AtomicFile::discard() noexcept {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

void AtomicFile::fail_to_write(int error) {
  const std::string subject = path_.string();
  const std::optional<std::uint64_t> available = free_bytes(folder_);
  discard();
  switch (error) {
    case ENOSPC:
      fail(subject,
           "disk full: needs {} bytes, {} free in '{}'; make room or choose another folder", size_,
           available ? std::to_string(*available) : "unknown how many are", folder_.string());
    case EDQUOT:
      fail(subject, "disk quota exceeded: needs {} bytes; make room or choose another folder",
           size_);
    case EFBIG:
      fail(subject,
           "needs {} bytes, more than a file may have here; raise the limit (ulimit -f) or choose "
           "another "
           "file system",
           size_);
    default:
      fail(subject, "cannot be written: {}", reason(error));
  }
}

void write_file_atomically(const fs::path& path, std::string_view text) {
  AtomicFile file(path, text.size());
  file.append(std::as_bytes(std::span(text)));
  file.commit();
}

}  // namespace moeref
