#include "mask.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif
namespace chumoku {
namespace {

Range band(const MaskNode& node, const Place& place) {
  const int64_t* f = node.first + 6 * (node.entries == 1 ? 0 : place.batch);
  if (place.query < f[0] || place.query >= f[1]) return {};
  return {std::max(f[2], place.query + f[4]), std::min(f[3], place.query + f[5] + 1)};
}

const int64_t* runs_of(const int64_t* table, const MaskNode& node, const Mask& mask,
                       const Place& place) {
  int64_t entry = node.entries == 1 ? 0 : place.batch;
  return table + (entry * mask.queries + place.query) * node.runs;
}

Range node_hull(const Mask& mask, const MaskNode& node, const Place& place) {
  Range whole{0, mask.keys};
  switch (node.kind) {
    case MaskNode::Kind::band:
      return band(node, place);
    case MaskNode::Kind::runs: {
      const int64_t* start = runs_of(node.first, node, mask, place);
      const int64_t* stop = runs_of(node.second, node, mask, place);
      Range range{mask.keys, 0};
      for (int64_t r = 0; r < node.runs; ++r)
        if (start[r] < stop[r])
          range = {std::min(range.start, start[r]), std::max(range.stop, stop[r])};
      return range;
    }
    case MaskNode::Kind::all:
      for (int part : node.parts) {
        Range range = node_hull(mask, mask.nodes[static_cast<size_t>(part)], place);
        whole = {std::max(whole.start, range.start), std::min(whole.stop, range.stop)};
      }
      return whole;
    case MaskNode::Kind::any: {
      Range joined{mask.keys, 0};
      for (int part : node.parts) {
        Range range = node_hull(mask, mask.nodes[static_cast<size_t>(part)], place);
        if (!range.empty())
          joined = {std::min(joined.start, range.start), std::max(joined.stop, range.stop)};
      }
      return joined;
    }
    default:
      return whole;
  }
}

Range node_solid(const Mask& mask, const MaskNode& node, const Place& place) {
  switch (node.kind) {
    case MaskNode::Kind::band:
      return band(node, place);
    case MaskNode::Kind::runs: {
      const int64_t* start = runs_of(node.first, node, mask, place);
      const int64_t* stop = runs_of(node.second, node, mask, place);
      Range widest;
      for (int64_t r = 0; r < node.runs; ++r)
        if (stop[r] - start[r] > widest.stop - widest.start) widest = {start[r], stop[r]};
      return widest;
    }
    case MaskNode::Kind::all: {
      Range common{0, mask.keys};
      for (int part : node.parts) {
        Range range = node_solid(mask, mask.nodes[static_cast<size_t>(part)], place);
        common = {std::max(common.start, range.start), std::min(common.stop, range.stop)};
      }
      return common;
    }
    case MaskNode::Kind::any: {
      Range widest;
      for (int part : node.parts) {
        Range range = node_solid(mask, mask.nodes[static_cast<size_t>(part)], place);
        if (range.stop - range.start > widest.stop - widest.start) widest = range;
      }
      return widest;
    }
    default:
      return {};
  }
}

uint64_t cells_word(const char* cell, int64_t stride, int64_t count) {
  uint64_t bits = 0;
  if (stride == 1) {
    int64_t j = 0;
#if defined(__x86_64__)
    __builtin_prefetch(cell + count);  // rows lie far apart, too many for the machine to foresee
    for (; j + 16 <= count; j += 16) {
      __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cell + j));
      int zeros = _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
      bits |= static_cast<uint64_t>(~zeros & 0xffff) << j;
    }
#endif
    // Eight bytes become eight bits: each is made 0 or 1 first (a true byte need not be 1), then
    // the product gathers them in the top byte.
    constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7full;
    for (; j + 8 <= count; j += 8) {
      uint64_t eight;
      __builtin_memcpy(&eight, cell + j, 8);
      eight = ((((eight & kLow) + kLow) | eight) & ~kLow) >> 7;
      bits |= ((eight * 0x0102040810204080ull) >> 56) << j;
    }
    for (; j < count; ++j) bits |= uint64_t{cell[j] != 0} << j;
    return bits;
  }
  for (int64_t j = 0; j < count; ++j) bits |= uint64_t{cell[j * stride] != 0} << j;
  return bits;
}

uint64_t node_word(const Mask& mask, const MaskNode& node, const Place& place, int64_t first,
                   int64_t count) {
  switch (node.kind) {
    case MaskNode::Kind::band:
      return range_word(band(node, place), first);
    case MaskNode::Kind::runs: {
      const int64_t* start = runs_of(node.first, node, mask, place);
      const int64_t* stop = runs_of(node.second, node, mask, place);
      uint64_t bits = 0;
      for (int64_t r = 0; r < node.runs; ++r) bits |= range_word({start[r], stop[r]}, first);
      return bits;
    }
    case MaskNode::Kind::equal: {
      int64_t entry = node.entries == 1 ? 0 : place.batch;
      int64_t mine = node.first[entry * mask.queries + place.query];
      const int64_t* ids = node.second + entry * mask.keys + first;
      uint64_t bits = 0;
      for (int64_t j = 0; j < count; ++j) bits |= uint64_t{ids[j] == mine} << j;
      return bits;
    }
    case MaskNode::Kind::boolean: {
      const View& cells = node.cells;
      return cells_word(cells.at(place.batch, place.head, place.query) + first * cells.column,
                        cells.column, count);
    }
    case MaskNode::Kind::bits: {
      const View& cells = node.cells;
      const char* row = cells.at(place.batch, place.head, place.row);
      auto read = [&](int64_t at) {
        uint64_t sixty_four;
        __builtin_memcpy(&sixty_four, row + at * cells.column, 8);
        return sixty_four;
      };
      uint64_t bits = read(first / 64) >> first % 64;
      if (first % 64 + count > 64) bits |= read(first / 64 + 1) << (64 - first % 64);
      return bits;
    }
    case MaskNode::Kind::all: {
      uint64_t bits = ~uint64_t{0};
      for (int part : node.parts)
        if (bits)
          bits &= node_word(mask, mask.nodes[static_cast<size_t>(part)], place, first, count);
      return bits;
    }
    case MaskNode::Kind::any: {
      uint64_t bits = 0;
      for (int part : node.parts)
        bits |= node_word(mask, mask.nodes[static_cast<size_t>(part)], place, first, count);
      return bits;
    }
  }
  return 0;
}

}  // namespace

bool of_intervals(const Mask& mask) {
  return std::all_of(mask.nodes.begin(), mask.nodes.end(), [](const MaskNode& node) {
    return node.kind == MaskNode::Kind::band || node.kind == MaskNode::Kind::all;
  });
}

Range hull(const Mask& mask, const Place& place) {
  Range range = node_hull(mask, mask.nodes.back(), place);
  return {std::max<int64_t>(0, range.start), std::min(mask.keys, range.stop)};
}

Range solid(const Mask& mask, const Place& place) {
  Range range = node_solid(mask, mask.nodes.back(), place);
  return {std::max<int64_t>(0, range.start), std::min(mask.keys, range.stop)};
}

uint64_t word(const Mask& mask, const Place& place, int64_t first, int64_t count) {
  return node_word(mask, mask.nodes.back(), place, first, count) & low_bits(count);
}

}  // namespace chumoku
