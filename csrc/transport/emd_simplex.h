// Network simplex on the transport tableau, one problem on one thread, in double.
//
// A basis is a spanning tree of the rows and columns; one pivot brings in the cell of the least
// reduced cost C_ij - f_i - g_j of a block of rows, sends flow round the cycle that it closes, and
// drops the cell that empties. Trees are kept strongly feasible (a cell without flow hangs as a row
// below its column), so that a run of pivots without flow cannot come back to where it began
// (Cunningham 1976); masses that tie, as uniform ones do, are no special case. A pivot costs a
// block of the matrix, the cycle and the part of the tree that moves. Which cell enters does not
// depend on the width of the vectors.
//
// Compiled once per instruction set (common/each_capability.h): raw pointers only, no library
// calls.

namespace {

constexpr int64_t lanes = VECTOR_BYTES / 8;
typedef double Doubles __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t Longs __attribute__((vector_size(VECTOR_BYTES)));

// A block of the search has about this many cells: a larger one takes fewer pivots, each of which
// costs more. With 128, 256, 512, 1024 (AVX2, random masses): 33, 31, 30, 34 us at n = 32, 149,
// 140, 138, 137 us at 64, 3.3, 3.3, 2.8, 2.6 ms at 256.
constexpr int64_t block_cells = 512;

inline Doubles load(const double* p) {
  Doubles v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

struct Cell {
  double cost;  // reduced
  int64_t at;   // i * stride + j, or -1
};

// The least over the lanes; of equals the first cell.
inline void take(const Doubles& least, const Longs& at, Cell& best) {
  for (int64_t k = 0; k < lanes; ++k) {
    if (at[k] < 0) continue;
    const int64_t cell = at[k] + k;
    if (least[k] < best.cost || (least[k] == best.cost && cell < best.at)) best = {least[k], cell};
  }
}

// The least reduced cost below -tolerance in rows [first, last).
inline Cell price(const EmdTableau& t, int64_t first, int64_t last) {
  const double* g = t.potential;
  const double* f = t.potential + t.stride;
  Doubles least[2];
  Longs at[2];
  for (int r = 0; r < 2; ++r) least[r] = Doubles{} - t.tolerance, at[r] = Longs{} - 1;
  for (int64_t i = first; i < last; i += 2) {
    const int64_t rows[2] = {i, i + 1 < last ? i + 1 : i};
    const double* row[2] = {t.cost + rows[0] * t.stride, t.cost + rows[1] * t.stride};
    const Doubles shift[2] = {Doubles{} + f[rows[0]], Doubles{} + f[rows[1]]};
    for (int64_t j = 0; j < t.stride; j += lanes) {
      const Doubles column = load(g + j);
      for (int r = 0; r < 2; ++r) {
        const Doubles reduced = load(row[r] + j) - column - shift[r];
        const auto less = reduced < least[r];
        least[r] = less ? reduced : least[r];
        at[r] = less ? Longs{} + (rows[r] * t.stride + j) : at[r];
      }
    }
  }
  Cell best{-t.tolerance, -1};
  for (int r = 0; r < 2; ++r) take(least[r], at[r], best);
  return best;
}

inline double cost_of(const EmdTableau& t, int32_t v, int32_t parent) {
  return v < t.stride ? t.cost[(parent - t.stride) * t.stride + v]
                      : t.cost[(v - t.stride) * t.stride + parent];
}

inline void attach(EmdNode* nodes, int32_t v, int32_t parent) {
  const int32_t brother = nodes[parent].child;
  nodes[v].parent = parent;
  nodes[v].previous = -1;
  nodes[v].next = brother;
  if (brother >= 0) nodes[brother].previous = v;
  nodes[parent].child = v;
}

inline void detach(EmdNode* nodes, int32_t v) {
  const EmdNode& node = nodes[v];
  if (node.previous >= 0) {
    nodes[node.previous].next = node.next;
  } else {
    nodes[node.parent].child = node.next;
  }
  if (node.next >= 0) nodes[node.next].previous = node.previous;
}

// Calls visit(node) on v and all below it, parents first.
template <typename F>
inline void below(const EmdNode* nodes, int32_t v, const F& visit) {
  const int32_t top = v;
  while (true) {
    visit(v);
    if (nodes[v].child >= 0) {
      v = nodes[v].child;
      continue;
    }
    while (v != top && nodes[v].next < 0) v = nodes[v].parent;
    if (v == top) return;
    v = nodes[v].next;
  }
}

// Potentials and depths of the whole tree from its cells: no rounding of earlier pivots is left.
inline void refresh(const EmdTableau& t, int32_t root) {
  t.potential[root] = 0;
  t.nodes[root].depth = 0;
  below(t.nodes, root, [&](int32_t v) {
    if (v == root) return;
    const int32_t parent = t.nodes[v].parent;
    t.potential[v] = cost_of(t, v, parent) - t.potential[parent];
    t.nodes[v].depth = t.nodes[parent].depth + 1;
  });
}

// A first tree: each row in turn fills its cheapest columns, by the cost above the least of the
// column. Whichever of row and column is used up hangs below the other. A tie uses up the column,
// so that no column stays open with nothing left: the tree is strongly feasible. Returns the root,
// the last row.
inline int32_t start(const EmdTableau& t) {
  double* key = t.potential;  // the least of each column, -inf once it is used up
  for (int64_t j = 0; j < t.stride; j += lanes) {
    Doubles least = load(t.cost + j);
    for (int64_t i = 1; i < t.n; ++i) {
      const Doubles other = load(t.cost + i * t.stride + j);
      least = other < least ? other : least;
    }
    // Beyond column m the least is +inf, and inf - inf would be NaN.
    for (int64_t k = 0; k < lanes; ++k) key[j + k] = j + k < t.m ? least[k] : -__builtin_inf();
  }
  for (int64_t v = 0; v < t.stride + t.n; ++v) t.nodes[v] = {0, -1, 0, -1, -1, -1};
  int64_t open = t.m;
  for (int64_t i = 0; i + 1 < t.n; ++i) {
    const int32_t row = static_cast<int32_t>(t.stride + i);
    const double* cost = t.cost + i * t.stride;
    while (true) {
      Doubles least = Doubles{} + __builtin_inf();
      Longs at = Longs{} - 1;
      for (int64_t j = 0; j < t.stride; j += lanes) {
        const Doubles above = load(cost + j) - load(key + j);
        const auto less = above < least;
        least = less ? above : least;
        at = less ? Longs{} + j : at;
      }
      Cell best{__builtin_inf(), -1};
      take(least, at, best);
      const int32_t column = static_cast<int32_t>(best.at);
      // The last open column takes whatever the rows have left (rounding apart, that is its mass).
      if (open == 1 || t.a[i] < t.b[column]) {
        t.nodes[row].flow = t.a[i];
        t.b[column] -= t.a[i];
        attach(t.nodes, row, column);
        break;
      }
      t.nodes[column].flow = t.b[column];
      t.a[i] -= t.b[column];
      attach(t.nodes, column, row);
      key[column] = -__builtin_inf();
      --open;
    }
  }
  const int32_t root = static_cast<int32_t>(t.stride + t.n - 1);
  for (int64_t j = 0; j < t.m; ++j) {
    if (key[j] == -__builtin_inf()) continue;
    const int32_t column = static_cast<int32_t>(j);
    t.nodes[column].flow = open == 1 ? t.a[t.n - 1] : t.b[j];
    attach(t.nodes, column, root);
  }
  for (int64_t j = t.m; j < t.stride; ++j) key[j] = 0;
  return root;
}

// Brings the cell of row and column into the tree.
inline void pivot(const EmdTableau& t, int32_t row, int32_t column, double reduced) {
  EmdNode* nodes = t.nodes;
  // The cycle runs from the row over the new cell to the column and back through the tree: on the
  // column's way up the columns' cells lose flow, on the row's way up the rows' do. Of those that
  // lose most the last on the cycle, seen from its top, leaves: that keeps the tree strongly
  // feasible.
  double least_row = __builtin_inf(), least_column = __builtin_inf();
  int32_t out_row = -1, out_column = -1;
  int32_t u = row, v = column;
  while (u != v) {
    if (nodes[u].depth >= nodes[v].depth) {
      if (u >= t.stride && nodes[u].flow < least_row) least_row = nodes[u].flow, out_row = u;
      u = nodes[u].parent;
    } else {
      if (v < t.stride && nodes[v].flow <= least_column)
        least_column = nodes[v].flow, out_column = v;
      v = nodes[v].parent;
    }
  }
  const int32_t top = u;
  const bool column_moves = least_column <= least_row;
  const double amount = column_moves ? least_column : least_row;
  const int32_t out = column_moves ? out_column : out_row;
  if (amount > 0) {
    for (u = row; u != top; u = nodes[u].parent) {
      nodes[u].flow += u >= t.stride ? -amount : amount;
    }
    for (v = column; v != top; v = nodes[v].parent) {
      nodes[v].flow += v < t.stride ? -amount : amount;
    }
  }
  // The part below the leaving cell hangs from the other end of the new cell: parents on the way
  // from the new cell to the leaving one turn round, each cell's flow going to the node that is
  // below now.
  const int32_t moved = column_moves ? column : row;
  int32_t parent = column_moves ? row : column;
  double flow = amount;
  for (int32_t node = moved;;) {
    const int32_t above = nodes[node].parent;
    const double old = nodes[node].flow;
    detach(nodes, node);
    attach(nodes, node, parent);
    nodes[node].flow = flow;
    if (node == out) break;
    flow = old;
    parent = node;
    node = above;
  }
  const bool columns_rise = column_moves;
  below(nodes, moved, [&](int32_t w) {
    nodes[w].depth = nodes[nodes[w].parent].depth + 1;
    t.potential[w] += (w < t.stride) == columns_rise ? reduced : -reduced;
  });
}

bool solve(const EmdTableau& t) {
  const int32_t root = start(t);
  refresh(t, root);
  const int64_t rows = block_cells / t.stride > 0 ? block_cells / t.stride : 1;
  int64_t at = 0, idle = 0;  // the next row, and how many in a row had nothing to offer
  bool fresh = true;         // whether the potentials carry no rounding of earlier pivots
  for (int64_t pivots = 0;;) {
    const int64_t last = at + rows < t.n ? at + rows : t.n;
    const Cell best = price(t, at, last);
    if (best.at < 0) {
      idle += last - at;
      at = last == t.n ? 0 : last;
      if (idle < t.n) continue;
      if (fresh) return true;
      refresh(t, root);
      fresh = true;
      idle = 0;
      continue;
    }
    if (pivots++ == t.max_pivot) return false;
    pivot(t, static_cast<int32_t>(t.stride + best.at / t.stride),
          static_cast<int32_t>(best.at % t.stride), best.cost);
    at = last == t.n ? 0 : last;
    idle = 0;
    fresh = false;
  }
}

}  // namespace

inline EmdSolve exported_emd() { return solve; }
