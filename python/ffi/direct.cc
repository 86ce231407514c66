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

#include "new_array.hpp"
#include "run.hpp"

namespace tessera::python {
namespace {

/// A type of tensors, and functions of its framework. Python's objects live as long as the process.
struct TensorType {
  PyObject* type = nullptr;
  PyObject* num_modes = nullptr;     // whether something traces or redirects operations: not 0,
  PyObject* is_tracing = nullptr;    // or true
  PyObject* empty_bytes = nullptr;   // called with a tensor, for its device, and a length
  PyObject* is_neg = nullptr;        // whether a tensor is a negated view
  PyObject* forward_mode = nullptr;  // its _current_level is -1 outside of forward-mode autograd
  const DLPackExchangeAPI* exchange = nullptr;

  bool is_eager() const {
    static PyObject* const current_level = PyUnicode_InternFromString("_current_level");
    const Object level(PyObject_GetAttr(forward_mode, current_level));
    return level.get() != nullptr && PyLong_AsLongLong(level.get()) == -1 &&
           PyErr_Occurred() == nullptr &&
           Object(PyObject_CallObject(num_modes, nullptr)).is_false() &&
           Object(PyObject_CallObject(is_tracing, nullptr)).is_false();
  }

  bool is_on_host(PyObject* tensor) const {
    DLTensor view;
    return exchange->dltensor_from_py_object_no_sync(tensor, &view) == 0 &&
           view.device.device_type == kDLCPU;
  }

  /// Whether the memory of all tensors among these values, and in tuples of such, holds what they
  /// are, and autograd does not follow them. Python's code may run meanwhile, and change a tensor:
  /// so all are asked before one is read.
  bool are_plain(std::span<PyObject* const> values) const {
    return std::ranges::all_of(values, [&](PyObject* value) {
      if (type_of(value) != &PyTuple_Type) return is_plain(value);
      for (Py_ssize_t i = 0; i < PyTuple_Size(value); ++i) {
        if (!is_plain(PyTuple_GetItem(value, i))) return false;
      }
      return true;
    });
  }

 private:
  bool is_plain(PyObject* value) const {
    static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
    return type_of(value) != type ||
           (Object(PyObject_CallFunctionObjArgs(is_neg, value, nullptr)).is_false() &&
            Object(PyObject_GetAttr(value, requires_grad)).is_false());
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
    if (argument.is_array()) return read_array(argument, value);
    PyObject* const type = type_of(value);
    if (!argument.choices.empty()) {
      Py_ssize_t size = 0;
      const char* const text =
          type == &PyUnicode_Type ? PyUnicode_AsUTF8AndSize(value, &size) : nullptr;
      if (text == nullptr) return false;
      arguments_.read(argument, ffi::String(text, static_cast<std::size_t>(size)));
      return true;
    }
    if (argument.kind == Argument::Kind::kFloat32) {
      if (type != &PyFloat_Type) return false;
      arguments_.read(argument, PyFloat_AsDouble(value));
      return true;
    }
    // Of other types some are no integers, though Python could make one of them.
    const bool is_flag = argument.kind == Argument::Kind::kFlag;
    if (type != &PyLong_Type && !(is_flag && type == &PyBool_Type)) return false;
    const std::int64_t number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred() != nullptr) return false;
    arguments_.read(argument, number);
    return true;
  }

  /// Reads values of consecutive rows, as far as there are any, and removes them.
  bool read(std::span<const Argument> rows, std::span<PyObject* const>* values) {
    const std::size_t num_given = std::min(rows.size(), values->size());
    for (std::size_t i = 0; i < num_given; ++i) {
      if (!read(rows[i], (*values)[i])) return false;
    }
    *values = values->subspan(num_given);
    return true;
  }

  /// Reads required outputs, which are in a tuple if there are several.
  bool read_outputs(std::span<const Argument> rows, PyObject* out) {
    if (rows.size() == 1) return read(rows.front(), out);
    if (PyTuple_Size(out) != static_cast<Py_ssize_t>(rows.size())) return false;
    Py_ssize_t place = 0;
    for (const Argument& row : rows) {
      if (!read(row, PyTuple_GetItem(out, place++))) return false;
    }
    return true;
  }

 private:
  bool read_array(const Argument& argument, PyObject* value) {
    DLTensor tensor;
    if (type_of(value) != type_.type ||
        type_.exchange->dltensor_from_py_object_no_sync(value, &tensor) != 0) {
      return false;
    }
    arguments_.read(argument, &tensor);
    return true;
  }

  const TensorType& type_;
  Arguments& arguments_;
};

/// New outputs in a tuple, on the host; none where they have to be made elsewhere.
PyObject* new_outputs(const OpEntry& op, const TensorType& type, const Context& context,
                      Arguments* arguments) {
  const std::span<const Argument> rows = op.schema->outputs;
  OpSizes sizes;
  if (!op.sizes(arguments->get(), context, &sizes).ok()) return nullptr;
  Object outputs(PyTuple_New(static_cast<Py_ssize_t>(rows.size())));
  Py_ssize_t place = 0;
  for (const Argument& row : rows) {
    PyObject* const made = new_array(*type.exchange, row, sizes.symbols, &arguments->view(row));
    if (made == nullptr || PyTuple_SetItem(outputs.get(), place++, made) != 0) return nullptr;
  }
  return outputs.release();
}

/// A named tuple of the elements of a tuple, made as `tuple.__new__` makes it.
PyObject* named_tuple(PyObject* type, PyObject* elements) {
  const auto make = reinterpret_cast<PyObject* (*)(PyObject*, PyObject*, PyObject*)>(
      PyType_GetSlot(&PyTuple_Type, Py_tp_new));
  const Object arguments(PyTuple_Pack(1, elements));
  return make(type, arguments.get(), nullptr);
}

/// The result of a call of the op; none where it has not run, because the arguments need a
/// conversion or are to be refused, or it has failed. result_type: the named tuple of new outputs;
/// None where there is only one. args: the required outputs, in a tuple if there are several, or
/// None for new ones; the number of threads, or None; then all other arguments in the order of the
/// table, cut short where defaults will do.
PyObject* call(const OpEntry& op, PyObject* result_type, std::span<PyObject* const> args) {
  const Schema& schema = *op.schema;
  if (args.size() < 2 + schema.inputs.size()) return nullptr;
  PyObject* const out = args[0];
  PyObject* const num_threads = args[1];
  PyObject* const first = args[2];
  const TensorType* const type = known(type_of(first));
  const bool is_new = out == &_Py_NoneStruct;
  if (type == nullptr || (is_new && !type->is_on_host(first)) || !type->is_eager() ||
      !type->are_plain(args)) {
    return nullptr;
  }

  Arguments arguments(op);
  Reader reader(*type, &arguments);
  if (!reader.read(schema.inputs.front(), first)) return nullptr;
  Context context;
  context.device = arguments.view(schema.inputs.front()).device;
  const auto [device_type, device_id] = context.device;
  if (num_threads != &_Py_NoneStruct) {
    if (type_of(num_threads) != &PyLong_Type) return nullptr;
    context.num_threads = int32_of(schema.op, "num_threads", PyLong_AsLongLong(num_threads));
  }
  std::span<PyObject* const> left = args.subspan(3);
  if (!reader.read(schema.inputs.subspan(1), &left) || !reader.read(schema.numbers, &left) ||
      !reader.read(schema.rest, &left) || !left.empty()) {
    return nullptr;
  }
  const Object made(is_new ? new_outputs(op, *type, context, &arguments) : nullptr);
  if (is_new ? made.get() == nullptr : !reader.read_outputs(schema.outputs, out)) return nullptr;
  if (device_type != kDLCPU &&
      type->exchange->current_work_stream(device_type, device_id, &context.stream) != 0) {
    return nullptr;
  }
  if (const std::int64_t missing = run(op, arguments, context); missing != 0) {
    const Object length(PyLong_FromLongLong(missing));
    const Object workspace(
        PyObject_CallFunctionObjArgs(type->empty_bytes, first, length.get(), nullptr));
    DLTensor memory;
    if (workspace.get() == nullptr ||
        type->exchange->dltensor_from_py_object_no_sync(workspace.get(), &memory) != 0 ||
        run(op, arguments, context, bytes_of(&memory)) != 0) {
      return nullptr;
    }
  }
  if (is_new && result_type != &_Py_NoneStruct) return named_tuple(result_type, made.get());
  PyObject* const result = is_new ? PyTuple_GetItem(made.get(), 0) : out;
  Py_IncRef(result);
  return result;
}

/// self: the address of the op's entry, and `result_type`.
PyObject* call_from_python(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
  PyObject* result = nullptr;
  try {
    result = call(*static_cast<const OpEntry*>(PyLong_AsVoidPtr(PyTuple_GetItem(self, 0))),
                  PyTuple_GetItem(self, 1), {args, static_cast<std::size_t>(num_args)});
  } catch (const std::exception&) {
    // The caller then calls the op by the FFI, which raises the same.
  }
  if (result != nullptr) return result;
  if (PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_Exception) == 0) return nullptr;  // such as KeyboardInterrupt
    PyErr_Clear();
  }
  Py_IncRef(&_Py_NoneStruct);
  return &_Py_NoneStruct;
}

}  // namespace

/// A builtin function that calls an op; for ctypes. Its arguments and result are those of call().
extern "C" TVM_FFI_DLL_EXPORT PyObject* tessera_direct_call(const char* op, PyObject* result_type) {
  static PyMethodDef method{"direct_call", call_from_python, METH_FASTCALL, nullptr};
  // Python's pointers are not to constants.
  const Object entry(PyLong_FromVoidPtr(const_cast<OpEntry*>(find_op(op))));
  const Object self(PyTuple_Pack(2, entry.get(), result_type));
  return PyCFunction_NewEx(&method, self.get(), nullptr);
}

/// Makes a type of tensors known, unless it lacks DLPack's C functions in a version known here.
extern "C" TVM_FFI_DLL_EXPORT void tessera_add_tensor_type(PyObject* type, PyObject* capsule,
                                                           PyObject* num_modes,
                                                           PyObject* is_tracing,
                                                           PyObject* empty_bytes, PyObject* is_neg,
                                                           PyObject* forward_mode) {
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
  for (PyObject* const one : {type, num_modes, is_tracing, empty_bytes, is_neg, forward_mode}) {
    Py_IncRef(one);
  }
  known_types[number] = {type, num_modes, is_tracing, empty_bytes, is_neg, forward_mode, exchange};
  num_known_types.store(number + 1, std::memory_order_release);
}

}  // namespace tessera::python
