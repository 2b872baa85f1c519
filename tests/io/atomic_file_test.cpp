#include "io/atomic_file.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "io/safetensors.hpp"
#include "quant/error.hpp"
#include "tests/io/safetensors_text.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

using testing::read_bytes;
using testing::refusal_of;
using testing::TempFolder;
using testing::write_bytes;
namespace fs = std::filesystem;

using Strings = std::vector<std::string>;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// The same from a SafetensorsWriter and, if the tensors do not matter, from write_file_atomically.
std::string refusal_to_write(const fs::path& path, std::vector<TensorSpec> tensors) {
  return refusal_of(path, [&] { SafetensorsWriter(path, std::move(tensors), {}); });
}

std::string refusal_to_write(const fs::path& path) {
  const std::string tensors = refusal_to_write(path, {{"w", DType::u8, {4}}});
  EXPECT_EQ(refusal_of(path, [&] { write_file_atomically(path, "text"); }), tensors);
  return tensors;
}

TEST(AtomicFile, WritesWithTheUsersPermissions) {
  const TempFolder folder;
  const ::mode_t mask = ::umask(027);
  write_file_atomically(folder / "a", "x");
  ::umask(mask);
  struct stat status = {};
  ASSERT_EQ(::stat((folder / "a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0640U);
}

TEST(AtomicFile, SaysWhyATargetCannotBeWritten) {
  const TempFolder folder;
  const std::string top = folder.path().string();
  EXPECT_EQ(refusal_to_write(folder / "no" / "a"),
            fmt::format("folder '{}/no' does not exist; create it", top));
  write_bytes(folder / "file", "x");
  EXPECT_EQ(refusal_to_write(folder / "file" / "a"),
            fmt::format("'{}/file' is not a folder; name a file in a folder", top));
  EXPECT_EQ(refusal_to_write(folder / "file" / "b" / "a"),
            fmt::format("'{}/file/b' is not a folder; name a file in a folder", top));
  EXPECT_EQ(refusal_to_write(folder.path()), "is a folder; name a file in it");
  EXPECT_EQ(refusal_to_write(folder / ""), "names a folder; name a file in it");
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(refusal_to_write(folder / "fifo"),
            "exists and is not a regular file; choose another name");
  EXPECT_EQ(refusal_to_write("/dev/null"), "exists and is not a regular file; choose another name");
  EXPECT_EQ(refusal_to_write(folder / std::string(300, 'x')),
            "cannot be written: File name too long");
  EXPECT_THROW(write_file_atomically("", "x"), Error);
  EXPECT_EQ(folder.names(), (Strings{"fifo", "file"}));
}

TEST(AtomicFile, TakesTheLongestFileName) {
  const TempFolder folder;
  const std::string name(255, 'x');
  write_file_atomically(folder / name, "text");
  EXPECT_EQ(read_bytes(folder / name), "text");
}

TEST(AtomicFile, SaysThatAFolderIsNotWritable) {
  const TempFolder folder;
  fs::permissions(folder.path(), fs::perms::owner_read | fs::perms::owner_exec |
                                     fs::perms::group_read | fs::perms::group_exec |
                                     fs::perms::others_read | fs::perms::others_exec);
  const bool is_root = ::geteuid() == 0;  // may write anywhere
  ASSERT_EQ(is_root ? ::seteuid(65534) : 0, 0);
  const std::string message = refusal_to_write(folder / "a");
  ASSERT_EQ(is_root ? ::seteuid(0) : 0, 0);
  fs::permissions(folder.path(), fs::perms::owner_read | fs::perms::group_read);
  ASSERT_EQ(is_root ? ::seteuid(65534) : 0, 0);
  const std::string message_if_closed = refusal_to_write(folder / "a");
  ASSERT_EQ(is_root ? ::seteuid(0) : 0, 0);
  const std::string expected = fmt::format(
      "folder '{}' is not writable (Permission denied); change its permissions or choose another",
      folder.path().string());
  EXPECT_EQ(message, expected);
  EXPECT_EQ(message_if_closed, expected);
}

TEST(AtomicFile, FollowsSymbolicLinks) {
  const TempFolder folder;
  fs::create_directory(folder / "real");
  write_bytes(folder / "real" / "a", "old");
  fs::create_symlink("real/a", folder / "link");
  fs::create_symlink(folder / "link", folder / "link2");
  fs::create_symlink("real/new", folder / "dangling");
  write_file_atomically(folder / "link2", "new");
  write_file_atomically(folder / "dangling", "made");
  EXPECT_EQ(read_bytes(folder / "real" / "a"), "new");
  EXPECT_EQ(read_bytes(folder / "real" / "new"), "made");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_TRUE(fs::is_symlink(folder / "dangling"));
  EXPECT_EQ(folder.names(), (Strings{"dangling", "link", "link2", "real"}));
  fs::create_symlink("loop", folder / "loop");
  EXPECT_TRUE(refusal_to_write(folder / "loop").starts_with("cannot be written: "));
}

TEST(AtomicFile, WritesIntoTheCurrentFolder) {
  const TempFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  write_file_atomically("a", "text");
  fs::current_path(before);
  EXPECT_EQ(folder.names(), Strings{"a"});
  EXPECT_EQ(read_bytes(folder / "a"), "text");
}

TEST(AtomicFile, RefusesAFileThatDoesNotFitOnTheDisk) {
  const TempFolder folder;
  const fs::path path = folder / "a";
  write_bytes(path, "old");
  const std::string message = refusal_to_write(path, {{"x", DType::u8, {1LL << 59}}});
  const std::string needs = fmt::format("disk full: needs {} bytes, ", (1LL << 59) + 8 + 88);
  EXPECT_TRUE(message.starts_with(needs)) << message;
  EXPECT_TRUE(message.ends_with(
      fmt::format(" free in '{}'; make room or choose another folder", folder.path().string())))
      << message;
  EXPECT_EQ(folder.names(), Strings{"a"});
  EXPECT_EQ(read_bytes(path), "old");
}

/// Files may grow to `bytes` only, as on a disk that is full.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(::rlim_t bytes) {
    handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const struct rlimit limit = {bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  struct rlimit before_ = {};
  void (*handler_)(int) = nullptr;
};

TEST(AtomicFile, RefusesAFileAboveTheSizeLimitBeforeItIsWritten) {
  const TempFolder folder;
  const fs::path path = folder / "a";
  const FileSizeLimit limit(4096);
  EXPECT_EQ(refusal_to_write(path, {{"x", DType::u8, {1 << 20}}}),
            "needs 1048656 bytes, more than a file may have here; raise the limit (ulimit -f) or "
            "choose another "
            "file system");
  EXPECT_EQ(folder.names(), Strings{});
  write_file_atomically(path, std::string(4096, 'x'));
  EXPECT_EQ(read_bytes(path).size(), 4096U);
}

TEST(AtomicFile, LeavesNothingBehindWhenAWriteFails) {
  const TempFolder folder;
  const fs::path path = folder / "a";
  write_bytes(path, "old");
  const std::string data(1 << 20, 'x');
  SafetensorsWriter writer(path, {{"x", DType::u8, {1 << 20}}}, {});  // the space is reserved
  const FileSizeLimit limit(100'000);
  // The first write is cut short at the limit, the next one refused.
  EXPECT_EQ(refusal_of(path, [&] { writer.append(bytes_of(data)); }),
            "needs 1048656 bytes, more than a file may have here; raise the limit (ulimit -f) or "
            "choose another "
            "file system");
  EXPECT_EQ(folder.names(), Strings{"a"});
  EXPECT_EQ(refusal_of(path, [&] { writer.commit(); }).substr(0, 7), "'x': no");
  EXPECT_EQ(read_bytes(path), "old");
}

TEST(AtomicFile, LeavesNothingBehindWhenTheRenameFails) {
  const TempFolder folder;
  const fs::path path = folder / "a";
  SafetensorsWriter writer(path, {}, {});
  fs::create_directory(path);  // takes the name meanwhile
  EXPECT_EQ(refusal_of(path, [&] { writer.commit(); }),
            "the finished file cannot be renamed into place: Is a directory");
  EXPECT_EQ(folder.names(), Strings{"a"});
}

TEST(AtomicFile, KeepsApartWritersOfOneTarget) {
  const TempFolder folder;
  const fs::path path = folder / "a";
  std::set<std::string> texts;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    const std::string text(static_cast<std::size_t>(100'000 + i), static_cast<char>('a' + i));
    texts.insert(text);
    threads.emplace_back([path, text] {
      for (int round = 0; round < 10; ++round) write_file_atomically(path, text);
    });
  }
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(!fs::exists(path) || texts.contains(read_bytes(path)));
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(texts.contains(read_bytes(path)));
  EXPECT_EQ(folder.names(), Strings{"a"});
}

TEST(AtomicFile, PassesOverStaleTemporaryFiles) {
  const TempFolder folder;
  Strings stale;
  {
    // Another process of the same number may have died here: the next names are taken.
    const AtomicFile current(folder / "a", 0);
    const std::string name = folder.names().at(0);
    const std::size_t dash = name.rfind('-');
    const int number = std::stoi(name.substr(dash + 1));
    for (int i = 1; i <= 20; ++i) {
      stale.push_back(fmt::format("{}{}.tmp", name.substr(0, dash + 1), number + i));
      write_bytes(folder / stale.back(), "stale");
    }
  }
  write_file_atomically(folder / "a", "text");
  EXPECT_EQ(read_bytes(folder / "a"), "text");
  for (const std::string& name : stale) EXPECT_EQ(read_bytes(folder / name), "stale");
  EXPECT_EQ(folder.names().size(), 21U);
}

TEST(AtomicFile, WritesEmptyAndLongText) {
  const TempFolder folder;
  for (const std::size_t size : {0UL, 1UL, 65'536UL, 65'537UL, 3'000'000UL}) {
    const std::string text(size, 'x');
    write_file_atomically(folder / "a.json", text);
    EXPECT_EQ(read_bytes(folder / "a.json"), text);
  }
  EXPECT_EQ(folder.names(), Strings{"a.json"});
}

}  // namespace
}  // namespace moeref
