// Gradients: blocks of keys go to the threads, and each query is summed over them in their order.
#include <algorithm>
#include <atomic>
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

// Whether heads add to the same gradient of a bias.
bool shares_bias(const Problem& p, const Gradients& asked) {
  std::vector<int64_t> starts = asked.bias.batch;
  std::sort(starts.begin(), starts.end());
  bool twice = std::adjacent_find(starts.begin(), starts.end()) != starts.end();
  return asked.bias.data && (twice || (p.heads > 1 && asked.bias.head == 0));
}

// Who works on what, and who waits for whom. What a query gets is summed over the blocks of its
// head, and a bias that heads share is summed over the heads: in their order, so that the bits are
// the same for any number of threads. Who is waited for was begun earlier, by another thread.
struct Schedule {
  int64_t heads, size, blocks;
  bool alone;   // all blocks of a head are one thread's
  bool chains;  // heads wait for the head before them
  bool whole;   // until it is through with a block: groups of rows add to the same places

  Schedule(const Problem& p, const Gradients& asked, int threads)
      : heads(p.batch * p.kv_heads),
        alone(heads % threads == 0 || heads >= 4 * threads),
        chains(shares_bias(p, asked)),
        whole(asked.bias.row == 0 || (asked.bias.head == 0 && p.heads > p.kv_heads)) {
    // Keys that share a bias would have to wait as well.
    if (asked.bias.data && asked.bias.column == 0) alone = whole = true;
    size = block_keys(p, alone ? 1 : threads);
    blocks = (p.keys + size - 1) / size;
  }
  bool waits() const { return chains || !alone; }
};

// How far each block has come.
class Turns {
 public:
  explicit Turns(int64_t blocks) : done_(static_cast<size_t>(blocks)) {}

  bool wait(int64_t block, int64_t group) const {
    const std::atomic<int64_t>& done = done_[static_cast<size_t>(block)];
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
  double work = 2.5 * static_cast<double>(p.batch * p.heads * p.rows) *
                static_cast<double>(p.keys * (p.width + p.value_width));
  if (work < 2e5) threads = 1;
  const Schedule plan(p, asked, threads);
  size_t sums = static_cast<size_t>(groups * table.unit * p.width * (p.wide() ? 8 : 4));
  struct Scratches {
    Scratch each[2], sums;
  };
  std::vector<Scratches> scratch(static_cast<size_t>(threads));
  Scratch shared;
  char* all_sums = plan.alone ? nullptr : shared.get(sums * static_cast<size_t>(plan.heads));
  Turns turns(plan.waits() ? plan.heads * plan.blocks : 0);
  auto back = [&](int64_t item, Scratch* two, char* query_sums) {
    int64_t head = item / plan.blocks, block = item % plan.blocks, first = block * plan.size;
    auto turn = [&](int64_t group) {
      if (!plan.alone && block > 0 && !turns.wait(item - 1, group)) return false;
      if (!plan.chains || head == 0) return true;
      int64_t before = plan.whole ? head * plan.blocks - 1 : item - plan.blocks;
      return turns.wait(before, plan.whole ? groups - 1 : group);
    };
    auto done = [&](int64_t group) {
      if (plan.waits()) turns.done(item, group);
    };
    table.back(p, asked,
               {head / p.kv_heads, head % p.kv_heads, first, std::min(plan.size, p.keys - first),
                block == 0, block == plan.blocks - 1, query_sums, turn, done},
               two);
  };
  return parallel(
      plan.alone ? plan.heads : plan.heads * plan.blocks, threads,
      [&](int64_t item, int worker) {
        Scratches& own = scratch[static_cast<size_t>(worker)];
        if (!plan.alone)
          return back(item, own.each, all_sums + item / plan.blocks * static_cast<int64_t>(sums));
        char* head_sums = plan.blocks > 1 ? own.sums.get(sums) : nullptr;
        for (int64_t block = 0; block < plan.blocks && !stopping(); ++block)
          back(item * plan.blocks + block, own.each, head_sums);
      },
      interrupted);
}

}  // namespace chumoku
