#include "model/last_level_cache.h"

#include <fstream>

namespace firp {

std::size_t last_level_cache_bytes() {
  // Linux's own account: glibc's sysconf gives the sum of all caches of an AMD processor, even of
  // those that a virtual machine does not have.
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
  std::size_t kibibytes = 0;
  file >> kibibytes;
  return kibibytes > 0 ? kibibytes << 10 : std::size_t{32} << 20;
}

}  // namespace firp
