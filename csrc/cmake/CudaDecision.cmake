# Decides PARAMIXER_WITH_CUDA from PARAMIXER_CUDA, and says why in PARAMIXER_CUDA_DECISION. It never asks whether a GPU
# is present: what is built here may run elsewhere.
#
# nvcc is looked for in CUDA_HOME, CUDA_PATH, on PATH and in /usr/local/cuda, in this order. Folders listed in
# CMAKE_IGNORE_PATH are passed over: -DCMAKE_IGNORE_PATH=/usr/local/cuda/bin hides that toolkit.

string(TOUPPER "${PARAMIXER_CUDA}" _wanted)
if(NOT _wanted MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "paramixer: PARAMIXER_CUDA must be AUTO, ON or OFF (got '${PARAMIXER_CUDA}')")
endif()

# Not cached: a toolkit may come and go between two runs in one build tree.
find_program(_nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin
             NO_CMAKE_SYSTEM_PATH NO_CACHE)
set(_version "")
if(_nvcc)
  execute_process(COMMAND ${_nvcc} --version OUTPUT_VARIABLE _text ERROR_QUIET)
  if(_text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(_version ${CMAKE_MATCH_1})
  endif()
endif()
string(REGEX MATCH "^[0-9]+" _nvcc_major "${_version}")
string(REGEX MATCH "^[0-9]+" _torch_major "${PARAMIXER_TORCH_CUDA}")

set(_obstacle "")
if(_wanted STREQUAL "OFF")
  set(_obstacle "PARAMIXER_CUDA=OFF")
elseif(PARAMIXER_OPS AND NOT PARAMIXER_TORCH_CUDA)
  set(_obstacle "torch ${Torch_VERSION} is a CPU build")
elseif(NOT _nvcc)
  set(_obstacle "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
elseif(_version STREQUAL "")
  set(_obstacle "${_nvcc} --version names no release")
elseif(_version VERSION_LESS 12.8)
  set(_obstacle "nvcc ${_version} is older than 12.8")
elseif(PARAMIXER_OPS AND NOT _nvcc_major STREQUAL _torch_major)
  set(_obstacle "nvcc ${_version} does not match torch's CUDA ${PARAMIXER_TORCH_CUDA}")
endif()

if(_obstacle STREQUAL "")
  set(PARAMIXER_WITH_CUDA ON)
  set(CMAKE_CUDA_COMPILER ${_nvcc})
  set(PARAMIXER_CUDA_DECISION "CUDA kernels are built with nvcc ${_version} for ${PARAMIXER_CUDA_ARCHITECTURES}")
elseif(_wanted STREQUAL "ON")
  message(FATAL_ERROR "paramixer: PARAMIXER_CUDA=ON, but ${_obstacle}")
else()
  set(PARAMIXER_WITH_CUDA OFF)
  set(PARAMIXER_CUDA_DECISION "CPU only: ${_obstacle}")
endif()
message(STATUS "paramixer: ${PARAMIXER_CUDA_DECISION}")
