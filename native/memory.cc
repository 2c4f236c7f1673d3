#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

// A page that is touched first costs up to 2 us, as much as the attention that fills it, and
// malloc gives large results back to the kernel each time they are freed, or not, as it happens.

namespace chumoku {
namespace {

constexpr size_t kHuge = size_t{2} << 20;
// Idle blocks hold no more than this, and none stays longer than so many results.
constexpr size_t kMostIdle = size_t{512} << 20;
constexpr uint64_t kMostAge = 256;

struct Block {
  char* start;
  size_t bytes;
  uint64_t since;
};

struct Shelf {
  std::mutex lock;
  std::vector<Block> idle;  // oldest first
  size_t bytes = 0;
  uint64_t taken = 0;

  Shelf() {
    pthread_atfork([] { shelf().lock.lock(); }, [] { shelf().lock.unlock(); },
                   [] { shelf().lock.unlock(); });
  }

  static Shelf& shelf() {
    static Shelf* one = new Shelf;  // never destroyed: arrays may outlive everything
    return *one;
  }

  Block remove(size_t place) {
    Block block = idle[place];
    idle.erase(idle.begin() + static_cast<int64_t>(place));
    bytes -= block.bytes;
    return block;
  }

  void drop_oldest() {
    Block block = remove(0);
    munmap(block.start, block.bytes);
  }

  bool drop_all() {
    bool any = !idle.empty();
    while (!idle.empty()) drop_oldest();
    return any;
  }
};

// Whole pages, whatever their size here.
size_t rounded(size_t bytes) {
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return std::max(page, (bytes + page - 1) / page * page);
}

// Fresh memory, where huge pages fit, at the begin of one; null when there is none.
char* map(size_t bytes) {
  size_t more = bytes < kHuge ? 0 : kHuge;
  void* found =
      mmap(nullptr, bytes + more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* start = static_cast<char*>(found);
  if (more == 0) return start;
  size_t before = (kHuge - reinterpret_cast<uintptr_t>(start) % kHuge) % kHuge;
  if (before > 0) munmap(start, before);
  if (more > before) munmap(start + before + bytes, more - before);
#ifdef MADV_HUGEPAGE
  madvise(start + before, bytes / kHuge * kHuge, MADV_HUGEPAGE);  // no more than is asked for
#endif
  return start + before;
}

}  // namespace

char* take(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  bytes = rounded(bytes);
  Shelf& shelf = Shelf::shelf();
  std::lock_guard<std::mutex> locked(shelf.lock);
  ++shelf.taken;
  while (!shelf.idle.empty() && shelf.idle[0].since + kMostAge < shelf.taken) shelf.drop_oldest();
  // The one that was given last is the likeliest to lie in a cache.
  for (size_t place = shelf.idle.size(); place-- > 0;)
    if (shelf.idle[place].bytes == bytes) return shelf.remove(place).start;
  char* fresh = map(bytes);
  if (!fresh && shelf.drop_all()) fresh = map(bytes);
  if (!fresh) throw std::bad_alloc();
  return fresh;
}

void give(char* block, size_t bytes) {
  bytes = rounded(bytes);
  if (bytes > kMostIdle) {
    munmap(block, bytes);
    return;
  }
#ifdef MADV_FREE
  madvise(block, bytes, MADV_FREE);
#endif
  Shelf& shelf = Shelf::shelf();
  std::lock_guard<std::mutex> locked(shelf.lock);
  shelf.idle.push_back({block, bytes, shelf.taken});
  shelf.bytes += bytes;
  while (shelf.bytes > kMostIdle) shelf.drop_oldest();
}

size_t idle_bytes() {
  Shelf& shelf = Shelf::shelf();
  std::lock_guard<std::mutex> locked(shelf.lock);
  return shelf.bytes;
}

}  // namespace chumoku
