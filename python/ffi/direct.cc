// The shortest way into an op from Python: a builtin function that reads tensors by the framework's
// C functions, with no object of the FFI in between.
#include <dlpack/dlpack.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>

#include "run.hpp"

// Of Python's stable interface (PEP 384), what is needed here. Its headers are not: many systems
// that can build the package lack them.
extern "C" {
struct _object;  // NOLINT(bugprone-reserved-identifier): Python's name for it
using PyObject = _object;
using Py_ssize_t = std::ptrdiff_t;
struct PyMethodDef {
  const char* ml_name;
  PyObject* (*ml_meth)(PyObject* self, PyObject* const* args, Py_ssize_t num_args);
  int ml_flags;
  const char* ml_doc;
};
constexpr int METH_FASTCALL = 0x80;

extern PyObject _Py_NoneStruct;  // NOLINT(bugprone-reserved-identifier)
extern PyObject PyBool_Type;
extern PyObject PyLong_Type;
extern PyObject* PyExc_Exception;
PyObject* PyCFunction_NewEx(PyMethodDef* method, PyObject* self, PyObject* module);
int PyCapsule_IsValid(PyObject* capsule, const char* name);
void* PyCapsule_GetPointer(PyObject* capsule, const char* name);
PyObject* PyBool_FromLong(long value);
PyObject* PyErr_Occurred();
void PyErr_Clear();
int PyErr_ExceptionMatches(PyObject* kind);
void Py_IncRef(PyObject* object);
void Py_DecRef(PyObject* object);
PyObject* PyLong_FromLongLong(long long value);
PyObject* PyLong_FromVoidPtr(void* value);
long long PyLong_AsLongLong(PyObject* number);
void* PyLong_AsVoidPtr(PyObject* number);
PyObject* PyObject_CallFunctionObjArgs(PyObject* callable, ...);
PyObject* PyObject_CallObject(PyObject* callable, PyObject* arguments);
int PyObject_IsTrue(PyObject* object);
PyObject* PyObject_Type(PyObject* object);
PyObject* PyTuple_GetItem(PyObject* tuple, Py_ssize_t index);
Py_ssize_t PyTuple_Size(PyObject* tuple);
}

namespace tessera::python {
namespace {

/// A reference to an object, which it owns; or none, where Python has raised an error.
class Object {
 public:
  explicit Object(PyObject* owned) : object_(owned) {}
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  ~Object() { Py_DecRef(object_); }

  PyObject* get() const { return object_; }

  bool is_false() const { return object_ != nullptr && PyObject_IsTrue(object_) == 0; }

 private:
  PyObject* object_;
};

PyObject* type_of(PyObject* object) { return Object(PyObject_Type(object)).get(); }

/// A type of tensors, and functions of its framework. Python's objects live as long as the process.
struct TensorType {
  PyObject* type = nullptr;
  PyObject* num_modes = nullptr;    // whether something traces or redirects operations: not 0,
  PyObject* is_tracing = nullptr;   // or true
  PyObject* empty_bytes = nullptr;  // called with a tensor, for its device, and a length
  const DLPackExchangeAPI* exchange = nullptr;

  bool is_eager() const {
    return Object(PyObject_CallObject(num_modes, nullptr)).is_false() &&
           Object(PyObject_CallObject(is_tracing, nullptr)).is_false();
  }
};

/// The types that are known. A few are enough: torch.Tensor and its plain subclasses. With more,
/// the last ones take the way by the FFI.
std::array<TensorType, 4> known_types;
std::atomic<std::size_t> num_known_types = 0;
std::mutex adding_types;

const TensorType* known(PyObject* type) {
  const std::size_t num_known = num_known_types.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < num_known; ++i) {
    if (known_types[i].type == type) return &known_types[i];
  }
  return nullptr;
}

/// Reads the arguments of a call. A function that returns false has met what needs a conversion or
/// is to be refused.
class Reader {
 public:
  Reader(const TensorType& type, Arguments* arguments) : type_(type), arguments_(*arguments) {}

  bool read(const Argument& argument, PyObject* value) {
    if (value == &_Py_NoneStruct) {
      if (!argument.is_array() || !argument.is_optional()) arguments_.read(argument, nullptr);
      return true;
    }
    PyObject* const type = type_of(value);
    if (!argument.is_array()) {
      // Of other types some are no integers, though Python could make one of them.
      const bool is_flag = argument.kind == Argument::Kind::kFlag;
      if (type != &PyLong_Type && !(is_flag && type == &PyBool_Type)) return false;
      const std::int64_t number = PyLong_AsLongLong(value);
      if (number == -1 && PyErr_Occurred() != nullptr) return false;
      arguments_.read(argument, number);
      return true;
    }
    // Whether autograd follows an array of floats, or it is a negated view, is asked elsewhere.
    // Integers cannot be either: torch makes negated views of complex numbers' imaginary parts.
    if (argument.first_dtype.code != kDLInt || type != type_.type) return false;
    DLTensor tensor;
    if (type_.exchange->dltensor_from_py_object_no_sync(value, &tensor) != 0) return false;
    arguments_.read(argument, &tensor);
    return true;
  }

 private:
  const TensorType& type_;
  Arguments& arguments_;
};

/// Whether the op has run. If not, the arguments need a conversion or are to be refused, or it has
/// failed. args: a tuple of the required outputs, then all other arguments in the order of the
/// table, cut short where defaults will do.
bool call(const OpEntry& op, std::span<PyObject* const> args) {
  const Schema& schema = *op.schema;
  if (args.size() < 1 + schema.inputs.size()) return false;
  if (PyTuple_Size(args[0]) != static_cast<Py_ssize_t>(schema.outputs.size())) return false;
  PyObject* const first = args[1];
  const TensorType* const type = known(type_of(first));
  if (type == nullptr || !type->is_eager()) return false;

  Arguments arguments(op);
  Reader reader(*type, &arguments);
  Py_ssize_t next_output = 0;
  for (const Argument& row : schema.outputs) {
    if (!reader.read(row, PyTuple_GetItem(args[0], next_output++))) return false;
  }
  std::span<PyObject* const> left = args.subspan(1);
  for (const auto rows : {schema.inputs, schema.numbers, schema.rest}) {
    const std::size_t num_given = std::min(rows.size(), left.size());
    for (std::size_t i = 0; i < num_given; ++i) {
      if (!reader.read(rows[i], left[i])) return false;
    }
    left = left.subspan(num_given);
  }
  if (!left.empty()) return false;
  Context context;
  context.device = arguments.view(schema.inputs.front()).device;
  const auto [device_type, device_id] = context.device;
  if (device_type != kDLCPU &&
      type->exchange->current_work_stream(device_type, device_id, &context.stream) != 0) {
    return false;
  }
  const std::int64_t missing = run(op, arguments, context);
  if (missing == 0) return true;
  const Object length(PyLong_FromLongLong(missing));
  const Object workspace(
      PyObject_CallFunctionObjArgs(type->empty_bytes, first, length.get(), nullptr));
  DLTensor memory;
  return workspace.get() != nullptr &&
         type->exchange->dltensor_from_py_object_no_sync(workspace.get(), &memory) == 0 &&
         run(op, arguments, context, bytes_of(&memory)) == 0;
}

PyObject* call_from_python(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
  bool has_run = false;
  try {
    has_run = call(*static_cast<const OpEntry*>(PyLong_AsVoidPtr(self)),
                   {args, static_cast<std::size_t>(num_args)});
  } catch (const std::exception&) {
    // The caller then calls the op by the FFI, which raises the same.
  }
  if (!has_run && PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_Exception) == 0) return nullptr;  // such as KeyboardInterrupt
    PyErr_Clear();
  }
  return PyBool_FromLong(has_run);
}

}  // namespace

/// A builtin function that calls an op; for ctypes.
extern "C" TVM_FFI_DLL_EXPORT PyObject* tessera_direct_call(const char* op) {
  static PyMethodDef method{"direct_call", call_from_python, METH_FASTCALL, nullptr};
  // Python's pointers are not to constants.
  const Object self(PyLong_FromVoidPtr(const_cast<OpEntry*>(find_op(op))));
  return PyCFunction_NewEx(&method, self.get(), nullptr);
}

/// Makes a type of tensors known, unless it lacks DLPack's C functions in a version known here.
extern "C" TVM_FFI_DLL_EXPORT void tessera_add_tensor_type(PyObject* type, PyObject* capsule,
                                                           PyObject* num_modes,
                                                           PyObject* is_tracing,
                                                           PyObject* empty_bytes) {
  constexpr const char* kName = "dlpack_exchange_api";
  if (PyCapsule_IsValid(capsule, kName) == 0) return;
  const auto* const exchange =
      static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, kName));
  if (exchange->header.version.major != DLPACK_MAJOR_VERSION ||
      exchange->dltensor_from_py_object_no_sync == nullptr) {
    return;
  }
  const std::lock_guard lock(adding_types);  // for a Python without an interpreter lock
  const std::size_t number = num_known_types;
  if (number == known_types.size() || known(type) != nullptr) return;
  for (PyObject* const one : {type, num_modes, is_tracing, empty_bytes}) Py_IncRef(one);
  TensorType& added = known_types[number];
  added.type = type;
  added.num_modes = num_modes;
  added.is_tracing = is_tracing;
  added.empty_bytes = empty_bytes;
  added.exchange = exchange;
  num_known_types.store(number + 1, std::memory_order_release);
}

}  // namespace tessera::python
