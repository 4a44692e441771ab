// Exact optimal transport on the CPU: what the solver (emd_simplex.h) and the op (emd_cpu.cpp)
// agree on.
//
//   minimise sum_ij P_ij C_ij   with   P >= 0,  P 1 = a,  P^T 1 = b
//   dual     f_i + g_j <= C_ij,  with equality wherever P_ij > 0
#pragma once

#include <cstdint>

namespace fedkernels {

// One row or column of the tableau as a node of the spanning tree. Node j < stride is column j,
// node stride + i is row i. `flow` is P at the cell of this node and its parent.
struct EmdNode {
  double flow;
  int32_t parent, depth;
  int32_t child, next, previous;  // first child; brothers; -1 for none
};

// One balanced problem whose masses are all positive, and the room in which it is solved.
struct EmdTableau {
  int64_t n, m;       // rows, columns, both at least 1
  int64_t stride;     // m rounded up to whole vectors
  double* cost;       // (n, stride), +inf beyond column m
  double* a;          // (n), used up
  double* b;          // (m), used up
  double* potential;  // (stride + n): g, then f
  EmdNode* nodes;     // (stride + n)
  double tolerance;   // a cell enters below minus this reduced cost
  int64_t max_pivot;
};

// Columns are padded to this many, whole vectors under every instruction set.
constexpr int64_t emd_pad = 8;

inline int64_t emd_stride(int64_t m) { return (m + emd_pad - 1) / emd_pad * emd_pad; }

// Solves the tableau: nodes hold the optimal tree and its flows, potential the duals. False if
// max_pivot pivots were not enough: the flows are feasible then, the duals are not.
using EmdSolve = bool (*)(const EmdTableau&);

}  // namespace fedkernels
