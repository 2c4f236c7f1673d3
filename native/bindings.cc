// The only file that sees Python: buffers in, plain structs to the kernel.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>

#include "attention.h"
#include "memory.h"
#include "pool.h"

namespace nb = nanobind;
using namespace chumoku;

namespace {

// No position lies beyond, as chumoku.mask has it.
constexpr int64_t kFarthest = int64_t{1} << 60;

// The buffers that a call borrows; given back when it ends.
class Buffers {
 public:
  Buffers() = default;
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers() {
    for (Py_buffer& one : borrowed_) PyBuffer_Release(&one);
  }

  const Py_buffer& borrow(nb::handle array, bool writable) {
    Py_buffer view;
    int flags = PyBUF_STRIDES | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(array.ptr(), &view, flags) != 0) nb::raise_python_error();
    borrowed_.push_back(view);
    return borrowed_.back();
  }

  // Contiguous memory of a whole array, or null for None.
  template <class T>
  T* flat(nb::handle array, bool writable = false) {
    if (array.is_none()) return nullptr;
    const Py_buffer& view = borrow(array, writable);
    Py_ssize_t expected = view.itemsize;
    for (int i = view.ndim - 1; i >= 0; --i) {
      if (view.shape[i] != 1 && view.len != 0 && view.strides[i] != expected)
        throw std::invalid_argument("an array that must be contiguous is not");
      expected *= view.shape[i];
    }
    return static_cast<T*>(view.buf);
  }

 private:
  std::deque<Py_buffer> borrowed_;
};

// The view (batch..., heads, rows, columns) of a buffer.
View view_of(const Py_buffer& b) {
  if (b.ndim < 3) throw std::invalid_argument("an array has fewer than 3 axes");
  View view;
  view.data = static_cast<const char*>(b.buf);
  view.head = b.strides[b.ndim - 3];
  view.row = b.strides[b.ndim - 2];
  view.column = b.strides[b.ndim - 1];
  view.batch = {0};
  for (int axis = 0; axis < b.ndim - 3; ++axis) {
    std::vector<int64_t> longer;
    for (int64_t start : view.batch)
      for (Py_ssize_t i = 0; i < b.shape[axis]; ++i) longer.push_back(start + i * b.strides[axis]);
    view.batch = std::move(longer);
  }
  return view;
}

// The output's heads may lie inside its rows.
void set_output(Problem& p, Buffers& buffers, nb::handle array) {
  const Py_buffer& out = buffers.borrow(array, true);
  p.output = static_cast<char*>(out.buf);
  p.output_rows = view_of(out);
  if (out.len != 0 && out.shape[out.ndim - 1] != 1 && p.output_rows.column != out.itemsize)
    throw std::invalid_argument("an output whose rows are not contiguous");
}

int add_node(Mask& mask, Buffers& buffers, nb::handle lowered) {
  nb::tuple fields = nb::cast<nb::tuple>(lowered);
  std::string kind = nb::cast<std::string>(fields[0]);
  MaskNode node{};
  if (kind == "all" || kind == "any") {
    node.kind = kind == "all" ? MaskNode::Kind::all : MaskNode::Kind::any;
    for (nb::handle part : fields[1]) node.parts.push_back(add_node(mask, buffers, part));
  } else if (kind == "boolean" || kind == "bits") {
    node.kind = kind == "bits" ? MaskNode::Kind::bits : MaskNode::Kind::boolean;
    node.cells = view_of(buffers.borrow(fields[1], false));
  } else {
    const Py_buffer& shape = buffers.borrow(fields[1], false);
    node.entries = shape.shape[0];
    node.first = buffers.flat<const int64_t>(fields[1]);
    if (kind == "band") {
      node.kind = MaskNode::Kind::band;
    } else {
      node.kind = kind == "runs" ? MaskNode::Kind::runs : MaskNode::Kind::equal;
      node.runs = kind == "runs" ? shape.shape[2] : 0;
      node.second = buffers.flat<const int64_t>(fields[2]);
    }
  }
  mask.nodes.push_back(std::move(node));
  return static_cast<int>(mask.nodes.size()) - 1;
}

Dtype dtype_of(const std::string& name) {
  if (name == "float64") return Dtype::f64;
  if (name == "float32") return Dtype::f32;
  if (name == "float16") return Dtype::f16;
  if (name == "bfloat16") return Dtype::bf16;
  throw std::invalid_argument("an unknown dtype: " + name);
}

// Query and key of a problem, and the sizes that they bring.
void set_inputs(Problem& p, const Py_buffer& q, const Py_buffer& k) {
  p.query = view_of(q);
  p.key = view_of(k);
  p.batch = static_cast<int64_t>(p.query.batch.size());
  p.heads = q.shape[q.ndim - 3];
  p.rows = q.shape[q.ndim - 2];
  p.width = q.shape[q.ndim - 1];
  p.kv_heads = k.shape[k.ndim - 3];
  p.keys = k.shape[k.ndim - 2];
}

// A call's inputs, with the buffers that they borrow. `options` has the names of Problem's fields;
// those that are not there keep their defaults.
class Inputs {
 public:
  Problem problem;
  Buffers buffers;

  Inputs(nb::handle query, nb::handle key, nb::dict options) : options_(std::move(options)) {
    const Py_buffer& q = buffers.borrow(query, false);
    const Py_buffer& k = buffers.borrow(key, false);
    Problem& p = problem;
    p.dtype = dtype_of(nb::cast<std::string>(options_["dtype"]));
    set_inputs(p, q, k);
    p.scale = nb::cast<double>(options_["scale"]);
    if (has("softcap")) p.softcap = nb::cast<double>(options_["softcap"]);
    p.row_index = flat<const int64_t>("rows");
    p.position = flat<const int64_t>("position");
    p.sinks = flat<const double>("sinks");
    if (has("bias")) {
      p.biased = true;
      p.bias = view_of(buffers.borrow(options_["bias"], false));
    }
    if (has("dropout")) {
      nb::tuple fields = nb::cast<nb::tuple>(options_["dropout"]);
      p.dropped = true;
      p.seed = nb::cast<uint64_t>(fields[0]);
      p.threshold = nb::cast<uint64_t>(fields[1]);
      p.kept_factor = nb::cast<double>(fields[2]);
    }
    if (has("mask")) {
      mask_.queries = nb::cast<int64_t>(options_["queries"]);
      mask_.keys = p.keys;
      add_node(mask_, buffers, options_["mask"]);
      p.mask = &mask_;
    }
  }

  template <class T>
  T* flat(const char* name, bool writable = false) {
    return has(name) ? buffers.flat<T>(options_[name], writable) : nullptr;
  }

  // A fact's array; what is not watched is not there.
  template <class T>
  T* fact(const nb::dict& facts, const char* name) {
    return facts.contains(name) ? buffers.flat<T>(facts[name], true) : nullptr;
  }

 private:
  bool has(const char* name) const { return options_.contains(name); }

  nb::dict options_;
  Mask mask_;
};

// A thread that waits for the GIL while the interpreter goes down is ended by it, in the middle of
// C++: the process would abort. So, once the interpreter exits, threads other than the one which
// ends it never come back from a call; they sleep until the process is gone.
std::atomic<bool> exiting{false};
std::atomic<int> returning{0};
std::atomic<unsigned long> exiting_thread{0}, main_thread{0};

[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  main_thread = PyThread_get_thread_ident();  // Python's rule for a child
  returning = 0;
});

// The one way to the GIL: `take` takes it.
template <class Take>
auto to_python(const Take& take) {
  ++returning;
  if (exiting && exiting_thread != PyThread_get_thread_ident()) {
    --returning;
    for (;;) pause();
  }
  auto taken = take();
  --returning;
  return taken;
}

// Runs first when the interpreter exits. Who is on the way to the GIL still gets it.
void begin_exit() {
  exiting_thread = PyThread_get_thread_ident();
  exiting = true;
  set_threads(1);
  nb::gil_scoped_release release;
  for (int i = 0; i < 1000 && returning != 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// Holds the GIL on any thread.
class WithGil {
 public:
  WithGil() : state_(to_python([] { return PyGILState_Ensure(); })) {}
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;
  ~WithGil() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_;
};

// Ctrl-C is looked for from inside a long call. Signals are the main thread's: others do not ask,
// for each question may wait for the GIL.
bool interrupted() {
  if (main_thread != PyThread_get_thread_ident()) return false;
  WithGil gil;
  return PyErr_CheckSignals() != 0;
}

template <class Work>
void without_gil(const Work& work) {
  bool finished = false;
  std::exception_ptr failure;
  PyThreadState* state = PyEval_SaveThread();
  try {
    finished = work();
  } catch (...) {
    failure = std::current_exception();
  }
  to_python([&] {
    PyEval_RestoreThread(state);
    return true;
  });
  if (failure) std::rethrow_exception(failure);
  if (!finished) nb::raise_python_error();
}

int64_t last_axis(const nb::dict& arrays, const char* name, int back) {
  if (!arrays.contains(name)) return 0;
  nb::tuple shape = nb::cast<nb::tuple>(nb::getattr(arrays[name], "shape"));
  return nb::cast<int64_t>(shape[nb::len(shape) - static_cast<size_t>(back)]);
}

void run_attention(nb::handle query, nb::handle key, nb::handle value, nb::handle output,
                   nb::dict options, nb::dict facts) {
  Inputs inputs(query, key, options);
  Problem& p = inputs.problem;
  const Py_buffer& v = inputs.buffers.borrow(value, false);
  p.value = view_of(v);
  p.value_width = v.shape[v.ndim - 1];
  set_output(p, inputs.buffers, output);
  auto fact = [&](const char* name) { return inputs.fact<char>(facts, name); };
  Facts& f = p.facts;
  f.lse = fact("lse");
  f.exact_lse = inputs.fact<double>(facts, "exact_lse");
  f.exact_output = inputs.fact<float>(facts, "exact_output");
  f.max_logit = fact("max_logit");
  f.entropy = fact("entropy");
  f.saturation = fact("saturation");
  f.flow = fact("flow");
  f.distance = fact("distance");
  f.sink_weight = fact("sink_weight");
  f.top_keys = inputs.fact<int64_t>(facts, "top_keys");
  f.top_weights = fact("top_weights");
  f.top = last_axis(facts, "top_keys", 1);
  f.group_mass = fact("group_mass");
  p.totals.masses = inputs.fact<double>(facts, "masses");
  f.group_count = last_axis(facts, p.totals.masses ? "masses" : "group_mass", 1);
  f.groups = f.group_count ? inputs.flat<const int64_t>("groups") : nullptr;
  Totals& t = p.totals;
  t.received = inputs.fact<double>(facts, "received");
  t.seers = inputs.fact<int64_t>(facts, "seers");
  t.cell_sum = inputs.fact<double>(facts, "cell_sum");
  t.cell_most = inputs.fact<double>(facts, "cell_most");
  t.cell_rows = last_axis(facts, "cell_sum", 2);
  t.cell_columns = last_axis(facts, "cell_sum", 1);
  t.queries = nb::cast<int64_t>(options["queries"]);
  without_gil([&] { return attention(p, threads(), interrupted); });
}

// Query, key and value of one rank, and a triangle if it has an offset, and nothing else. False,
// and nothing done, when the sizes need broadcasting or are wrong, or when one of them is 0.
bool run_plain(nb::handle query, nb::handle key, nb::handle value, nb::handle output,
               const char* dtype, std::optional<int64_t> offset) {
  Buffers buffers;
  const Py_buffer& q = buffers.borrow(query, false);
  const Py_buffer& k = buffers.borrow(key, false);
  const Py_buffer& v = buffers.borrow(value, false);
  int rank = q.ndim, lead = rank - 3;
  if (lead < 0 || rank > 32 || k.ndim != rank || v.ndim != rank) return false;
  if (!std::equal(q.shape, q.shape + lead, k.shape) ||
      !std::equal(q.shape, q.shape + lead, v.shape))
    return false;
  const Py_ssize_t *queries = q.shape + lead, *keys = k.shape + lead, *values = v.shape + lead;
  if (q.len == 0 || k.len == 0 || v.len == 0 || queries[0] % keys[0] != 0 || keys[0] != values[0] ||
      keys[1] != values[1] || queries[2] != keys[2] || queries[2] > 1024 || values[2] > 1024)
    return false;
  // With strides of 0 there may be more scores than can be counted.
  if (keys[1] > int64_t{1} << 24) return false;
  Problem p;
  p.dtype = dtype_of(dtype);
  set_inputs(p, q, k);
  p.value = view_of(v);
  p.value_width = values[2];
  p.scale = 1 / std::sqrt(static_cast<double>(p.width));
  set_output(p, buffers, output);
  const int64_t band[] = {0, p.rows, 0, p.keys, -kFarthest, offset.value_or(0)};
  MaskNode triangle{};
  triangle.kind = MaskNode::Kind::band;
  triangle.first = band;
  triangle.entries = 1;
  Mask mask{{triangle}, p.rows, p.keys};
  if (offset) p.mask = &mask;
  without_gil([&] { return attention(p, threads(), interrupted); });
  return true;
}

void run_weights(nb::handle query, nb::handle key, nb::handle lse, nb::handle output,
                 nb::dict options) {
  Inputs inputs(query, key, options);
  const Py_buffer& out = inputs.buffers.borrow(output, true);
  Block block{inputs.flat<const int64_t>("keys"), out.shape[out.ndim - 1],
              inputs.buffers.flat<const double>(lse), static_cast<char*>(out.buf)};
  without_gil([&] { return weights(inputs.problem, block, threads(), interrupted); });
}

// A gradient's rows are written one by one.
View gradient_of(Buffers& buffers, const nb::dict& arrays, const char* name) {
  if (!arrays.contains(name)) return {};
  const Py_buffer& array = buffers.borrow(arrays[name], true);
  View view = view_of(array);
  if (array.len != 0 && array.shape[array.ndim - 1] != 1 && view.column != array.itemsize)
    throw std::invalid_argument("a gradient whose rows are not contiguous");
  return view;
}

void run_backward(nb::handle query, nb::handle key, nb::handle value, nb::dict options,
                  nb::dict arrays) {
  Inputs inputs(query, key, options);
  Problem& p = inputs.problem;
  Buffers& buffers = inputs.buffers;
  const Py_buffer& v = buffers.borrow(value, false);
  p.value = view_of(v);
  p.value_width = v.shape[v.ndim - 1];
  Gradients g;
  g.upstream = view_of(buffers.borrow(arrays["upstream"], false));
  if (arrays.contains("exact_output"))
    g.exact_output = buffers.flat<const float>(arrays["exact_output"]);
  else
    g.output = view_of(buffers.borrow(arrays["output"], false));
  g.lse = buffers.flat<const double>(arrays["lse"]);
  g.pull = buffers.flat<double>(arrays["pull"], true);
  g.twist = inputs.fact<double>(arrays, "twist");
  g.query = gradient_of(buffers, arrays, "query");
  g.key = gradient_of(buffers, arrays, "key");
  g.value = gradient_of(buffers, arrays, "value");
  if (arrays.contains("bias")) g.bias = view_of(buffers.borrow(arrays["bias"], true));
  without_gil([&] { return backward(p, g, threads(), interrupted); });
}

using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

// Memory for a result, given back when the last array that uses it ends.
Bytes empty(size_t bytes) {
  struct Owned {
    char* block;
    size_t bytes;
  };
  auto owned = std::make_unique<Owned>(Owned{take(bytes), bytes});
  Owned* mine = owned.get();
  nb::capsule owner(mine, [](void* one) noexcept {
    Owned* ended = static_cast<Owned*>(one);
    give(ended->block, ended->bytes);
    delete ended;
  });
  owned.release();
  return Bytes(mine->block, {bytes}, owner);
}

// Of the library's errors only this one is raised here: the environment is read here.
void raise_unknown(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const UnknownInstructionSet& unknown) {
    std::string here;
    for (const std::string& name : instruction_sets()) here += (here.empty() ? "" : ", ") + name;
    nb::object type = nb::module_::import_("chumoku.errors").attr("UnavailableError");
    nb::object error =
        type("CHUMOKU_ISA", std::string("the instruction set ") + unknown.what(),
             "one that this machine can run: " + here, "Unset it, and the best one is chosen.");
    PyErr_SetObject(type.ptr(), error.ptr());
  }
}

}  // namespace

NB_MODULE(_native, m) {
  if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0)
    throw nb::import_error(
        "chumoku cannot be imported in a subinterpreter: its threads and its exit belong to the "
        "main one. Import it in the main interpreter, or start another process.");
  nb::object main = nb::module_::import_("threading").attr("main_thread")();
  main_thread = nb::cast<unsigned long>(main.attr("ident"));
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&begin_exit));
  m.doc() = "The native kernel of chumoku; chumoku.kernels.native hands arrays to it.";
  nb::register_exception_translator(raise_unknown);
  m.def("attention", &run_attention, nb::arg("query"), nb::arg("key"), nb::arg("value"),
        nb::arg("output"), nb::arg("options"), nb::arg("facts"));
  m.def("plain", &run_plain, nb::arg("query"), nb::arg("key"), nb::arg("value"), nb::arg("output"),
        nb::arg("dtype"), nb::arg("offset").none());
  m.def("weights", &run_weights, nb::arg("query"), nb::arg("key"), nb::arg("lse"),
        nb::arg("output"), nb::arg("options"));
  m.def("backward", &run_backward, nb::arg("query"), nb::arg("key"), nb::arg("value"),
        nb::arg("options"), nb::arg("arrays"));
  m.def("empty", &empty, nb::arg("bytes"), "Memory for a large result, with anything in it.");
  m.def("threads", &threads, "Threads that a call may use.");
  m.def("set_threads", &set_threads, nb::arg("count"), "0: the automatic choice.");
  m.def("set_automatic", &set_automatic, nb::arg("asked"), nb::arg("openmp"), nb::arg("quota"),
        "What the environment and the cgroup say; 0 where they say nothing.");
  m.def("beside_host", &beside_host, nb::arg("now"),
        "Whether this thread's calls may run on the threads of a loaded OpenMP runtime.");
  m.def("instruction_set", &instruction_set, "The instruction set in use.");
  m.def("instruction_sets", &instruction_sets, "Those this machine can run, best first.");
  m.def("set_instruction_set", &set_instruction_set, nb::arg("name"),
        "Pins one; False when it is unknown or cannot run here.");
}
