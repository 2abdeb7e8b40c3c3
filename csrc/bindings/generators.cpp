// The task generators for Python, which gets NumPy arrays. They run without the interpreter's lock.

#include "bindings/generators.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "generators/listops.h"
#include "generators/pathfinder.h"

namespace py = pybind11;
using namespace py::literals;
using namespace paramixer::generators;

namespace {

// An array that owns the vector's memory.
template <typename T>
py::array_t<T> to_array(std::vector<T>&& values, const std::vector<py::ssize_t>& shape) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  const T* data = owned->data();
  const py::capsule owner(owned.release(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(shape, data, owner);
}

template <typename T>
py::array_t<T> copy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

ListOpsSamples listops(uint64_t seed, int64_t first, int64_t count, int threads, int max_depth,
                       int max_args, int64_t min_length, int64_t max_length,
                       double operator_probability, std::vector<std::string> operators) {
  return generate_listops(
      {max_depth, max_args, min_length, max_length, operator_probability, std::move(operators)},
      seed, first, count, threads);
}

py::bytes rows(const ListOpsSamples& samples, const std::vector<int64_t>& chosen) {
  std::string text;
  {
    const py::gil_scoped_release release;
    text = listops_rows(samples, chosen);
  }
  return text;
}

py::tuple pathfinder(const PathfinderOptions& options, uint64_t seed, int64_t first, int64_t count,
                     int threads) {
  PathfinderSamples samples;
  {
    const py::gil_scoped_release release;
    samples = generate_pathfinder(options, seed, first, count, threads);
  }
  return py::make_tuple(to_array(std::move(samples.pixels), {count, options.size, options.size}),
                        to_array(std::move(samples.labels), {count}),
                        to_array(std::move(samples.margins), {count}));
}

}  // namespace

void bind_generators(py::module_& m) {
  py::class_<ListOpsSamples>(m, "ListOpsSamples", "Expressions; see generators/listops.h.")
      .def_property_readonly("tokens", [](const ListOpsSamples& s) { return copy(s.tokens); })
      .def_property_readonly("offsets", [](const ListOpsSamples& s) { return copy(s.offsets); })
      .def_property_readonly("labels", [](const ListOpsSamples& s) { return copy(s.labels); })
      .def_property_readonly("depths", [](const ListOpsSamples& s) { return copy(s.depths); })
      .def("rows", &rows, "chosen"_a, "Rows of the official file, of the samples chosen.");
  m.def("listops", &listops, "seed"_a, "first"_a, "count"_a, "threads"_a, "max_depth"_a,
        "max_args"_a, "min_length"_a, "max_length"_a, "operator_probability"_a, "operators"_a,
        py::call_guard<py::gil_scoped_release>());
  std::vector<std::string> tokens(kListOpsTokens.begin(), kListOpsTokens.end());
  m.attr("LISTOPS_TOKENS") = py::tuple(py::cast(tokens));

  using Options = PathfinderOptions;
  py::class_<Options>(m, "PathfinderOptions", "See generators/pathfinder.h.")
      .def_readwrite("size", &Options::size)
      .def_readwrite("padding", &Options::padding)
      .def_readwrite("antialias", &Options::antialias)
      .def_readwrite("segment_length", &Options::segment_length)
      .def_readwrite("thickness", &Options::thickness)
      .def_readwrite("margins", &Options::margins)
      .def_readwrite("continuity", &Options::continuity)
      .def_readwrite("seed_distance", &Options::seed_distance)
      .def_readwrite("marker_radius", &Options::marker_radius)
      .def_readwrite("contour_length", &Options::contour_length)
      .def_readwrite("distractor_length", &Options::distractor_length)
      .def_readwrite("distractors", &Options::distractors)
      .def_readwrite("path_contrast", &Options::path_contrast)
      .def_readwrite("distractor_contrast", &Options::distractor_contrast);
  m.def("pathfinder_options", &pathfinder_options, "size"_a, "difficulty"_a);
  m.def("pathfinder", &pathfinder, "options"_a, "seed"_a, "first"_a, "count"_a, "threads"_a,
        "Pictures (count, size, size), labels (count,) and margins (count,).");
}
