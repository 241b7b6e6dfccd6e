// Graphs of matrix products, functions of elements, reductions and transpositions, in the order of the operations. Each
// tensor is rounded to its type; what is between has no memory. Whatever is wrong with a graph aborts. Included by cudnn.h.

struct Tensor {
  int type;
  long long sizes[4], strides[4];
  std::vector<double> values;
  long long count() const { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }
};

struct Graph {
  enum { ADD = 0, MUL = 1, DIV = 6, SUB = 9, EXP = 13, LOG = 15, GREATER_OR_EQUAL = 303, INDEX = 501, SELECT = 601 };
  enum { F32 = 0, F16 = 2, I32 = 4, BF16 = 9, BOOLEAN = 11 };
  const Object &pack;
  std::map<long long, Tensor> tensors;
  std::set<long long> in_memory, used, written;

  explicit Graph(const Object &pack) : pack(pack) {}

  static void check(bool fine, const char *what, long long id = 0) {
    if (fine) return;
    fprintf(stderr, "emulated driver: a graph with %s (%lld)\n", what, id);
    abort();
  }

  static double rounded(int type, double x) {
    double place = 0;
    switch (type) {
    case F32: return float(x);
    case F16: case BF16: write(&place, type == F16 ? 2 : 3, 0, x); return read(&place, type == F16 ? 2 : 3, 0);
    case I32: case BOOLEAN: return x;
    default: check(false, "a type that attention does not have", type); return 0;
    }
  }

  void *address(long long id) const {
    for (size_t i = 0; i < pack.values.at(1000).size() / 8; i++) if (pack.integer(1000, i) == id) return (void *)pack.integer(1001, i);
    check(false, "a tensor without an address", id);
    return nullptr;
  }

  static bool has(const Object &o, int name) { return o.values.count(name) && o.values.at(name)[0]; }

  // The tensor of a descriptor, with the sizes of all that have its id.
  Tensor &tensor(const Object &o) {
    check(o.kind == 17 && o.finished, "an operand that is no tensor", o.kind);
    const long long id = o.integer(906);
    Tensor as = {o.number(901)};
    rounded(as.type, 0);
    check(o.values.at(902).size() == 32 && o.values.at(903).size() == 32, "a tensor that has not four dimensions", id);
    for (int i = 0; i < 4; i++) {
      as.sizes[i] = o.integer(902, i);
      as.strides[i] = o.integer(903, i);
      check(as.sizes[i] > 0 && as.strides[i] > 0, "an empty tensor", id);
    }
    if (!has(o, 907)) in_memory.insert(id);
    auto known = tensors.find(id);
    if (known == tensors.end()) return tensors[id] = as;
    Tensor &is = known->second;
    check(is.type == as.type && !memcmp(is.sizes, as.sizes, 32) && !memcmp(is.strides, as.strides, 32), "two tensors of one id", id);
    return is;
  }

  // Offsets in memory of the elements.
  static std::vector<size_t> offsets(const Tensor &t) {
    std::vector<size_t> all;
    for (long long a = 0; a < t.sizes[0]; a++) for (long long b = 0; b < t.sizes[1]; b++)
      for (long long c = 0; c < t.sizes[2]; c++) for (long long d = 0; d < t.sizes[3]; d++)
        all.push_back(a * t.strides[0] + b * t.strides[1] + c * t.strides[2] + d * t.strides[3]);
    return all;
  }

  static int code(const Tensor &t) { return t.type == F32 ? 0 : t.type == F16 ? 2 : 3; }

  const Tensor &input(const Object &o) {
    Tensor &t = tensor(o);
    const long long id = o.integer(906);
    used.insert(id);
    if (!t.values.empty()) return t;
    check(!has(o, 907), "a tensor that is used before it is made", id);
    const void *at = address(id);
    check(has(o, 908) || (ull)at % o.integer(900) == 0, "a tensor that is not aligned", id);
    check(!has(o, 908) || t.count() == 1, "numbers by value", id);
    check(t.type != BOOLEAN && (t.type != I32 || has(o, 908)), "a type that memory does not have", id);
    for (size_t i : offsets(t)) t.values.push_back(t.type == I32 ? ((const int *)at)[i] : read(at, code(t), i));
    return t;
  }

  void output(const Object &o, std::vector<double> values) {
    Tensor &t = tensor(o);
    check(written.insert(o.integer(906)).second && t.values.empty(), "a tensor that is made twice", o.integer(906));
    check(!has(o, 908) && (long long)values.size() == t.count(), "a result of other sizes", o.integer(906));
    for (double &x : values) x = rounded(t.type, x);
    t.values = std::move(values);
  }

  void product(const Object &node) {
    check(node.object(1523).kind == 18 && node.object(1523).number(1500) == F32, "products that are not added in f32");
    Tensor a = input(node.object(1520));
    const Tensor b = input(node.object(1521)), &c = tensor(node.object(1522));
    const long long heads = a.sizes[1], rows = a.sizes[2], inner = a.sizes[3], columns = b.sizes[3];
    check(b.type == F16 || b.type == BF16, "a product of another type", b.type);
    // What is between in f32 goes to the tensor cores rounded.
    check(a.type == b.type || (a.type == F32 && has(node.object(1520), 907)), "a product of two types", a.type);
    for (double &x : a.values) x = rounded(b.type, x);
    check(b.sizes[0] == a.sizes[0] && heads % b.sizes[1] == 0 && b.sizes[2] == inner, "a product of other sizes");
    const long long sizes[4] = {a.sizes[0], heads, rows, columns};
    check(!memcmp(c.sizes, sizes, 32), "a product of other sizes");
    std::vector<double> to(c.count());
    for (long long m = 0; m < a.sizes[0] * heads; m++) {
      const double *left = &a.values[m * rows * inner];
      const double *right = &b.values[(m / heads * b.sizes[1] + m % heads / (heads / b.sizes[1])) * inner * columns];
      for (long long i = 0; i < rows; i++) for (long long k = 0; k < inner; k++) for (long long j = 0; j < columns; j++)
        to[(m * rows + i) * columns + j] += left[i * inner + k] * right[k * columns + j];
    }
    output(node.object(1522), to);
  }

  static double of(int mode, double x, double b, double t) {
    switch (mode) {
    case ADD: return x + b;
    case SUB: return x - b;
    case MUL: return x * b;
    case DIV: return x / b;
    case EXP: return std::exp(x);
    case LOG: return std::log(x);
    case GREATER_OR_EQUAL: return x >= b;
    case SELECT: return t ? x : b;
    default: check(false, "a function that attention does not have", mode); return 0;
    }
  }

  void elementwise(const Object &node) {
    const Object &how = node.object(750);
    const int mode = how.number(0), inputs = mode == EXP || mode == LOG || mode == INDEX ? 1 : mode == SELECT ? 3 : 2;
    const Tensor y = tensor(node.object(753));
    check(how.kind == 0 && how.number(1) == (y.type == I32 || y.type == BOOLEAN ? y.type : F32), "functions that are not computed in f32");
    check((y.type == BOOLEAN) == (mode == GREATER_OR_EQUAL), "a function of another type", mode);
    const int names[] = {751, 752, 758};
    Tensor from[3];
    for (int n = 0; n < 3; n++) {
      check(node.objects.count(names[n]) == (n < inputs), "a function of another number of tensors", mode);
      if (n < inputs) from[n] = input(node.object(names[n]));
      for (int i = 0; n < inputs && i < 4; i++) check(from[n].sizes[i] == y.sizes[i] || from[n].sizes[i] == 1, "a function of other sizes", mode);
    }
    check((mode == SELECT) == (from[2].type == BOOLEAN && inputs == 3), "a choice by a number", mode);
    std::vector<double> to;
    for (long long a = 0; a < y.sizes[0]; a++) for (long long b = 0; b < y.sizes[1]; b++)
      for (long long c = 0; c < y.sizes[2]; c++) for (long long d = 0; d < y.sizes[3]; d++) {
        const long long index[4] = {a, b, c, d};
        double x[3] = {};
        for (int n = 0; n < inputs; n++) {
          long long at = 0;
          for (int i = 0; i < 4; i++) at = at * from[n].sizes[i] + (from[n].sizes[i] == 1 ? 0 : index[i]);
          x[n] = from[n].values[at];
        }
        to.push_back(mode == INDEX ? index[how.integer(9)] : of(mode, x[0], x[1], x[2]));
      }
    output(node.object(753), to);
  }

  // Over all of a dimension, or over neighbors.
  void reduction(const Object &node) {
    const Object &how = node.object(1612);
    check(how.kind == 21 && how.number(1601) == F32 && (how.number(1600) == 0 || how.number(1600) == 3), "a reduction that is no sum in f32 and no maximum");
    const bool sum = how.number(1600) == 0;
    const Tensor x = input(node.object(1610)), &y = tensor(node.object(1611));
    for (int i = 0; i < 4; i++) check(x.sizes[i] % y.sizes[i] == 0, "a reduction to other sizes");
    std::vector<double> to(y.count(), sum ? 0 : -INFINITY);
    for (long long n = 0; n < x.count(); n++) {
      long long rest = n, at = 0, step = 1;
      for (int i = 4; i-- > 0; rest /= x.sizes[i], step *= y.sizes[i]) at += rest % x.sizes[i] / (x.sizes[i] / y.sizes[i]) * step;
      if (sum) to[at] += x.values[n];
      else if (!(x.values[n] <= to[at])) to[at] = x.values[n]; // NaN too
    }
    output(node.object(1611), to);
  }

  void transposition(const Object &node) {
    const Tensor x = input(node.object(2200)), &y = tensor(node.object(2201));
    const int order[] = {0, 1, 3, 2};
    for (int i = 0; i < 4; i++) check(y.sizes[i] == x.sizes[order[i]] && y.strides[i] == x.strides[order[i]], "a view that is not the transposed");
    std::vector<double> to;
    for (long long m = 0; m < x.sizes[0] * x.sizes[1]; m++) for (long long i = 0; i < x.sizes[3]; i++) for (long long j = 0; j < x.sizes[2]; j++)
      to.push_back(x.values[(m * x.sizes[2] + j) * x.sizes[3] + i]);
    output(node.object(2201), to);
  }

  void run(const std::vector<Held> &nodes) {
    TRACE("attention of %zu operations\n", nodes.size());
    for (const Held &node : nodes) switch (node->kind) {
      case 13: elementwise(*node); break;
      case 19: product(*node); break;
      case 22: reduction(*node); break;
      case 31: transposition(*node); break;
      default: check(false, "an operation that attention does not have", node->kind);
    }
    std::set<long long> given;
    for (size_t i = 0; i < pack.values.at(1000).size() / 8; i++) given.insert(pack.integer(1000, i));
    check(given == in_memory && pack.values.at(1001).size() == pack.values.at(1000).size(), "other tensors than have addresses");
    for (auto &entry : tensors) {
      const long long id = entry.first;
      check(in_memory.count(id) || used.count(id), "a result that nothing uses", id);
      if (!in_memory.count(id) || !written.count(id)) continue;
      const Tensor &t = entry.second;
      void *at = address(id);
      check((ull)at % 16 == 0, "a tensor that is not aligned", id);
      const auto to = offsets(t);
      for (size_t i = 0; i < to.size(); i++) write(at, code(t), to[i], t.values[i]);
    }
  }
};
