// Multi-modal causal attention in one pass over memory, for CPUs. `mmca_fused.py` compiles this file and calls it.
//
// Rows are text queries; each reads a band of the text's keys and a band of the images', in a softmax each. A block
// of rows lies across the lanes of vectors, and its keys go by in tiles: scores, running maximum and sum, weighted
// values (Dao et al., "FlashAttention", 2022, arXiv:2205.14135). Keys and values of a conversation are first moved
// together into memory that the thread keeps, so nothing else is gathered, and no memory is new but the result's.
// Exponentials have base 2: the queries are scaled by log2(e) besides.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16, KEYS = 8, ROWS = 4, WIDE = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, KEYS = 6, ROWS = 6, WIDE = 2;
#else
constexpr int LANES = 4, KEYS = 6, ROWS = 6, WIDE = 2;
#endif
// What fits into registers: scores of KEYS keys with VECTORS of rows; sums of ROWS rows, WIDE vectors of each.
constexpr int VECTORS = 2;
constexpr int BLOCK = VECTORS * LANES;  // rows that are computed together
constexpr int TILE = 128;  // keys that go by together
constexpr float LOG2E = 1.44269504088896340736f;
constexpr float LOWEST = -std::numeric_limits<float>::max();

#if defined(__x86_64__)
#define HOLD(x) __asm__("" : "+v"(x))  // in a register: compilers would read it from memory for each use
#else
#define HOLD(x)
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

// ---- What the caller hands over: mmca_fused.py packs the same fields in this order.

struct Strided {  // [B, H, S, D], of which D is contiguous; the strides of the others, in elements
  void* data;
  int64_t batch, head, token;
};

struct Call {
  Strided query, key, value, grad, result, d_query, d_key, d_value;
  // For the backward pass, or null: the rows' queries and their results in either softmax, [T, H, D] each, of the
  // same type; those over images from row image_top on. And the logarithms of the sums of exponentials, [2, H, T].
  void *asked, *text, *image;
  float* lse;
  // A factor on the images' term for each head [H], or null; its gradient, and that of each row, [H, T - image_top].
  const float* gate;
  float *d_gate, *d_gate_rows;
  const int64_t *rows, *others, *own, *text_keys, *image_keys;  // as in mmca_layout.Layout
  const int64_t *text_start, *text_stop, *image_start, *image_stop;
  int64_t row_count, other_count, image_top, heads, shared, queries, keys, width, threads;
  float scaling;
  int32_t is_half;  // bfloat16 instead of float32
};

struct Bfloat16 {
  uint16_t bits;
};

static inline float number(float x) { return x; }
static inline float number(Bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
static inline void assign(float& into, float x) { into = x; }
static inline void assign(Bfloat16& into, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  into.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}

template <class T>
static inline T* at(const Strided& states, int64_t place, int64_t length, int64_t head) {
  T* memory = static_cast<T*>(states.data) + head * states.head;
  if (states.batch == length * states.token) return memory + place * states.token;  // spares a division
  return memory + place / length * states.batch + place % length * states.token;
}

// A row's head in memory that is kept for the backward pass, or null where it is not.
template <class T>
static inline T* kept(const Call& call, void* states, int64_t row, int64_t head) {
  return states && row >= 0 ? static_cast<T*>(states) + (row * call.heads + head) * call.width : nullptr;
}

// Rows of a thread's own memory are as long as whole vectors, filled up with zeros.
static inline int64_t padded(const Call& call) { return (call.width + LANES - 1) / LANES * LANES; }

template <class T>
static inline void read(const Call& call, const T* from, float* into, float factor = 1.0f) {
  for (int64_t d = 0; d < call.width; ++d) into[d] = number(from[d]) * factor;
  for (int64_t d = call.width; d < padded(call); ++d) into[d] = 0.0f;
}

template <class T>
static inline void write(const Call& call, const float* from, T* into, float factor = 1.0f) {
  for (int64_t d = 0; d < call.width; ++d) assign(into[d], from[d] * factor);
}

// ---- Memory of a thread, which grows and stays.

class Scratch {
 public:
  ~Scratch() { release(); }
  void shrink() {  // what a very long row needed
    if (size_ > (size_t(1) << 24)) release();
  }
  float* take(size_t count) {
    if (count > size_) {
      release();
      data_ = static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t(64)));
      size_ = count;
    }
    return data_;
  }

 private:
  void release() {
    if (data_) ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    size_ = 0;
  }
  float* data_ = nullptr;
  size_t size_ = 0;
};

static thread_local Scratch kept_keys, kept_block;

// ---- Vectors.

static inline vec all(float x) { return x - vec{}; }
static inline vec larger(vec a, vec b) { return b > a ? b : a; }

// 2^x for x <= some 80; zero below -126. The polynomial on [-0.5, 0.5] has a relative error of 2e-9.
static inline vec exp2_of(vec x) {
  const vec bound = x < -126.0f ? all(-126.0f) : x;
  const vec shifter = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vec whole = (bound + shifter) - shifter;
  const vec f = bound - whole;
  vec p = f * 0.00015345812142887074f + 0.00133999315407609f;
  p = p * f + 0.009618488959395084f;
  p = p * f + 0.05550328776172564f;
  p = p * f + 0.24022646890586763f;
  p = p * f + 0.6931472057376299f;
  p = p * f + 1.0f;
  const ivec exponent = __builtin_convertvector(whole, ivec);
  const vec power = (vec)((exponent + 127) << 23);
  const vec result = p * power;
  return x < -126.0f ? vec{} : result;
}

// A square of LANES rows of LANES numbers, transposed: halves interleaved as often as LANES doubles.
template <int... I>
struct Numbers {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  typedef Numbers<I...> type;
};
template <int HALF, int... I>
static inline vec interleave(vec a, vec b, Numbers<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((I & 1) ? LANES : 0) + HALF * LANES / 2 + I / 2 ...);
#else
  return __builtin_shuffle(a, b, ivec{((I & 1) ? LANES : 0) + HALF * LANES / 2 + I / 2 ...});
#endif
}
static inline void transpose(vec* square) {
  vec other[LANES];
#pragma GCC unroll 4
  for (int stage = 1; stage < LANES; stage *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; ++i) {
      other[2 * i] = interleave<0>(square[i], square[i + LANES / 2], typename Count<LANES>::type());
      other[2 * i + 1] = interleave<1>(square[i], square[i + LANES / 2], typename Count<LANES>::type());
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) square[i] = other[i];
  }
}

// Rows [n, width], n <= BLOCK, as columns: [width][BLOCK] by `vectors` vectors a line; rows that lack are zero.
static void columns_of(const float* rows, int64_t width, int vectors, vec* columns) {
  vec square[LANES];
  for (int v = 0; v < vectors; ++v)
    for (int64_t d = 0; d < width; d += LANES) {
      for (int i = 0; i < LANES; ++i) square[i] = *(const vec*)(rows + (v * LANES + i) * width + d);
      transpose(square);
      for (int i = 0; i < LANES; ++i) columns[(d + i) * vectors + v] = square[i];
    }
}

// ---- Products. All memory here is a thread's own.

// scores[n][v] = sum over d of keys[n][d] * columns[d][v]
template <int N, int V>
static inline void few_scores(const float* keys, int64_t width, const vec* columns, vec* scores) {
  vec sum[N][V] = {};
  for (int64_t d = 0; d < width; ++d) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[n][v] += keys[n * width + d] * columns[d * V + v];
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) scores[n * V + v] = sum[n][v];
}

template <int V>
static void scores_of(const float* keys, int64_t count, int64_t width, const vec* columns, vec* scores) {
  int64_t n = 0;
  for (; n + KEYS <= count; n += KEYS) few_scores<KEYS, V>(keys + n * width, width, columns, scores + n * V);
  for (; n + 4 <= count; n += 4) few_scores<4, V>(keys + n * width, width, columns, scores + n * V);
  for (; n < count; ++n) few_scores<1, V>(keys + n * width, width, columns, scores + n * V);
}

// into[i] += sum over k of weights[i * down + k * across] * rows[k]
template <int N, int V>
static inline void few_sums(
    const float* weights, int64_t down, int64_t across, const float* rows, int64_t depth, int64_t width, float* into) {
  vec sum[N][V];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[i][v] = *(const vec*)(into + i * width + v * LANES);
  for (int64_t k = 0; k < depth; ++k) {
    vec row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      row[v] = *(const vec*)(rows + k * width + v * LANES);
      HOLD(row[v]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i][v] += weights[i * down + k * across] * row[v];
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) *(vec*)(into + i * width + v * LANES) = sum[i][v];
}

template <int V>
static void sums_of(
    const float* weights, int64_t down, int64_t across, const float* rows, int64_t depth, int64_t width, float* into,
    int64_t count) {
  int64_t i = 0;
  for (; i + ROWS <= count; i += ROWS)
    few_sums<ROWS, V>(weights + i * down, down, across, rows, depth, width, into + i * width);
  for (; i + 2 <= count; i += 2)
    few_sums<2, V>(weights + i * down, down, across, rows, depth, width, into + i * width);
  for (; i < count; ++i) few_sums<1, V>(weights + i * down, down, across, rows, depth, width, into + i * width);
}

static void add_products(
    const float* weights, int64_t down, int64_t across, const float* rows, int64_t depth, int64_t width, float* into,
    int64_t count) {
  int64_t d = 0;
  for (; d + WIDE * LANES <= width; d += WIDE * LANES)
    sums_of<WIDE>(weights, down, across, rows + d, depth, width, into + d, count);
  for (; d < width; d += LANES) sums_of<1>(weights, down, across, rows + d, depth, width, into + d, count);
}

// ---- A run of rows whose keys no other run reads backwards: a conversation, or single tokens that see themselves.

struct Run {
  int64_t top, bottom;
};

// The next run from row `top`: a conversation, of a longer one `most` rows. Tokens that see only themselves, as padding
// may be, share a block; conversations do not, so that no infinity of one becomes another's.
static Run next_run(const Call& call, int64_t top, int64_t most) {
  const int64_t* start = call.text_start;
  const auto end_of = [&](int64_t row) {
    return std::upper_bound(start + row, start + call.row_count, start[row]) - start;
  };
  const auto is_alone = [&](int64_t row) {
    return call.text_stop[row] - start[row] == 1 && call.image_stop[row] == call.image_start[row] &&
           end_of(row) == row + 1;
  };
  int64_t bottom = top;
  while (bottom < call.row_count && bottom - top < BLOCK && is_alone(bottom)) ++bottom;
  return {top, bottom > top ? bottom : top + std::min(end_of(top) - top, most)};
}

// One kind of keys and what a run's rows see of them, counted from its first key.
struct Band {
  const float *keys, *values;  // [n, width]
  float *d_keys, *d_values;    // the same
  const int64_t *start, *stop, *places;
  int64_t first, count;
  bool image;

  Band(const Call& call, const Run& run, bool image) : image(image) {
    start = image ? call.image_start : call.text_start;
    stop = image ? call.image_stop : call.text_stop;
    places = image ? call.image_keys : call.text_keys;
    first = start[run.top];
    count = std::max<int64_t>(stop[run.bottom - 1] - first, 0);
  }
};

// Moves the keys and values of a run together; backwards, gradients that are zero stand behind them.
template <class T>
static void gather(const Call& call, Band (&bands)[2], int64_t head, bool backward) {
  const int64_t width = padded(call), count = bands[0].count + bands[1].count;
  float* memory = kept_keys.take((backward ? 4 : 2) * count * width);
  for (Band& band : bands) {
    float *keys = memory, *values = memory + count * width;
    for (int64_t n = 0; n < band.count; ++n) {
      const int64_t place = band.places[band.first + n];
      read(call, at<const T>(call.key, place, call.keys, head), keys + n * width);
      read(call, at<const T>(call.value, place, call.keys, head), values + n * width);
    }
    band.keys = keys;
    band.values = values;
    band.d_keys = keys + 2 * count * width;
    band.d_values = values + 2 * count * width;
    memory += band.count * width;
  }
  if (backward && count) std::memset(bands[0].d_keys, 0, 2 * count * width * sizeof(float));
}

// A block of rows, and the keys of a band that it sees in tiles: those that all rows see need no mask.
template <int V>
struct Seen {
  ivec start[V], stop[V];
  int64_t low, high, whole_low, whole_high;

  Seen(const Band& band, int64_t top, int64_t count) {
    int32_t starts[V * LANES], stops[V * LANES];
    for (int64_t i = 0; i < V * LANES; ++i) {
      const int64_t row = top + std::min(i, count - 1);
      starts[i] = band.start[row] - band.first;
      stops[i] = band.stop[row] - band.first;
    }
    std::memcpy(start, starts, sizeof(start));
    std::memcpy(stop, stops, sizeof(stop));
    low = starts[0];
    high = std::max<int64_t>(stops[count - 1], low);
    whole_low = std::min<int64_t>(std::max<int64_t>(starts[count - 1], low), high);
    whole_high = std::min<int64_t>(std::max<int64_t>(stops[0], whole_low), high);
  }

  // Calls work(first key, keys, whether a mask is needed) for each tile.
  template <class Work>
  void tiles(Work work) const {
    const int64_t borders[] = {low, whole_low, whole_high, high};
    for (int part = 0; part < 3; ++part)
      for (int64_t key = borders[part]; key < borders[part + 1]; key += TILE)
        work(key, std::min<int64_t>(TILE, borders[part + 1] - key), part != 1);
  }

  vec masked(vec scores, int64_t key, int v) const {
    const ivec number = int32_t(key) - ivec{};
    return ((start[v] <= number) & (number < stop[v])) ? scores : all(-std::numeric_limits<float>::infinity());
  }
};

// Calls work(vectors, first row, rows, head) for the blocks of a run, for each head that shares these keys.
template <class Work>
static void each_block(const Call& call, const Run& run, int64_t shared_head, Work work) {
  const int64_t groups = call.heads / call.shared;
  for (int64_t head = shared_head * groups; head < (shared_head + 1) * groups; ++head)
    for (int64_t top = run.top; top < run.bottom; top += BLOCK) {
      const int64_t count = std::min<int64_t>(BLOCK, run.bottom - top);
      if (count > LANES)
        work(std::integral_constant<int, 2>(), top, count, head);
      else
        work(std::integral_constant<int, 1>(), top, count, head);
    }
}

// ---- Forward.

template <class T, int V>
static void forward_block(const Call& call, const Band (&bands)[2], int64_t top, int64_t count, int64_t head) {
  const int64_t width = padded(call);
  float* memory = kept_block.take((3 * width + TILE) * BLOCK);
  float *rows = memory, *sums = rows + BLOCK * width;
  vec *columns = (vec*)(sums + BLOCK * width), *scores = (vec*)((float*)columns + BLOCK * width);
  const int64_t length = V * LANES;
  for (int64_t i = 0; i < count; ++i) {
    const T* query = at<const T>(call.query, call.rows[top + i], call.queries, head);
    if (T* asked = kept<T>(call, call.asked, top + i, head)) std::memcpy(asked, query, call.width * sizeof(T));
    read(call, query, rows + i * width, call.scaling * LOG2E);
  }
  std::memset(rows + count * width, 0, (length - count) * width * sizeof(float));
  columns_of(rows, width, V, columns);
  for (int kind = 0; kind < 2; ++kind) {
    const Band& band = bands[kind];
    const Seen<V> seen(band, top, count);
    vec most[V], total[V];
    for (int v = 0; v < V; ++v) most[v] = all(LOWEST), total[v] = vec{};
    std::memset(sums, 0, length * width * sizeof(float));
    seen.tiles([&](int64_t key, int64_t keys, bool mask) {
      scores_of<V>(band.keys + key * width, keys, width, columns, scores);
      vec peak[V];
      for (int v = 0; v < V; ++v) peak[v] = most[v];
      for (int64_t n = 0; n < keys; ++n)
        for (int v = 0; v < V; ++v) {
          if (mask) scores[n * V + v] = seen.masked(scores[n * V + v], key + n, v);
          peak[v] = larger(peak[v], scores[n * V + v]);
        }
      float shrink[V * LANES];
      for (int v = 0; v < V; ++v) {
        const vec factor = exp2_of(most[v] - peak[v]);
        std::memcpy(shrink + v * LANES, &factor, sizeof(vec));
        total[v] *= factor;
        most[v] = peak[v];
      }
      for (int64_t n = 0; n < keys; ++n)
        for (int v = 0; v < V; ++v) {
          scores[n * V + v] = exp2_of(scores[n * V + v] - most[v]);
          total[v] += scores[n * V + v];
        }
      if (key > seen.low)
        for (int64_t i = 0; i < length; ++i)
          if (shrink[i] != 1.0f)
            for (int64_t d = 0; d < width; ++d) sums[i * width + d] *= shrink[i];
      add_products((const float*)scores, 1, length, band.values + key * width, keys, width, sums, length);
    });
    const float *totals = (const float*)total, *peaks = (const float*)most;
    for (int64_t i = 0; i < count; ++i) {
      const float inverse = totals[i] == 0.0f ? 0.0f : 1.0f / totals[i];
      if (call.lse)
        call.lse[(kind * call.heads + head) * call.row_count + top + i] =
            totals[i] == 0.0f ? std::numeric_limits<float>::infinity() : peaks[i] + std::log2(totals[i]);
      float *text = rows + i * width, *sum = sums + i * width;
      for (int64_t d = 0; d < width; ++d) sum[d] *= inverse;
      T* own = kind ? kept<T>(call, call.image, top + i - call.image_top, head) : kept<T>(call, call.text, top + i, head);
      if (own) write(call, sum, own);
      if (kind == 0) {
        std::memcpy(text, sum, width * sizeof(float));
        continue;
      }
      T* result = at<T>(call.result, call.rows[top + i], call.queries, head);
      if (call.gate)
        for (int64_t d = 0; d < call.width; ++d) sum[d] *= call.gate[head];
      for (int64_t d = 0; d < call.width; ++d) assign(result[d], text[d] + sum[d]);
    }
  }
}

template <class T>
static void forward_run(const Call& call, const Run& run, int64_t shared_head) {
  Band bands[] = {Band(call, run, false), Band(call, run, true)};
  gather<T>(call, bands, shared_head, false);
  each_block(call, run, shared_head, [&](auto vectors, int64_t top, int64_t count, int64_t head) {
    forward_block<T, decltype(vectors)::value>(call, bands, top, count, head);
  });
}

// Image tokens and padding: the result is their own value.
template <class T>
static void forward_own(const Call& call, int64_t number) {
  const int64_t groups = call.heads / call.shared;
  for (int64_t head = 0; head < call.heads; ++head)
    std::memcpy(at<T>(call.result, call.others[number], call.queries, head),
                at<const T>(call.value, call.own[number], call.keys, head / groups), call.width * sizeof(T));
}

// ---- Backward.

template <class T, int V>
static void backward_block(const Call& call, const Band (&bands)[2], int64_t top, int64_t count, int64_t head) {
  const int64_t width = padded(call), length = V * LANES;
  float* memory = kept_block.take((5 * width + 2 * TILE) * BLOCK);
  float *rows = memory, *grads = rows + BLOCK * width, *d_rows = grads + BLOCK * width;
  vec *columns = (vec*)(d_rows + BLOCK * width), *d_columns = (vec*)((float*)columns + BLOCK * width);
  vec *weights = (vec*)((float*)d_columns + BLOCK * width), *d_scores = (vec*)((float*)weights + BLOCK * TILE);
  vec partial[2][V * LANES] = {};
  for (int64_t i = 0; i < count; ++i) {
    float *grad = grads + i * width, *result = d_rows;
    read(call, kept<T>(call, call.asked, top + i, head), rows + i * width, call.scaling * LOG2E);
    read(call, at<const T>(call.grad, call.rows[top + i], call.queries, head), grad);
    const T* results[] = {kept<T>(call, call.text, top + i, head),
                          kept<T>(call, call.image, top + i - call.image_top, head)};
    for (int kind = 0; kind < 2; ++kind) {
      if (!results[kind]) continue;
      read(call, results[kind], result);
      for (int64_t d = 0; d < width; d += LANES) partial[kind][i] += *(const vec*)(result + d) * *(const vec*)(grad + d);
    }
  }
  vec share[2][V] = {};  // by kind: for each row, the result's product with its gradient
  for (int kind = 0; kind < 2; ++kind)
    for (int v = 0; v < V; ++v) {
      transpose(partial[kind] + v * LANES);
      for (int lane = 0; lane < LANES; ++lane) share[kind][v] += partial[kind][v * LANES + lane];
    }
  if (call.gate)
    for (int64_t i = std::max<int64_t>(call.image_top - top, 0); i < count; ++i)
      call.d_gate_rows[head * (call.row_count - call.image_top) + top + i - call.image_top] =
          ((const float*)share[1])[i];
  std::memset(rows + count * width, 0, (length - count) * width * sizeof(float));
  std::memset(grads + count * width, 0, (length - count) * width * sizeof(float));
  columns_of(rows, width, V, columns);
  columns_of(grads, width, V, d_columns);
  std::memset(d_rows, 0, length * width * sizeof(float));
  for (int kind = 0; kind < 2; ++kind) {
    const Band& band = bands[kind];
    const Seen<V> seen(band, top, count);
    const bool gated = kind && call.gate;
    vec lse[V];
    for (int v = 0; v < V; ++v) lse[v] = all(std::numeric_limits<float>::infinity());
    std::memcpy(lse, call.lse + (kind * call.heads + head) * call.row_count + top, count * sizeof(float));
    seen.tiles([&](int64_t key, int64_t keys, bool mask) {
      scores_of<V>(band.keys + key * width, keys, width, columns, weights);
      scores_of<V>(band.values + key * width, keys, width, d_columns, d_scores);
      for (int64_t n = 0; n < keys; ++n)
        for (int v = 0; v < V; ++v) {
          vec score = weights[n * V + v];
          if (mask) score = seen.masked(score, key + n, v);
          weights[n * V + v] = exp2_of(score - lse[v]);
          if (gated) weights[n * V + v] *= call.gate[head];
          d_scores[n * V + v] = weights[n * V + v] * (d_scores[n * V + v] - share[kind][v]);
        }
      const float *p = (const float*)weights, *ds = (const float*)d_scores;
      add_products(p, length, 1, grads, count, width, band.d_values + key * width, keys);
      add_products(ds, length, 1, rows, count, width, band.d_keys + key * width, keys);
      add_products(ds, 1, length, band.keys + key * width, keys, width, d_rows, length);
    });
  }
  for (int64_t i = 0; i < count; ++i)
    write(call, d_rows + i * width, at<T>(call.d_query, call.rows[top + i], call.queries, head), call.scaling);
}

template <class T>
static void backward_run(const Call& call, const Run& run, int64_t shared_head) {
  Band bands[] = {Band(call, run, false), Band(call, run, true)};
  gather<T>(call, bands, shared_head, true);
  const int64_t width = padded(call);
  each_block(call, run, shared_head, [&](auto vectors, int64_t top, int64_t count, int64_t head) {
    backward_block<T, decltype(vectors)::value>(call, bands, top, count, head);
  });
  for (const Band& band : bands)
    for (int64_t n = 0; n < band.count; ++n) {
      const int64_t place = band.places[band.first + n];
      T* into = at<T>(call.d_value, place, call.keys, shared_head);
      for (int64_t d = 0; d < call.width; ++d)  // an image token's own gradient is there before
        assign(into[d], band.d_values[n * width + d] + (band.image ? number(into[d]) : 0.0f));
      write(call, band.d_keys + n * width, at<T>(call.d_key, place, call.keys, shared_head), 1.0f / LOG2E);
    }
}

// Image tokens and padding: their values' gradient begins with the result's; they ask nobody.
template <class T>
static void backward_own(const Call& call, int64_t number_of) {
  const int64_t groups = call.heads / call.shared;
  const int64_t query = call.others[number_of], key = call.own[number_of];
  for (int64_t head = 0; head < call.heads; ++head)
    std::memset(at<T>(call.d_query, query, call.queries, head), 0, call.width * sizeof(T));
  for (int64_t shared = 0; shared < call.shared; ++shared) {
    std::memset(at<T>(call.d_key, key, call.keys, shared), 0, call.width * sizeof(T));  // who sees it writes over it
    T* into = at<T>(call.d_value, key, call.keys, shared);
    for (int64_t d = 0; d < call.width; ++d) {
      float sum = 0;
      for (int64_t group = 0; group < groups; ++group)
        sum += number(at<const T>(call.grad, query, call.queries, shared * groups + group)[d]);
      assign(into[d], sum);
    }
  }
}

// ---- What Python calls: 0 where all went well, 1 where memory is out.

template <class T, void (*ON_RUN)(const Call&, const Run&, int64_t), void (*ON_OWN)(const Call&, int64_t)>
static int in_parallel(const Call& call, int64_t most) {
  std::vector<Run> runs;
  for (int64_t top = 0; top < call.row_count; top = runs.back().bottom) runs.push_back(next_run(call, top, most));
  const int64_t count = int64_t(runs.size());
  int failed = 0;
#pragma omp parallel num_threads(call.threads) reduction(| : failed)
  {
#pragma omp for schedule(static)
    for (int64_t number = 0; number < call.other_count; ++number) ON_OWN(call, number);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < count * call.shared; ++task) try {
        ON_RUN(call, runs[count - 1 - task / call.shared], task % call.shared);  // the last have the most keys
      } catch (const std::bad_alloc&) {
        failed = 1;
      }
    kept_keys.shrink();
  }
  return failed;
}

// Forward, rows of a long conversation may be shared out, for which keys are gathered again: where threads would
// have nothing to do otherwise. In whole blocks, so that the results have the same bits.
static int64_t rows_of_a_task(const Call& call) {
  if (call.shared >= 2 * call.threads) return call.row_count;
  const int64_t blocks = call.row_count * call.shared / (4 * call.threads * BLOCK);
  return std::max<int64_t>(8, blocks) * BLOCK;
}

extern "C" int mmca_forward(const Call* call) try {
  const int64_t most = rows_of_a_task(*call);
  return call->is_half ? in_parallel<Bfloat16, forward_run<Bfloat16>, forward_own<Bfloat16>>(*call, most)
                       : in_parallel<float, forward_run<float>, forward_own<float>>(*call, most);
} catch (const std::bad_alloc&) {
  return 1;
}

extern "C" int mmca_backward(const Call* call) try {
  const int64_t most = call->row_count, rows = call->row_count - call->image_top;
  const int failed = call->is_half
                         ? in_parallel<Bfloat16, backward_run<Bfloat16>, backward_own<Bfloat16>>(*call, most)
                         : in_parallel<float, backward_run<float>, backward_own<float>>(*call, most);
  for (int64_t head = 0; call->gate && head < call->heads; ++head) {  // in one order, whoever computed the rows
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row) sum += call->d_gate_rows[head * rows + row];
    call->d_gate[head] = float(sum);
  }
  return failed;
} catch (const std::bad_alloc&) {
  return 1;
}

