// CUDA C++ on the host: what csrc/common/cuda.h includes when no nvcc compiles it. The threads of a
// block run as fibers, one at a time, until each waits for others; blocks run one after another.
// docs/gpu.md says what such a run proves and what it cannot see.
#pragma once

#include "host/block.h"
#include "host/copy.h"
#include "host/intrinsics.h"
#include "host/launch.h"
#include "host/math.h"
#include "host/mma.h"
#include "host/shared.h"
#include "host/vectors.h"
#include "host/warp.h"
