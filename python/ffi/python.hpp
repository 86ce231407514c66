// Of Python's stable interface (PEP 384), what is needed here. Its headers are not: many systems
// that can build the package lack them.
#pragma once

#include <cstddef>
#include <utility>

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
constexpr int Py_tp_new = 65;

extern PyObject _Py_NoneStruct;   // NOLINT(bugprone-reserved-identifier)
extern PyObject _Py_FalseStruct;  // NOLINT(bugprone-reserved-identifier)
extern PyObject PyBool_Type;
extern PyObject PyFloat_Type;
extern PyObject PyLong_Type;
extern PyObject PyTuple_Type;
extern PyObject PyUnicode_Type;
extern PyObject* PyExc_Exception;
void* PyEval_SaveThread();
void PyEval_RestoreThread(void* thread);
PyObject* PyCFunction_NewEx(PyMethodDef* method, PyObject* self, PyObject* module);
int PyCapsule_IsValid(PyObject* capsule, const char* name);
void* PyCapsule_GetPointer(PyObject* capsule, const char* name);
PyObject* PyErr_Occurred();
void PyErr_Clear();
int PyErr_ExceptionMatches(PyObject* kind);
double PyFloat_AsDouble(PyObject* number);
void Py_IncRef(PyObject* object);
void Py_DecRef(PyObject* object);
PyObject* PyLong_FromLongLong(long long value);
PyObject* PyLong_FromVoidPtr(void* value);
long long PyLong_AsLongLong(PyObject* number);
void* PyLong_AsVoidPtr(PyObject* number);
PyObject* PyObject_CallFunctionObjArgs(PyObject* callable, ...);
PyObject* PyObject_CallObject(PyObject* callable, PyObject* arguments);
PyObject* PyObject_GetAttr(PyObject* object, PyObject* name);
int PyObject_IsTrue(PyObject* object);
PyObject* PyObject_Type(PyObject* object);
PyObject* PyTuple_GetItem(PyObject* tuple, Py_ssize_t index);
PyObject* PyTuple_New(Py_ssize_t size);
PyObject* PyTuple_Pack(Py_ssize_t size, ...);
int PyTuple_SetItem(PyObject* tuple, Py_ssize_t index, PyObject* owned);
Py_ssize_t PyTuple_Size(PyObject* tuple);
void* PyType_GetSlot(PyObject* type, int slot);
const char* PyUnicode_AsUTF8AndSize(PyObject* text, Py_ssize_t* size);
PyObject* PyUnicode_InternFromString(const char* text);
}

namespace tessera::python {

/// A reference to an object, which it owns; or none, where Python has raised an error.
class Object {
 public:
  explicit Object(PyObject* owned) : object_(owned) {}
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  ~Object() { Py_DecRef(object_); }

  PyObject* get() const { return object_; }

  bool is_false() const { return object_ != nullptr && PyObject_IsTrue(object_) == 0; }

  /// The reference, which the caller owns from then on.
  PyObject* release() { return std::exchange(object_, nullptr); }

 private:
  PyObject* object_;
};

/// The type of an object, which the object keeps alive.
inline PyObject* type_of(PyObject* object) { return Object(PyObject_Type(object)).get(); }

}  // namespace tessera::python
