#include "kernels/kernels.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/isa_tables.h"
#include "model/error.h"

namespace firp {
namespace {

struct Isa {
  const Kernels* table;
  bool (*supported)();
};

/// Best first.
constexpr Isa kIsas[] = {
#ifdef FIRP_X86
    {&kKernelsAvx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vnni");
     }},
    {&kKernelsAvx2,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
    {&kKernelsPortable, [] { return true; }},
};

std::size_t rounded(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

Activations::Activations(int max_rows, int max_inputs)
    : max_rows_(max_rows), max_stride_(static_cast<int>(rounded(max_inputs, 64))) {
  const std::size_t n = static_cast<std::size_t>(max_rows_) * max_stride_;
  memory_ = AlignedBytes(n * 4 + rounded(n, 64) + rounded(n / 32 * 4, 64) + n / 16 * 4);
  std::byte* at = memory_.data();
  values_ = reinterpret_cast<float*>(at);
  codes_ = reinterpret_cast<std::int8_t*>(at += n * 4);
  scales_ = reinterpret_cast<float*>(at += rounded(n, 64));
  sums_ = reinterpret_cast<std::int32_t*>(at + rounded(n / 32 * 4, 64));
}

void Activations::resize(int rows, int inputs) {
  rows_ = rows;
  inputs_ = inputs;
  stride_ = static_cast<int>(rounded(inputs, 64));
  for (int row = 0; row < rows; ++row) {
    std::fill(values(row) + inputs, values(row) + stride_, 0.0f);
  }
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (isa.supported()) names.emplace_back(isa.table->isa);
  }
  return names;
}

const Kernels& kernels(std::string_view isa) {
  for (const Isa& each : kIsas) {
    if (each.supported() && each.table->isa == isa) return *each.table;
  }
  throw Error(fmt::format("this machine has no instruction set '{}' (it has: {})", isa,
                          fmt::join(available_isas(), ", ")));
}

const Kernels& default_kernels() {
  const char* const wanted = std::getenv("FIRP_ISA");
  return kernels(wanted != nullptr && *wanted != '\0' ? wanted : available_isas().front());
}

}  // namespace firp
