# The CUDA kernels compiled for the host: threads are fibres, device memory is the heap. For tests.

set(cuda ${PROJECT_SOURCE_DIR}/../kernels/cuda)
file(GLOB cuda_sources CONFIGURE_DEPENDS ${cuda}/*.cu ${cuda}/*.cpp)
file(GLOB cuda_emulation CONFIGURE_DEPENDS ${cuda}/emulate/*.cpp)
set_source_files_properties(${cuda_sources} ${cuda_emulation} PROPERTIES LANGUAGE CXX)
# GCC for 64-bit ARM loses sight of what unrolled loops have set.
set(cuda_options -O2 -Wno-unknown-pragmas -Wno-maybe-uninitialized)
if(MDPRUNE_SANITIZE)
  set(cuda_options -O1 -Wno-unknown-pragmas -Wno-maybe-uninitialized)
endif()

# mdprune_cuda_emulated, and _sm75 without what came with sm_80.
foreach(variant "" _sm75)
  set(target mdprune_cuda_emulated${variant})
  add_library(${target} STATIC ${cuda_sources} ${cuda_emulation})
  target_include_directories(${target} PUBLIC ${cuda}/emulate ${cuda}/..)
  target_compile_options(${target} PRIVATE ${cuda_options})
endforeach()
target_compile_definitions(mdprune_cuda_emulated_sm75 PUBLIC MDPRUNE_EMULATE_SM75)
foreach(source ${cuda_sources})
  if(source MATCHES "\\.cu$")
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-xc++")
  endif()
endforeach()
