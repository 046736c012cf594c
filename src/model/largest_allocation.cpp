#include "model/largest_allocation.h"

#include <cstdlib>
#include <new>

namespace firp {

std::atomic<std::size_t> largest_allocation = 0;

}  // namespace firp

namespace {

/// nullptr where there is none.
void* allocate(std::size_t size) {
  std::size_t seen = firp::largest_allocation;
  while (size > seen && !firp::largest_allocation.compare_exchange_weak(seen, size)) {
  }
  return std::malloc(size == 0 ? 1 : size);
}

}  // namespace

void* operator new(std::size_t size) {
  if (void* pointer = allocate(size)) return pointer;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return allocate(size); }
void operator delete(void* pointer) noexcept { std::free(pointer); }
void operator delete(void* pointer, std::size_t) noexcept { std::free(pointer); }
