#include "kernels/kernels.h"

#if defined(FIRP_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(FIRP_AARCH64)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "kernels/isa_tables.h"

namespace firp {
namespace {

struct Isa {
  const Kernels* table;
  bool (*supported)();
};

#if defined(FIRP_X86)
// clang 14's __builtin_cpu_supports has no names for F16C and for what leaf 7, subleaf 1 tells.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

/// A bit of EAX of leaf 7, subleaf 1.
bool has_late_feature(int bit) {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> bit & 1) != 0;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx_vnni() { return has_avx2() && has_late_feature(4); }
bool has_avx512_bf16() { return has_avx512() && has_late_feature(5); }

/// The CPU has tiles of bytes and BF16, and the kernel lets the process use them: it keeps 8 KiB
/// more of every thread that does, so it wants to be asked.
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!has_avx512_bf16() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25;
  if ((d & (kBf16 | kTiles | kInt8)) != (kBf16 | kTiles | kInt8)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h of Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

/// Best first.
constexpr Isa kIsas[] = {
#if defined(FIRP_X86)
    {&kKernelsAvx512Amx, has_amx},
    {&kKernelsAvx512Bf16, has_avx512_bf16},
    {&kKernelsAvx512, has_avx512},
    {&kKernelsAvxVnni, has_avx_vnni},
    {&kKernelsAvx2, has_avx2},
#elif defined(FIRP_AARCH64)
    {&kKernelsNeonI8mm, [] { return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }},
    {&kKernelsNeonDotprod, [] { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }},
    {&kKernelsNeon, [] { return true; }},  // part of every AArch64
#endif
    {&kKernelsPortable, [] { return true; }},
};

std::size_t rounded(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

Activations::Activations(int max_rows, int max_inputs) {
  stride_ = static_cast<int>(rounded(max_inputs, 64));
  const std::size_t rows = max_rows;
  const std::size_t value_bytes = rows * values_stride() * sizeof(float);
  const std::size_t group_bytes = rows * groups_stride() * sizeof(ActivationGroup);
  memory_ = AlignedBytes(value_bytes + group_bytes + rows * bf16_stride() * sizeof(std::uint16_t));
  values_ = reinterpret_cast<float*>(memory_.data());
  groups_ = reinterpret_cast<ActivationGroup*>(memory_.data() + value_bytes);
  bf16_ = reinterpret_cast<std::uint16_t*>(memory_.data() + value_bytes + group_bytes);
}

void Activations::resize(int rows, int inputs) {
  rows_ = rows;
  inputs_ = inputs;
  stride_ = static_cast<int>(rounded(inputs, 64));
  for (int row = 0; row < rows; ++row) {
    std::fill(values(row) + inputs, values(row) + stride_, 0.0f);
  }
}

Activations Activations::some_rows(int first, int rows) {
  Activations some;
  some.rows_ = rows;
  some.inputs_ = inputs_;
  some.stride_ = stride_;
  some.values_ = values(first);
  some.groups_ = groups(first);
  some.bf16_ = bf16(first);
  return some;
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
