// The few lines of test harness that native tests share.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "attention.h"

namespace chumoku::test {

inline int passed = 0, failed = 0;

inline void check(bool holds, const char* what, const char* file, int line) {
  ++(holds ? passed : failed);
  if (!holds) std::fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
}

// 0 when a test can run under CHUMOKU_ISA, else what it exits with: 77, which ctest counts as
// skipped, when the machine lacks that instruction set; 1 when the build does not know it.
inline int lacks_instruction_set() {
  const char* asked = std::getenv("CHUMOKU_ISA");
  if (!asked || set_instruction_set(asked)) return 0;
  bool known = knows_instruction_set(asked);
  std::printf("%s lacks %s\n", known ? "this machine" : "this build", asked);
  return known ? 77 : 1;
}

inline int report(const char* name) {
  std::printf("%s: %d passed, %d failed\n", name, passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace chumoku::test

#define CHECK(condition) chumoku::test::check((condition), #condition, __FILE__, __LINE__)
