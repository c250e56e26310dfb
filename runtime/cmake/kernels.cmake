# The CPU kernels: one source, compiled once per instruction set of the target processor.
# Sets MDPRUNE_KERNEL_OBJECTS.

set(kernels ${CMAKE_CURRENT_SOURCE_DIR}/../kernels/cpu)

# Contraction is off so that a vector and the tail of a loop round alike; kernels call fma themselves.
set(kernel_options -O3 -ffp-contract=off)
if(MDPRUNE_SANITIZE)
  # GCC takes minutes to optimise kernels full of checks.
  set(kernel_options -O1 -ffp-contract=off)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC's own AVX-512 header reads variables that it means to be undefined.
  list(APPEND kernel_options -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

add_library(mdprune_kernels OBJECT ${kernels}/find_kernels.cpp ${kernels}/reference.cpp)
set(MDPRUNE_KERNEL_OBJECTS $<TARGET_OBJECTS:mdprune_kernels>)
set(MDPRUNE_ISAS)

function(mdprune_isa name)
  add_library(mdprune_${name} OBJECT ${kernels}/isa.cpp)
  target_compile_definitions(mdprune_${name} PRIVATE MDPRUNE_ISA=${name})
  target_compile_options(mdprune_${name} PRIVATE ${kernel_options} ${ARGN})
  string(TOUPPER ${name} upper)
  target_compile_definitions(mdprune_kernels PRIVATE MDPRUNE_HAS_${upper})
  set(MDPRUNE_KERNEL_OBJECTS ${MDPRUNE_KERNEL_OBJECTS} $<TARGET_OBJECTS:mdprune_${name}>
    PARENT_SCOPE)
  set(MDPRUNE_ISAS ${MDPRUNE_ISAS} ${name} PARENT_SCOPE)
endfunction()

mdprune_isa(portable -DMDPRUNE_PORTABLE)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  mdprune_isa(avx2 -mavx2 -mfma)
  mdprune_isa(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  mdprune_isa(neon)
endif()
