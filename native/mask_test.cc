// Ranges and words of masks against the rule they stand for, key by key.
#include "mask.h"

#include <vector>

#include "check.h"

using namespace chumoku;

namespace {

constexpr int64_t kQueries = 70, kKeys = 150;

template <class Sees>
void compare(const Mask& mask, const Sees& sees) {
  for (int64_t i = 0; i < kQueries; ++i) {
    Place place{0, 0, i, i};
    Range some = hull(mask, place), all = solid(mask, place);
    for (int64_t first = 0; first < kKeys; first += 37) {
      int64_t count = std::min<int64_t>(kTile, kKeys - first);
      uint64_t bits = word(mask, place, first, count);
      bool right = true;
      for (int64_t j = 0; j < 64; ++j)
        right = right && ((bits >> j) & 1) == (j < count && sees(i, first + j));
      CHECK(right);
    }
    bool held = true, full = true;
    for (int64_t j = 0; j < kKeys; ++j) {
      if (sees(i, j)) held = held && some.start <= j && j < some.stop;
      if (all.start <= j && j < all.stop) full = full && sees(i, j);
    }
    CHECK(held);
    CHECK(full);
  }
}

MaskNode leaf(MaskNode::Kind kind, const int64_t* first, const int64_t* second, int64_t runs) {
  MaskNode node{};
  node.kind = kind;
  node.first = first;
  node.second = second;
  node.entries = 1;
  node.runs = runs;
  return node;
}

MaskNode join(MaskNode::Kind kind, std::vector<int> parts) {
  MaskNode node{};
  node.kind = kind;
  node.parts = std::move(parts);
  return node;
}

}  // namespace

int main() {
  const int64_t band[] = {3, 60, 5, 140, -10, 80};
  auto in_band = [](int64_t i, int64_t j) {
    return i >= 3 && i < 60 && j >= 5 && j < 140 && j - i >= -10 && j - i <= 80;
  };
  std::vector<int64_t> start(kQueries * 2), stop(kQueries * 2), ids(kQueries), key_ids(kKeys);
  for (int64_t i = 0; i < kQueries; ++i) {
    start[2 * i] = i, stop[2 * i] = i + 5;
    start[2 * i + 1] = 100, stop[2 * i + 1] = i % 3 == 0 ? 100 : 130;
    ids[i] = i % 7;
  }
  for (int64_t j = 0; j < kKeys; ++j) key_ids[j] = j % 5;
  auto in_runs = [&](int64_t i, int64_t j) {
    return (j >= start[2 * i] && j < stop[2 * i]) || (j >= start[2 * i + 1] && j < stop[2 * i + 1]);
  };
  auto same_id = [&](int64_t i, int64_t j) { return ids[i] == key_ids[j]; };
  std::vector<char> cells(kQueries * kKeys * 2);
  for (size_t n = 0; n < cells.size(); ++n)
    cells[n] = (n * 2654435761u >> 7) % 3 == 0 ? static_cast<char>(1 + n % 255) : 0;

  Mask mask;
  mask.queries = kQueries;
  mask.keys = kKeys;
  auto root = [&](std::vector<MaskNode> nodes) -> const Mask& {
    mask.nodes = std::move(nodes);
    return mask;
  };
  MaskNode a = leaf(MaskNode::Kind::band, band, nullptr, 0);
  MaskNode b = leaf(MaskNode::Kind::runs, start.data(), stop.data(), 2);
  MaskNode c = leaf(MaskNode::Kind::equal, ids.data(), key_ids.data(), 0);
  compare(root({a}), in_band);
  compare(root({b}), in_runs);
  compare(root({c}), same_id);
  compare(root({a, b, join(MaskNode::Kind::all, {0, 1})}),
          [&](int64_t i, int64_t j) { return in_band(i, j) && in_runs(i, j); });
  compare(root({a, b, c, join(MaskNode::Kind::any, {1, 2}), join(MaskNode::Kind::all, {0, 3})}),
          [&](int64_t i, int64_t j) { return in_band(i, j) && (in_runs(i, j) || same_id(i, j)); });
  for (int64_t stride : {1, 2, -1}) {
    MaskNode d{};
    d.kind = MaskNode::Kind::boolean;
    d.cells.batch = {0};
    d.cells.row = kKeys * (stride == 2 ? 2 : 1);
    d.cells.column = stride;
    d.cells.data = cells.data() + (stride < 0 ? kKeys - 1 : 0);
    compare(root({d}), [&](int64_t i, int64_t j) {
      return d.cells.data[i * d.cells.row + j * d.cells.column] != 0;
    });
  }
  return test::report("mask");
}
