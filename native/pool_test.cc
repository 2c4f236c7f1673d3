// The pool: every item once, failures and interrupts stop it, a forked child works on.
#include "pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"

using namespace chumoku;

namespace {

bool never() { return false; }

bool each_once(int64_t items, int threads) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(items));
  bool fine = parallel(
      items, threads,
      [&](int64_t item, int worker) {
        if (worker >= 0 && worker < threads) ++seen[static_cast<size_t>(item)];
      },
      never);
  for (auto& count : seen) fine = fine && count == 1;
  return fine;
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8})
    for (int64_t items : {0, 1, 2, 7, 1000}) CHECK(each_once(items, threads));

  bool thrown = false;
  try {
    parallel(
        100, 4,
        [](int64_t item, int) {
          if (item == 37) throw std::runtime_error("37");
        },
        never);
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  CHECK(thrown);
  CHECK(each_once(100, 4));

  std::atomic<int64_t> done{0};
  CHECK(!parallel(int64_t{1} << 40, 4, [&](int64_t, int) { ++done; }, [] { return true; }));
  CHECK(done > 0);
  CHECK(!stopping());

  // A long body sees that it is to stop.
  CHECK(!parallel(
      2, 2,
      [](int64_t, int) {
        while (!stopping()) std::this_thread::yield();
      },
      [] { return true; }));

  // Calls from many threads at once, and calls inside a call, all end.
  std::vector<std::thread> callers;
  std::atomic<int> right{0};
  for (int n = 0; n < 8; ++n)
    callers.emplace_back([&] {
      for (int k = 0; k < 50; ++k) right += each_once(64, 3);
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(right == 8 * 50);
  std::atomic<int> inner{0};
  parallel(4, 2, [&](int64_t, int) { inner += each_once(16, 2); }, never);
  CHECK(inner == 4);

  pid_t child = fork();
  if (child == 0) _exit(each_once(100, 4) ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);

  set_threads(3);
  CHECK(threads() == 3);
  return test::report("pool");
}
