// cuDNN's graph interface: descriptors are objects with numbered attributes. Runs graphs of one convolution, and those of
// cudnn_graph.h. Included by driver.cpp.

struct Object {
  int kind, engine = 0;
  bool finished = false;
  std::map<int, std::vector<char>> values; // by attribute
  std::map<int, std::vector<std::shared_ptr<Object>>> objects;
  const Object &object(int name) const { return *objects.at(name).at(0); }
  int number(int name) const { return *(const int *)values.at(name).data(); }
  long long integer(int name, size_t i = 0) const { return ((const long long *)values.at(name).data())[i]; }
};
typedef std::shared_ptr<Object> Held;
enum { INT64 = 3, FLOAT = 4, DOUBLE = 5, OBJECT = 15 };
static size_t size_of(int type) { return type == INT64 || type == DOUBLE || type == 6 || type == 0 ? 8 : type == 2 ? 1 : 4; }
static bool dnn() { return getenv("EMULATED_CUDNN") != nullptr; }
int cudnnCreate(void **h) { *h = (void *)112; return 0; }
OK(cudnnDestroy, void *)
OK(cudnnSetStream, void *, void *)
size_t cudnnGetVersion() { return 91900; }
int cudnnBackendCreateDescriptor(int kind, Held **d) { *d = new Held(new Object{kind}); return 0; }
int cudnnBackendDestroyDescriptor(Held *d) { delete d; return 0; }
int cudnnBackendSetAttribute(Held *d, int name, int type, long long count, const void *at) {
  if ((*d)->finished || count < 1) return 2000;
  if (type == OBJECT) {
    for (long long i = 0; i < count; i++) {
      Held &object = *((Held **)at)[i];
      if (!object->finished) return 2004;
      (*d)->objects[name].push_back(object);
    }
  } else (*d)->values[name].assign((const char *)at, (const char *)at + count * size_of(type));
  return 0;
}
enum { NONDETERMINISTIC = 1, GOOD, REFUSED, LARGE };
int cudnnBackendFinalize(Held *d) {
  Object &o = **d;
  o.finished = true;
  auto on_the_handle = [&](int name) { return o.values.count(name) && o.integer(name) == 112; };
  if (o.kind == 5) return o.object(401).engine == REFUSED ? 3000 : on_the_handle(400) ? 0 : 2000;
  if (o.kind == 15) return on_the_handle(800) ? 0 : 2000;
  return 0;
}
int cudnnBackendGetAttribute(Held *d, int name, int type, long long most, long long *count, void *at) {
  Object &o = **d;
  if (!o.finished && o.kind != 2 && o.kind != 3) return 2004;
  *count = 1;
  if (name == 202) { // the engines to try: by the better heuristic (mode 3), and by the other
    const int engines[] = {NONDETERMINISTIC, REFUSED, LARGE, GOOD}, mode = *(int *)o.values.at(200).data();
    *count = !dnn() ? 0 : mode == 3 ? 4 : 1;
    for (int i = 0; i < most && i < *count; i++) {
      Object &to = ***((Held **)at + i);
      to.engine = mode == 3 ? engines[i] : GOOD;
      to.finished = true;
      to.objects[-1] = o.objects.at(201);
    }
  } else if (name == 300) { // the engine of a configuration
    if (most) { (**(Held **)at)->engine = o.engine; (**(Held **)at)->finished = true; (**(Held **)at)->objects = o.objects; }
  } else if (name == 1303) { // its notes
    *(int *)at = 4;
    *count = o.engine == NONDETERMINISTIC;
  } else if (name == 1305) { // kernels for graphs of several operations are compiled at run time
    *(int *)at = 0;
    *count = o.object(-1).objects.at(801).size() > 1;
  }
  else if (name == 402) *(long long *)at = o.object(401).engine == LARGE ? 1ll << 40 : 1000;
  else return 2000;
  return 0;
}
// A tensor of images, and the index of its element (n, c, h, w).
struct Image {
  const Object &o;
  int type;
  void *at;
  Image(const Object &o, void *at) : o(o), at(at) {
    int t = *(int *)o.values.at(901).data();
    type = t == 0 ? 0 : t == 1 ? 1 : t == 2 ? 2 : t == 9 ? 3 : -1;
    if (type < 0 || (ull)at % o.integer(900)) { fprintf(stderr, "emulated driver: a tensor of type %d at %p\n", t, at); abort(); }
  }
  long long size(int axis) const { return o.integer(902, axis); }
  size_t index(long long n, long long c, long long h, long long w) const {
    return n * o.integer(903, 0) + c * o.integer(903, 1) + h * o.integer(903, 2) + w * o.integer(903, 3);
  }
};
static int convolve(const Object &node, const Object &pack) {
  const int way = node.kind == 10 ? 0 : node.kind == 12 ? 1 : 2;
  const char *names[] = {"forward", "backward data", "backward filter"};
  TRACE("convolution %s\n", names[way]);
  // The attributes for x, w, y, the convolution and the two factors.
  const int attributes[3][6] = {{704, 703, 705, 702, 700, 701}, {710, 709, 711, 708, 706, 707}, {716, 715, 717, 714, 712, 713}};
  const int *name = attributes[way];
  auto operand = [&](int i) {
    const Object &tensor = node.object(name[i]);
    for (size_t k = 0; k < 3; k++) if (pack.integer(1000, k) == tensor.integer(906)) return Image(tensor, (void *)pack.integer(1001, k));
    fprintf(stderr, "emulated driver: an operand without an address\n");
    abort();
  };
  Image x = operand(0), w = operand(1), y = operand(2);
  const Object &c = node.object(name[3]);
  auto factor = [&](int i) { auto &v = node.values.at(name[i]); return v.size() == 8 ? *(double *)v.data() : *(float *)v.data(); };
  if (factor(4) != 1 || factor(5) != 0 || node.values.at(name[4]).size() != (x.type == 1 ? 8 : 4)) return 2000;
  long long N = x.size(0), C = x.size(1), H = x.size(2), V = x.size(3), K = w.size(0), CG = w.size(1), R = w.size(2), S = w.size(3);
  if (y.size(0) != N || y.size(1) != K || C % CG || x.type != w.type || x.type != y.type) return 2001;
  long long G = C / CG;
  const Image &to = way == 0 ? y : way == 1 ? x : w;
  std::vector<double> out(to.size(0) * to.size(1) * to.size(2) * to.size(3));
  for (int n = 0; n < N; n++) for (int k = 0; k < K; k++) for (int i = 0; i < y.size(2); i++) for (int j = 0; j < y.size(3); j++) {
    size_t yi = y.index(n, k, i, j);
    for (int q = 0; q < CG; q++) for (int r = 0; r < R; r++) for (int s = 0; s < S; s++) {
      long long a = i * c.integer(103, 0) + r * c.integer(102, 0) - c.integer(105, 0), b = j * c.integer(103, 1) + s * c.integer(102, 1) - c.integer(105, 1);
      if (a < 0 || b < 0 || a >= H || b >= V) continue;
      size_t xi = x.index(n, k / (K / G) * CG + q, a, b), wi = w.index(k, q, r, s);
      if (way == 0) out[yi] += read(x.at, x.type, xi) * read(w.at, w.type, wi);
      else if (way == 1) out[xi] += read(y.at, x.type, yi) * read(w.at, w.type, wi);
      else out[wi] += read(y.at, x.type, yi) * read(x.at, x.type, xi);
    }
  }
  for (size_t i = 0; i < out.size(); i++) write(to.at, to.type, i, out[i]);
  return 0;
}

#include "cudnn_graph.h"

int cudnnBackendExecute(void *, Held *plan, Held *operands) {
  const Object &config = (*plan)->object(401), &pack = **operands;
  const auto &nodes = config.object(-1).objects.at(801);
  if (config.engine != GOOD) { fprintf(stderr, "emulated driver: a plan that must not be used\n"); abort(); }
  memset((void *)pack.integer(1003), 1, 1000);
  if (nodes.size() == 1) return convolve(*nodes[0], pack);
  Graph(pack).run(nodes);
  return 0;
}
