#include "model/largest_allocation.h"

#include <cstdlib>
#include <new>

namespace firp {

std::atomic<std::size_t> largest_allocation = 0;

}  // namespace firp

void* operator new(std::size_t size) {
  std::size_t seen = firp::largest_allocation;
  while (size > seen && !firp::largest_allocation.compare_exchange_weak(seen, size)) {
  }
  if (void* pointer = std::malloc(size == 0 ? 1 : size)) {
    return pointer;
  }
  throw std::bad_alloc();
}
void operator delete(void* pointer) noexcept { std::free(pointer); }
void operator delete(void* pointer, std::size_t) noexcept { std::free(pointer); }
