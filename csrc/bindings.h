// How native functions become Python's: by their own declarations. A pointer is passed as a tensor, None, or an address; a
// struct as its fields, one after another. mmfast/ops checks dtypes, shapes and devices first.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "ops.h"
#include "preference.h"

namespace mmfast {
void bind_cuda(pybind11::module_& m);  // csrc/cuda/bindings.cpp

// How many numbers a parameter takes: one, or of a struct those of all its fields.
template <class T> constexpr size_t kNumbers = 1;
template <> inline constexpr size_t kNumbers<LogitTile> = 13;
template <> inline constexpr size_t kNumbers<FoldResults> = 6;
template <> inline constexpr size_t kNumbers<Bf16Gemm> = 12;
template <> inline constexpr size_t kNumbers<TreeAttention> = 19;
template <> inline constexpr size_t kNumbers<TreeGradient> = 8;
template <> inline constexpr size_t kNumbers<PreferenceSpec> = 12;
template <class T> constexpr size_t kNumbers<PreferenceTensors<T>> = 18;

struct Number {
  pybind11::handle value;

  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T> || std::is_pointer_v<T>>>
  operator T() const {
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(address());
    else return value.cast<T>();
  }
  uintptr_t address() const {
    static PyObject* const name = PyUnicode_InternFromString("data_ptr");
    if (value.is_none()) return 0;
    if (PyLong_Check(value.ptr())) return value.cast<uintptr_t>();
    const auto found = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallMethodNoArgs(value.ptr(), name));
    if (!found) throw pybind11::error_already_set();
    return found.cast<uintptr_t>();
  }
};
template <class T, size_t... I>
T next_of(const pybind11::args& given, size_t& at, std::index_sequence<I...>) {
  return T{(void(I), Number{given[at++]})...};  // in this order
}

// The interpreter is free meanwhile.
template <class R, class... P>
void bind(pybind11::module_& m, const std::string& name, R (*function)(P...)) {
  m.def(name.c_str(), [=](const pybind11::args& given) -> R {
    constexpr size_t all = (kNumbers<std::decay_t<P>> + ... + 0);
    if (given.size() != all)
      throw pybind11::type_error(name + " takes " + std::to_string(all) + " numbers, not " + std::to_string(given.size()));
    [[maybe_unused]] size_t at = 0;
    const std::tuple<std::decay_t<P>...> parameters{
        next_of<std::decay_t<P>>(given, at, std::make_index_sequence<kNumbers<std::decay_t<P>>>())...};
    pybind11::gil_scoped_release release;
    return std::apply(function, parameters);
  });
}

}  // namespace mmfast
