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
constexpr int64_t kHeldBytes = int64_t{512} << 10;

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
  explicit Turns(int64_t blocks) : done_(static_cast<size_t>(blocks)) {}

  bool wait(int64_t before, int64_t group) const {
    const std::atomic<int64_t>& done = done_[static_cast<size_t>(before)];
    for (int i = 0; done.load(std::memory_order_acquire) <= group; ++i) {
      if (stopping()) return false;
      if (i > 64) std::this_thread::yield();
    }
    return true;
  }
  void done(int64_t block, int64_t group) {
    done_[static_cast<size_t>(block)].store(group + 1, std::memory_order_release);
  }

 private:
  std::vector<std::atomic<int64_t>> done_;
};

}  // namespace

bool backward(const Problem& p, const Gradients& asked, int threads,
              const Interrupted& interrupted) {
  const Table& table = table_of(p);
  int64_t rows = p.heads / p.kv_heads * p.rows, groups = (rows + table.unit - 1) / table.unit;
  int64_t heads = p.batch * p.kv_heads;
  double work = 2.5 * static_cast<double>(p.batch * p.heads * p.rows) *
                static_cast<double>(p.keys * (p.width + p.value_width));
  if (work < 2e5) threads = 1;
  // With heads enough for the threads, one takes all blocks of a head; else they follow each other.
  bool alone = heads % threads == 0 || heads >= 4 * threads;
  int64_t size = block_keys(p, alone ? 1 : threads), blocks = (p.keys + size - 1) / size;
  size_t sums = static_cast<size_t>(groups * table.unit * p.width * (p.wide() ? 8 : 4));
  struct Scratches {
    Scratch each[2], sums;
  };
  std::vector<Scratches> scratch(static_cast<size_t>(threads));
  Scratch shared;
  char* all_sums = alone ? nullptr : shared.get(sums * static_cast<size_t>(heads));
  Turns turns(alone ? 0 : heads * blocks);
  auto back = [&](int64_t item, Scratch* two, char* query_sums) {
    int64_t head = item / blocks, first = item % blocks * size;
    KeyBlock block{
        head / p.kv_heads,
        head % p.kv_heads,
        first,
        std::min(size, p.keys - first),
        first == 0,
        first + size >= p.keys,
        query_sums,
        [&](int64_t group) { return alone || first == 0 || turns.wait(item - 1, group); },
        [&](int64_t group) {
          if (!alone) turns.done(item, group);
        }};
    table.back(p, asked, block, two);
  };
  return parallel(
      alone ? heads : heads * blocks, threads,
      [&](int64_t item, int worker) {
        Scratches& own = scratch[static_cast<size_t>(worker)];
        if (!alone)
          return back(item, own.each, all_sums + item / blocks * static_cast<int64_t>(sums));
        char* head_sums = blocks > 1 ? own.sums.get(sums) : nullptr;
        for (int64_t b = 0; b < blocks && !stopping(); ++b)
          back(item * blocks + b, own.each, head_sums);
      },
      interrupted);
}

}  // namespace chumoku
