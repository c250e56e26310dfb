# libmdprune_cuda, the kernels for NVIDIA's GPUs: loaded by libmdprune when a context asks for one.
# CUDA's runtime is linked in; nothing but the driver is needed where it runs.
#
# MDPRUNE_CUDA: ON for all GPUs that the toolkit compiles for, AUTO for the GPU of this machine if
# there is one and a toolkit too, OFF. -DCMAKE_CUDA_ARCHITECTURES=87 chooses.

set(MDPRUNE_CUDA AUTO CACHE STRING "Build libmdprune_cuda: ON, OFF or AUTO")
if(MDPRUNE_CUDA STREQUAL "AUTO")
  if(CMAKE_VERSION VERSION_LESS 3.24 OR CMAKE_CROSSCOMPILING OR MDPRUNE_SANITIZE OR
      NOT (EXISTS /dev/nvidia0 OR EXISTS /dev/nvhost-gpu))
    return()
  endif()
  set(default_architectures native)
elseif(NOT MDPRUNE_CUDA)
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(MDPRUNE_CUDA STREQUAL "AUTO")
    return()
  endif()
  message(FATAL_ERROR "MDPRUNE_CUDA is ON and there is no nvcc; name one in CUDACXX")
endif()
set(generate)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND default_architectures)
  set(CMAKE_CUDA_ARCHITECTURES ${default_architectures})
elseif(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # 75 Turing, 80 and 86 Ampere, 87 Orin, 89 Ada, 90 Hopper, 100 Blackwell, 110 Thor, 120 desktop
  # Blackwell. The kernels use what sm_80 brought and nothing later: those after it share one PTX,
  # which runs on what the compiler does not know yet too.
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known)
  foreach(architecture 80 86 87 89 90 100 110 120)
    if(known MATCHES "sm_${architecture}\n")
      list(APPEND codes sm_${architecture})
    endif()
  endforeach()
  list(JOIN codes , codes)
  set(generate "SHELL:--generate-code=arch=compute_75,code=sm_75"
    "SHELL:--generate-code=arch=compute_80,code=[${codes},compute_80]" --threads=2)
  set(CMAKE_CUDA_ARCHITECTURES OFF)
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)

set(cuda ${CMAKE_CURRENT_SOURCE_DIR}/../kernels/cuda)
file(GLOB cuda_sources CONFIGURE_DEPENDS ${cuda}/*.cu ${cuda}/*.cpp)
add_library(mdprune_cuda SHARED ${cuda_sources})
target_include_directories(mdprune_cuda PRIVATE ${cuda}/..)
set_target_properties(mdprune_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
# What ptxas says of registers and spills stays beside each object: kernels/tools/resources.py reads it.
set_target_properties(mdprune_cuda PROPERTIES RULE_LAUNCH_COMPILE
  "${CMAKE_CURRENT_SOURCE_DIR}/cmake/keep_output.sh <OBJECT>.ptxas")
target_compile_options(mdprune_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CUDA>:${generate};-Xfatbin=-compress-all;-Xptxas=-v;-Xcompiler=-Wall,-Wextra>")
if(CMAKE_COMPILE_WARNING_AS_ERROR)  # nvcc knows it from CMake, the compiler of the host from here
  target_compile_options(mdprune_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Werror>)
endif()
target_link_options(mdprune_cuda PRIVATE -Wl,--exclude-libs,ALL)
