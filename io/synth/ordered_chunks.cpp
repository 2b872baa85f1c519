#include "io/synth/ordered_chunks.hpp"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace moeref {
namespace {

/// Chunk i lives in slot i % slots from the time a worker starts it until it is taken.
class Window {
 public:
  Window(std::size_t count, std::size_t slots) : count_(count), slots_(slots) {}

  /// The next chunk to make, or `count` when there is nothing left to do. Waits for a free slot.
  std::size_t next_to_make() {
    std::unique_lock lock(mutex_);
    changed_.wait(
        lock, [&] { return stopped_ || started_ == count_ || started_ < taken_ + slots_.size(); });
    return stopped_ ? count_ : started_ == count_ ? count_ : started_++;
  }

  std::vector<std::byte>& bytes(std::size_t chunk) { return slots_[chunk % slots_.size()].bytes; }

  void made(std::size_t chunk, std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    slots_[chunk % slots_.size()].ready = true;
    if (error && !error_) error_ = error;
    changed_.notify_all();
  }

  /// Waits until `chunk` is made. Throws what its making threw.
  void wait_for(std::size_t chunk) {
    std::unique_lock lock(mutex_);
    Slot& slot = slots_[chunk % slots_.size()];
    changed_.wait(lock, [&] { return slot.ready || error_; });
    if (error_) std::rethrow_exception(error_);
    slot.ready = false;
  }

  void taken(std::size_t chunk) {
    const std::lock_guard lock(mutex_);
    taken_ = chunk + 1;
    changed_.notify_all();
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

 private:
  struct Slot {
    std::vector<std::byte> bytes;
    bool ready = false;
  };

  const std::size_t count_;
  std::vector<Slot> slots_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t started_ = 0;
  std::size_t taken_ = 0;
  bool stopped_ = false;
  std::exception_ptr error_;
};

/// Ends and joins the workers however the scope is left.
class Workers {
 public:
  explicit Workers(Window& window) : window_(window) {}
  ~Workers() {
    window_.stop();
    for (std::thread& thread : threads_) thread.join();
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  void start(const std::function<void()>& work) { threads_.emplace_back(work); }

 private:
  Window& window_;
  std::vector<std::thread> threads_;
};

}  // namespace

void make_in_order(std::size_t count, int threads,
                   const std::function<std::size_t(std::size_t)>& size,
                   const std::function<void(std::size_t, std::span<std::byte>)>& make,
                   const std::function<void(std::span<const std::byte>)>& take) {
  const std::size_t all = std::max(1U, std::thread::hardware_concurrency());
  const std::size_t wanted = threads > 0 ? static_cast<std::size_t>(threads) : all;
  const std::size_t workers = std::clamp<std::size_t>(wanted, 1, std::max<std::size_t>(1, count));
  Window window(count, 2 * workers);
  const auto work = [&] {
    for (std::size_t chunk = window.next_to_make(); chunk < count; chunk = window.next_to_make()) {
      std::exception_ptr error;
      try {
        window.bytes(chunk).resize(size(chunk));
        make(chunk, window.bytes(chunk));
      } catch (...) {
        error = std::current_exception();
      }
      window.made(chunk, error);
    }
  };
  Workers pool(window);
  for (std::size_t worker = 0; worker < workers; ++worker) pool.start(work);
  for (std::size_t chunk = 0; chunk < count; ++chunk) {
    window.wait_for(chunk);
    take(window.bytes(chunk));
    window.taken(chunk);
  }
}

}  // namespace moeref
