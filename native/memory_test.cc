// Memory for results: kept for the next of the size, bounded, whole after a fork.
#include "memory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "check.h"

using namespace chumoku;

#if defined(__SANITIZE_THREAD__)
// The test forks on purpose.
extern "C" const char* __tsan_default_options() { return "die_after_fork=0"; }
#endif

namespace {

constexpr size_t kMega = size_t{1} << 20;

void returned_and_taken_again() {
  char* first = take(kMega);
  char* second = take(kMega);
  CHECK(first != second);
  give(first, kMega);
  CHECK(idle_bytes() == kMega);
  char* other = take(2 * kMega);
  CHECK(other != first);
  CHECK(take(kMega - 1) == first);  // rounded up to pages
  CHECK(idle_bytes() == 0);
  std::memset(first, 1, kMega);
  std::memset(second, 2, kMega);
  std::memset(other, 3, 2 * kMega);
  CHECK(first[0] == 1 && first[kMega - 1] == 1 && second[0] == 2 && second[kMega - 1] == 2);
  give(first, kMega - 1);
  give(second, kMega);
  give(other, 2 * kMega);
  CHECK(idle_bytes() == 4 * kMega);
}

void large_ones_begin_a_huge_page() {
  char* block = take(3 * kMega);
  CHECK(reinterpret_cast<uintptr_t>(block) % (2 * kMega) == 0);
  std::memset(block, 1, 3 * kMega);
  give(block, 3 * kMega);
}

void what_nobody_wants_is_dropped() {
  give(take(5 * kMega), 5 * kMega);
  CHECK(idle_bytes() >= 6 * kMega);
  for (int i = 0; i < 300; ++i) give(take(kMega), kMega);
  CHECK(idle_bytes() == kMega);
}

void no_more_than_so_much_lies_idle() {
  std::vector<char*> blocks;
  for (int i = 0; i < 40; ++i) blocks.push_back(take(16 * kMega));
  for (char* block : blocks) give(block, 16 * kMega);
  CHECK(idle_bytes() == 512 * kMega);
  give(take(1024 * kMega), 1024 * kMega);  // more than all that may lie idle
  CHECK(idle_bytes() == 512 * kMega);
}

void too_much_is_refused() {
  give(take(kMega), kMega);
  for (size_t bytes : {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 4}) {
    bool refused = false;
    try {
      take(bytes);
    } catch (const std::bad_alloc&) {
      refused = true;
    }
    CHECK(refused);
  }
  give(take(kMega), kMega);
}

void many_threads() {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t, &wrong] {
      for (int i = 0; i < 200; ++i) {
        size_t bytes = kMega / 4 * static_cast<size_t>(1 + i % 3);
        char* block = take(bytes);
        std::memset(block, t + 1, bytes);
        wrong += block[0] != t + 1 || block[bytes - 1] != t + 1;
        give(block, bytes);
      }
    });
  // A child that is forked meanwhile has the lock to itself.
  for (int i = 0; i < 5; ++i) {
    pid_t pid = fork();
    if (pid == 0) {
      alarm(8);
      give(take(kMega), kMega);
      _exit(0);
    }
    int status = 1;
    waitpid(pid, &status, 0);
    CHECK(status == 0);
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

}  // namespace

int main() {
  returned_and_taken_again();
  large_ones_begin_a_huge_page();
  what_nobody_wants_is_dropped();
  no_more_than_so_much_lies_idle();
  too_much_is_refused();
  many_threads();
  return test::report("memory");
}
