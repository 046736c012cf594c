# How FIRP's libraries and tests are compiled, here and for another CPU (src/kernels/aarch64).

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_program(CCACHE ccache)
if(CCACHE)
  # What it needs to keep objects that use a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER
    ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros
    CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
endif()

# No contraction of a * b + c behind our back: each element's operations are the ones written down,
# in every function and on every path (docs/numerics.md).
add_library(firp_flags INTERFACE)
target_compile_options(firp_flags INTERFACE -Wall -Wextra -Wshadow
  -Wno-missing-field-initializers  # designated initialisers leave the rest at its default
  -Werror -ffp-contract=off)
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH root)
target_include_directories(firp_flags INTERFACE ${root}/src)
target_link_libraries(firp_flags INTERFACE fmt::fmt)

# firp_library(NAME SOURCES... [LINK libraries...])
function(firp_library name)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PUBLIC firp_flags ${ARG_LINK})
endfunction()

# firp_test(NAME SOURCES... [LINK libraries...]): tests lie beside what they test.
function(firp_test name)
  if(NOT FIRP_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gtest GTest::gtest_main)
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT 900)
endfunction()
