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

Activations::Activations(int max_rows, int max_inputs) {
  const std::size_t values = static_cast<std::size_t>(max_rows) * rounded(max_inputs, 64);
  memory_ = AlignedBytes(values * sizeof(float) + values / 32 * sizeof(ActivationGroup));
  values_ = reinterpret_cast<float*>(memory_.data());
  groups_ = reinterpret_cast<ActivationGroup*>(memory_.data() + values * sizeof(float));
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
