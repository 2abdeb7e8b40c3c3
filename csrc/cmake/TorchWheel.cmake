# Finds the torch that the given Python imports and reads what it was built with, without importing it.
#
# Sets TORCH_INSTALL_PREFIX, Torch_VERSION (2.11.0), PARAMIXER_TORCH_MINOR (2.11) and PARAMIXER_TORCH_CUDA (13.0, or empty
# for a CPU build). paramixer_add_torch() then makes the imported target paramixer_torch. find_package(Torch) is not used: with
# a CUDA-built torch it demands a CUDA toolkit, adds its own CUDA flags and architectures to ours, and leaves the build
# folder's paths in what we install.

if(NOT PARAMIXER_OPS)
  return()
endif()

find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
if(NOT TORCH_INSTALL_PREFIX) # never cached: the tree may be configured again for another environment
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE TORCH_INSTALL_PREFIX OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
if(NOT EXISTS ${TORCH_INSTALL_PREFIX}/include/c10)
  message(FATAL_ERROR "paramixer: no torch with C++ headers for ${Python_EXECUTABLE} "
                      "(looked for '${TORCH_INSTALL_PREFIX}/include/c10'); run: pip install torch")
endif()

file(STRINGS ${TORCH_INSTALL_PREFIX}/version.py _line REGEX "^__version__")
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" Torch_VERSION "${_line}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" PARAMIXER_TORCH_MINOR "${Torch_VERSION}")
if(Torch_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "paramixer: torch must be 2.11 or newer (found ${Torch_VERSION})")
endif()

file(STRINGS ${TORCH_INSTALL_PREFIX}/version.py _line REGEX "^cuda")
string(REGEX MATCH "[0-9]+\\.[0-9]+" PARAMIXER_TORCH_CUDA "${_line}")
# Where pip puts the CUDA runtime that torch loads, beside torch.
if(PARAMIXER_TORCH_CUDA VERSION_GREATER_EQUAL 13)
  set(PARAMIXER_CUDA_RUNTIME nvidia/cu13/lib)
else()
  set(PARAMIXER_CUDA_RUNTIME nvidia/cuda_runtime/lib)
endif()

macro(paramixer_add_torch)
  add_library(paramixer_torch INTERFACE)
  target_include_directories(paramixer_torch SYSTEM INTERFACE
    $<BUILD_INTERFACE:${TORCH_INSTALL_PREFIX}/include>
    $<BUILD_INTERFACE:${TORCH_INSTALL_PREFIX}/include/torch/csrc/api/include>)
  set(_libraries torch torch_cpu c10)
  if(PARAMIXER_WITH_CUDA)
    list(APPEND _libraries c10_cuda)
  endif()
  foreach(_library IN LISTS _libraries)
    set(_file ${TORCH_INSTALL_PREFIX}/lib/lib${_library}.so)
    if(NOT EXISTS ${_file})
      message(FATAL_ERROR "paramixer: torch ${Torch_VERSION} lacks ${_file}; reinstall torch")
    endif()
    target_link_libraries(paramixer_torch INTERFACE $<BUILD_INTERFACE:${_file}>)
  endforeach()
endmacro()
