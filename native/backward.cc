// Gradients: blocks of keys go to the threads, and each query is summed over them in their order.
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "attention.h"
#include "pool.h"
#include "tile.h"

namespace chumoku {
namespace {

// Keys, values and the sums for them that a block may hold: they stay in the second cache.
constexpr int64_t kHeldBytes = int64_t{320} << 10;
constexpr int64_t kPullRows = 256;  // of one item

int64_t block_keys(const Problem& p, int threads) {
  int64_t bytes = 2 * (p.wide() ? 8 : 4) * (p.width + p.value_width);
  int64_t most = std::max<int64_t>(kTile, kHeldBytes / bytes / kTile * kTile);
  int64_t heads = p.batch * p.kv_heads;
  int64_t wanted = threads == 1 ? 1 : (2 * threads + heads - 1) / heads;
  int64_t pieces = std::max((p.keys + most - 1) / most, std::min(wanted, p.keys / kTile));
  pieces = std::max<int64_t>(1, pieces);
  return ((p.keys + pieces - 1) / pieces + kTile - 1) / kTile * kTile;
}

// How far each block has come. What a query gets is summed block by block, so a block waits at each
// group until the one before it is done there; that one was begun earlier, by another thread.
class Turns {
 public:
  Turns(int64_t blocks, bool waits) : waits_(waits), done_(static_cast<size_t>(blocks)) {}

  bool wait(int64_t before, int64_t group) const {
    if (!waits_) return true;
    const std::atomic<int64_t>& done = done_[static_cast<size_t>(before)];
    for (int i = 0; done.load(std::memory_order_acquire) <= group; ++i) {
      if (stopping()) return false;
      if (i > 64) std::this_thread::yield();
    }
    return true;
  }
  void done(int64_t block, int64_t group) {
    if (waits_) done_[static_cast<size_t>(block)].store(group + 1, std::memory_order_release);
  }

 private:
  bool waits_;
  std::vector<std::atomic<int64_t>> done_;
};

}  // namespace

bool backward(const Problem& p, const Gradients& asked, int threads,
              const Interrupted& interrupted) {
  const Table& table = table_of(p);
  int64_t rows = p.heads / p.kv_heads * p.rows, groups = (rows + table.unit - 1) / table.unit;
  int64_t all_rows = p.batch * p.heads * p.rows, heads = p.batch * p.kv_heads;
  double work = 2.5 * static_cast<double>(all_rows * p.keys) *
                static_cast<double>(p.width + p.value_width);
  if (work < 2e5) threads = 1;
  std::vector<Scratch> scratch(static_cast<size_t>(2 * threads));
  auto own = [&](int worker) { return &scratch[static_cast<size_t>(2 * worker)]; };
  if (!parallel(
          (all_rows + kPullRows - 1) / kPullRows, threads,
          [&](int64_t i, int worker) {
            int64_t first = i * kPullRows;
            table.pulls(p, asked, first, std::min(kPullRows, all_rows - first), *own(worker));
          },
          interrupted))
    return false;
  int64_t size = block_keys(p, threads), blocks = (p.keys + size - 1) / size;
  size_t sums = static_cast<size_t>(groups * table.unit * p.width * (p.wide() ? 8 : 4));
  Scratch memory;
  char* all_sums = blocks > 1 ? memory.get(sums * static_cast<size_t>(heads)) : nullptr;
  Turns turns(heads * blocks, blocks > 1);
  return parallel(
      heads * blocks, threads,
      [&](int64_t item, int worker) {
        int64_t head = item / blocks, first = item % blocks * size;
        KeyBlock block{head / p.kv_heads,
                       head % p.kv_heads,
                       first,
                       std::min(size, p.keys - first),
                       first == 0,
                       first + size >= p.keys,
                       all_sums + (all_sums ? static_cast<size_t>(head) * sums : 0),
                       [&](int64_t group) { return first == 0 || turns.wait(item - 1, group); },
                       [&](int64_t group) { turns.done(item, group); }};
        table.back(p, asked, block, own(worker));
      },
      interrupted);
}

}  // namespace chumoku
