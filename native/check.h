// The few lines of test harness that native tests share.
#pragma once

#include <cstdio>

namespace chumoku::test {

inline int passed = 0, failed = 0;

inline void check(bool holds, const char* what, const char* file, int line) {
  ++(holds ? passed : failed);
  if (!holds) std::fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
}

inline int report(const char* name) {
  std::printf("%s: %d passed, %d failed\n", name, passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace chumoku::test

#define CHECK(condition) chumoku::test::check((condition), #condition, __FILE__, __LINE__)
