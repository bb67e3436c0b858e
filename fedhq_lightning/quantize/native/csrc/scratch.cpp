#include "scratch.h"

#include <cstdint>
#include <memory>

namespace fedhq {

void* scratch(Scratch which, size_t bytes) {
  struct Held {
    std::unique_ptr<char[]> memory;
    size_t size = 0;
  };
  static thread_local Held held[static_cast<int>(Scratch::count)];
  constexpr size_t BEYOND = 4096;
  Held& mine = held[static_cast<int>(which)];
  if (mine.size < bytes + BEYOND) {
    mine.size = bytes + bytes / 2 + BEYOND;
    mine.memory.reset();
    mine.memory.reset(new char[mine.size + 64]);
  }
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(mine.memory.get()) + 63) & ~uintptr_t{63});
}

}  // namespace fedhq
